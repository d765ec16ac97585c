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
"""What all views of an object share."""
_VIEW = re.compile(r"(0|[1-9][0-9]{0,3})\.([^.]+)")
Group = tuple[str, list[Member]]


def view_number(extension: str, image_extensions: Sequence[str]) -> int | None:
    """Return the number of the view in a member's extension, for instance 3 of "3.jpg"; None if it is no view."""
    found = _VIEW.fullmatch(extension)
    return int(found[1]) if found and found[2] in image_extensions else None


def split_views(
    tar: Path, members: Mapping[str, list[Member]], views: int, image_extensions: Sequence[str]
) -> list[Group]:
    """Return (key, members) of every view of every object, V places per object, in order of first appearance.

    Raises `ShardError` if not one object of the tar has just the views 0 to `views` - 1.
    """
    found = {key: _by_view(group, image_extensions) for key, group in members.items()}
    expected = set(range(views))
    if not any(set(by_view) == expected for by_view in found.values()):
        raise _not_as_expected(tar, list(found.values()), views)
    return [place for key, group in members.items() for place in _places(key, group, found[key], views)]


def _by_view(group: Sequence[Member], image_extensions: Sequence[str]) -> dict[int, list[Member]]:
    by_view: dict[int, list[Member]] = {}
    for member in group:
        if (view := view_number(member.extension, image_extensions)) is not None:
            plain = replace(member, extension=member.extension.partition(".")[2])
            by_view.setdefault(view, []).append(plain)
    return by_view


def _places(
    key: str, group: Sequence[Member], by_view: Mapping[int, list[Member]], views: int
) -> Iterator[Group]:
    shared = [member for member in group if member.extension in TEXT_EXTENSIONS]
    fault = _fault(by_view, views)
    if fault:
        shared = [Member(key, "views", 0, 0, fault), *shared]
    for view in range(views):
        yield key_of_view(key, view), [*by_view.get(view, ()), *shared]


def _fault(by_view: Mapping[int, list[Member]], views: int) -> str | None:
    """Why an object cannot be used, or None; the part before the colon is the class of the reason."""
    missing = [str(view) for view in range(views) if view not in by_view]
    if missing:
        return f"views missing: {', '.join(missing)} of 0 to {views - 1}"
    if len(by_view) > views:
        return f"views too many: {len(by_view)}, expected {views}"
    return None


def _not_as_expected(tar: Path, found: Sequence[Mapping[int, list[Member]]], views: int) -> ShardError:
    counts = Counter(len(by_view) for by_view in found)
    usual, objects = counts.most_common(1)[0]
    if usual == 0:
        return ShardError(
            f"{tar}: views is {views}, but {objects} of {len(found)} samples have no member like <key>.0.jpg; "
            "set views of the data set to 1, or write the views as members of one sample"
        )
    return ShardError(
        f"{tar}: no object has just the views 0 to {views - 1}, most ({objects} of {len(found)}) have {usual}; "
        f"set views of the data set to {usual if usual > 1 else 'what its objects have'}"
    )
