"""Thumbnails of images by their place in the tars, also of those that were refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flowkit.errors import ShardError, StageError
from flowkit.progress import logger
from flowkit.report.survey import Thumbnail
from flowkit.report.thumbnails import encode_thumbnail
from flowkit.shards.reader import Listing, UndecodableImage, list_samples
from flowkit.shards.salvage import salvage_picture
from flowkit.stages.inputs import tar_of
from flowkit.stages.session import Spec

GONE = "its tar is not where the workflow left it"


@dataclass(frozen=True)
class Wanted:
    """A picture: the place of its sample in a tar, and the name of its file without the ending."""

    dataset: str
    tar: str
    index: int
    key: str
    name: str


def write_thumbnails(spec: Spec, wanted: Iterable[Wanted], folder: Path) -> dict[str, Thumbnail]:
    """Write what can be drawn to `folder` and return the thumbnails by name; each tar is listed once.

    Tars may be gone: data roots are emptied, and nothing but pictures is lost with them.
    """
    shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left
    folder.mkdir()
    by_tar: dict[tuple[str, str], list[Wanted]] = {}
    for one in wanted:
        by_tar.setdefault((one.dataset, one.tar), []).append(one)
    found: dict[str, Thumbnail] = {}
    for (dataset, tar), group in by_tar.items():
        listing = _listing(spec, dataset, tar)
        if listing is None:
            found |= {one.name: Thumbnail(words=GONE) for one in group}
        else:
            found |= _of_tar(listing, group, folder)
    return found


def _listing(spec: Spec, dataset: str, tar: str) -> Listing | None:
    try:
        path, _ = tar_of(spec, dataset, tar)
        return list_samples(path, spec.values["datasets"][dataset]["views"])
    except (ShardError, StageError) as error:
        logger.warning("pictures of %s in %s are left out: %s", tar, dataset, error)
        return None


def _of_tar(listing: Listing, group: Iterable[Wanted], folder: Path) -> dict[str, Thumbnail]:
    found = {}
    with listing.tar.open("rb") as stream:
        for one in group:
            try:
                picture = salvage_picture(listing, one.index, one.key, stream)
            except UndecodableImage as error:
                found[one.name] = Thumbnail(words=error.reason)
                continue
            data, suffix, (width, height) = encode_thumbnail(picture, one.index)
            (folder / f"{one.name}.{suffix}").write_bytes(data)
            found[one.name] = Thumbnail(f"{one.name}.{suffix}", width, height)
    return found
