"""MS-COCO: its two zip files as webdataset tars.

A sample is `<file stem>.jpg` (the bytes of the zip, untouched) and `.json` with "captions" (the first five by
annotation id) and "attributes": "image_id" and, from the instance annotations, "categories" (names by category
id, each once). Samples are in the order of the image ids. Annotations are CC BY 4.0, the images fall under the terms
of Flickr.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from flowkit.errors import ConfigError, ShardError
from flowkit.shards.coco_categories import COCO_CATEGORIES
from flowkit.shards.reader import IMAGE_EXTENSIONS
from flowkit.shards.tar_writer import plan_tars, write_tar

CAPTIONS_PER_IMAGE = 5
Categories = Mapping[int, tuple[str, ...]]
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError)
_JSON_FAULTS = (ValueError, KeyError, TypeError, AttributeError)
_WITHOUT_INSTANCES = "name the member of these images, or set instances to null and leave zero-shot out"


@dataclass(frozen=True)
class CaptionedImage:
    """What the annotations say of one image."""

    image_id: int
    file_name: str
    captions: tuple[str, ...]


def write_coco_shards(
    images_zip: Path,
    annotations_zip: Path,
    captions_member: str,
    folder: Path,
    *,
    images: int | None,
    images_per_shard: int,
    instances_member: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write the first `images` (None: all) as `folder/00000.tar` ... and return the paths.

    Without `instances_member` samples do not say which categories they show. The bytes are the same on every run; each
    tar gets its name when it is complete; `progress` gets the number of images done. Raises `ConfigError` for counts
    that cannot be, `ShardError` for a damaged or foreign zip, an image without captions or one that is not in the zip.
    """
    listed = read_captions(annotations_zip, captions_member)
    count = len(listed) if images is None else images
    if not 1 <= count <= len(listed) or images_per_shard < 1:
        raise ConfigError(
            f"images = {images}, images_per_shard = {images_per_shard}: {captions_member} lists {len(listed)} "
            "images; take 1 to as many, at least 1 per shard"
        )
    _demand_captions(annotations_zip, listed[:count])
    categories = None
    if instances_member is not None:
        categories = read_instances(annotations_zip, instances_member)
        _demand_listed(annotations_zip, instances_member, listed[:count], categories)
    plan = plan_tars(folder, count, images_per_shard)
    with _open_zip(images_zip) as archive:
        members = _find_members(images_zip, archive, listed[:count])
        for tar, indices in plan:
            chosen = [listed[index] for index in indices]
            write_tar(tar, _records(images_zip, archive, members, chosen, categories))
            if progress is not None:
                progress(len(indices))
    return [tar for tar, _ in plan]


def read_captions(annotations_zip: Path, member: str) -> list[CaptionedImage]:
    """Return the images of a captions file in the order of their ids, each with its first captions."""
    with _open_zip(annotations_zip) as archive:
        content = _read_member(annotations_zip, archive, member)
    try:
        fields = json.loads(content)
        texts: dict[int, list[tuple[int, str]]] = {int(image["id"]): [] for image in fields["images"]}
        if len(texts) < len(fields["images"]):
            raise ValueError("an image id occurs twice")
        for annotation in fields["annotations"]:
            if annotation["caption"].strip():
                texts[int(annotation["image_id"])].append((int(annotation["id"]), annotation["caption"]))
        return [
            _captioned(image, texts) for image in sorted(fields["images"], key=lambda one: int(one["id"]))
        ]
    except _JSON_FAULTS as fault:
        raise ShardError(
            f"{annotations_zip}: {member} is no COCO captions file ({type(fault).__name__}: {fault}); "
            "fetch it again or name another member"
        ) from fault


