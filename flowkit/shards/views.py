"""Views: several images of one object in a tar, each of which becomes a sample of its own.

    <key>.0.jpg  <key>.1.jpg ...  <key>.txt  <key>.json     an object of V views
    <key>.0, <key>.1 ...                                    the keys of its samples

Captions and attributes are the object's, so all its samples have them. Every object has V places among the samples of
the tar, whatever it holds; an object with fewer or more views than it should have is refused with all its places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowkit.errors import ShardError
from flowkit.shards.tar_members import Member
from flowkit.view_keys import key_of_view

TEXT_EXTENSIONS = ("txt", "json")
"""What all views of an object share, unless a view brings its own (<key>.0.txt)."""
_VIEW = re.compile(r"([0-9]{1,4})\.([^.]+)")
Group = tuple[str, list[Member]]
ByView = Mapping[int, list[Member]]


def view_number(extension: str, of: Sequence[str]) -> int | None:
    """Return the number of the view in a member's extension, 3 of "3.jpg" or "003.jpg"; None if it is not one `of`."""
    found = _VIEW.fullmatch(extension)
    return int(found[1]) if found and found[2] in of else None


def split_views(
    tar: Path, members: Mapping[str, list[Member]], views: int, image_extensions: Sequence[str]
) -> list[Group]:
    """Return (key, members) of every view of every object, V places per object, in order of first appearance.

    Raises `ShardError` where not single objects are odd but the number of views is another one: there is no view at
    all, or most of several objects have the same other views.
    """
    images = {key: _by_view(group, image_extensions) for key, group in members.items()}
    _demand_views(tar, list(images.values()), views)
    return [place for key, group in members.items() for place in _places(key, group, images[key], views)]


def _by_view(group: Sequence[Member], of: Sequence[str]) -> dict[int, list[Member]]:
    """The members of each view, with the extension that they would have by themselves."""
    by_view: dict[int, list[Member]] = {}
    for member in group:
        if (view := view_number(member.extension, of)) is not None:
            plain = replace(member, extension=member.extension.partition(".")[2])
            by_view.setdefault(view, []).append(plain)
    return by_view


def _places(key: str, group: Sequence[Member], images: ByView, views: int) -> Iterator[Group]:
    shared = [member for member in group if member.extension in TEXT_EXTENSIONS]
    texts = _by_view(group, TEXT_EXTENSIONS)
    fault = _fault(images, views)
    faults = [Member(key, "views", 0, 0, fault)] if fault else []
    for view in range(views):
        own = texts.get(view, [])
        others = [member for member in shared if member.extension not in {one.extension for one in own}]
        yield key_of_view(key, view), [*images.get(view, ()), *faults, *own, *others]


def _fault(images: ByView, views: int) -> str | None:
    """Why an object cannot be used, or None; the part before the colon is the class of the reason."""
    missing = [str(view) for view in range(views) if view not in images]
    if missing:
        return f"views missing: {', '.join(missing)} of 0 to {views - 1}"
    if len(images) > views:
        return f"views too many: {len(images)}, expected {views}"
    return None


def _demand_views(tar: Path, found: Sequence[ByView], views: int) -> None:
    """Raise `ShardError` if the objects of a tar are of another number of views, and not just some of them odd."""
    with_views = [tuple(sorted(images)) for images in found if images]
    if not with_views:
        raise ShardError(
            f"{tar}: views is {views}, but none of its {len(found)} samples has an image like <key>.0.jpg; set views "
            "of the data set to 1, or write the views as members of one sample"
        )
    usual, objects = Counter(with_views).most_common(1)[0]
    if usual == tuple(range(views)) or objects < 2 or 2 * objects <= len(with_views):
        return
    said = f"{tar}: {objects} of {len(found)} objects have {len(usual)} views, numbered {_numbers(usual)}"
    if usual == tuple(range(len(usual))):
        raise ShardError(f"{said}, not {views}; set views of the data set to {len(usual)}")
    raise ShardError(
        f"{said}; views are counted from 0 without gaps: rename the members <key>.0.jpg and so on"
    )


def _numbers(views: Sequence[int]) -> str:
    """Words for some numbers in order: 1 to 4, or all of them where there are gaps."""
    if len(views) > 1 and views == tuple(range(views[0], views[-1] + 1)):
        return f"{views[0]} to {views[-1]}"
    return ", ".join(map(str, views))