def read_instances(annotations_zip: Path, member: str) -> dict[int, tuple[str, ...]]:
    """Return image id -> names of the categories that an instances file finds in it, by category id, each once.

    Annotations of crowds count. An image without any annotation shows none. Raises `ShardError` for a foreign file, or
    one whose categories are not those of COCO 2017.
    """
    with _open_zip(annotations_zip) as archive:
        content = _read_member(annotations_zip, archive, member, remedy=_WITHOUT_INSTANCES)
    try:
        fields = json.loads(content)
        names = {int(category["id"]): str(category["name"]) for category in fields["categories"]}
        shown: dict[int, set[int]] = {int(image["id"]): set() for image in fields["images"]}
        for annotation in fields["annotations"]:
            image_id, category_id = int(annotation["image_id"]), int(annotation["category_id"])
            if image_id not in shown:
                raise ValueError(f"annotation {annotation['id']} is of image {image_id}, which is not listed")
            if category_id not in names:
                raise ValueError(
                    f"annotation {annotation['id']} has category {category_id}, which is not listed"
                )
            shown[image_id].add(category_id)
    except _JSON_FAULTS as fault:
        raise ShardError(
            f"{annotations_zip}: {member} is no COCO instances file ({type(fault).__name__}: {fault}); "
            f"{_WITHOUT_INSTANCES}"
        ) from fault
    in_order = [names[category_id] for category_id in sorted(names)]
    for place, (found, expected) in enumerate(zip_longest(in_order, COCO_CATEGORIES), start=1):
        if found != expected:
            raise ShardError(
                f"{annotations_zip}: category {place} of {member} is {found!r}, of COCO 2017 it is {expected!r}; "
                "name an instances file of COCO 2017, or set instances to null and leave zero-shot out"
            )
    return {image_id: tuple(names[one] for one in sorted(found)) for image_id, found in shown.items()}


def _captioned(image: dict[str, Any], texts: dict[int, list[tuple[int, str]]]) -> CaptionedImage:
    first = sorted(texts[int(image["id"])])[:CAPTIONS_PER_IMAGE]
    return CaptionedImage(int(image["id"]), str(image["file_name"]), tuple(text for _, text in first))


def _demand_captions(annotations_zip: Path, listed: list[CaptionedImage]) -> None:
    silent = [image.file_name for image in listed if not image.captions]
    if silent:
        raise ShardError(
            f"{annotations_zip}: {len(silent)} of {len(listed)} images have no caption: {', '.join(silent[:5])}; "
            "fetch the annotations that belong to these images"
        )


def _demand_listed(
    annotations_zip: Path, member: str, listed: list[CaptionedImage], categories: Categories
) -> None:
    unknown = [image.file_name for image in listed if image.image_id not in categories]
    if unknown:
        raise ShardError(
            f"{annotations_zip}: {member} lacks {len(unknown)} of {len(listed)} images: {', '.join(unknown[:5])}; "
            f"{_WITHOUT_INSTANCES}"
        )


def _find_members(images_zip: Path, archive: zipfile.ZipFile, listed: list[CaptionedImage]) -> dict[str, str]:
    """Return file name -> member of the zip; the folder inside the zip does not matter."""
    members: dict[str, str] = {}
    for name in archive.namelist():
        file_name = PurePosixPath(name).name
        if members.setdefault(file_name, name) != name:
            raise ShardError(
                f"{images_zip} has {members[file_name]} and {name}; expected each file name once, fetch it again"
            )
    missing = [image.file_name for image in listed if image.file_name not in members]
    if missing:
        raise ShardError(
            f"{images_zip} lacks {len(missing)} of {len(listed)} images: {', '.join(missing[:5])}; "
            "fetch the zip that belongs to the annotations"
        )
    return members


def _records(
    images_zip: Path,
    archive: zipfile.ZipFile,
    members: dict[str, str],
    listed: list[CaptionedImage],
    categories: Categories | None,
) -> Iterator[dict[str, str | bytes]]:
    for image in listed:
        stem, _, extension = image.file_name.partition(".")
        if not stem or extension.lower() not in IMAGE_EXTENSIONS:
            raise ShardError(
                f"{images_zip}: {image.file_name!r} is no image name; expected one stem and one extension of "
                f"{', '.join(IMAGE_EXTENSIONS)}"
            )
        attributes: dict[str, object] = {"image_id": image.image_id}
        if categories is not None:
            attributes["categories"] = list(categories[image.image_id])
        record = {"captions": list(image.captions), "attributes": attributes}
        yield {
            "__key__": stem,
            extension.lower(): _read_member(images_zip, archive, members[image.file_name]),
            "json": json.dumps(record, sort_keys=True).encode(),
        }


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _ZIP_FAULTS as fault:
        raise ShardError(f"{path} is missing, damaged or no zip ({fault}); fetch it again") from fault


def _read_member(
    path: Path, archive: zipfile.ZipFile, member: str, *, remedy: str = "fetch the right zip or name another"
) -> bytes:
    try:
        return archive.read(member)
    except KeyError as fault:
        raise ShardError(f"{path} has no member {member}; {remedy}") from fault
    except _ZIP_FAULTS as fault:
        raise ShardError(f"{path}: member {member} is damaged ({fault}); fetch it again") from fault
