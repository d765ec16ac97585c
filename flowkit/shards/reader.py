"""Reads webdataset tars so that every fault is seen.

A sample is all members that share a key: the member's path up to the first dot of its base name; the rest, in
lower case, is the extension. Images: jpg, jpeg, png, webp. Captions: `.txt` (one) and the list "captions" of
a `.json` object, whose "attributes" object is kept too. A damaged tar is a `ShardError`; a damaged sample is
a `Reject` with its reason, never a made-up image or caption. Where objects have several views, each view is a sample
(views.py).

Pictures become RGB as PIL converts them: CMYK without colour profile, alpha dropped, 16 bits by their upper 8, the
first of several frames, orientation tags ignored (so does open_clip). More than `IMAGE_PIXELS_MAX` pixels are refused
from the header, before memory is spent.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from flowkit.errors import ShardError
from flowkit.shards.tar_members import Member, list_members
from flowkit.shards.views import split_views, view_number

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_PIXELS_MAX = 64_000_000
IMAGE_BYTES_MAX = 1 << 28
TEXT_BYTES_MAX = 1 << 20
_DECODER_FAULTS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


class UndecodableImage(ShardError):
    """The image of one sample cannot be decoded; `reason` goes into the rejects table."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """One captioned image; `index` counts the samples of the tar by first appearance, rejects included."""

    index: int
    key: str
    image: bytes
    captions: tuple[str, ...]
    attributes: dict[str, object] | None


@dataclass(frozen=True)
class Reject:
    """A sample that cannot be used, and why."""

    index: int
    key: str
    reason: str


class _Fault(Exception):
    """Why a single sample is rejected."""


@dataclass(frozen=True)
class Listing:
    """What a tar holds: (key, members) of its samples, good or bad, in order of first appearance.

    Where objects have several `views`, sample i is view i % views of object i // views.
    """

    tar: Path
    groups: tuple[tuple[str, list[Member]], ...]
    views: int = 1

    def __len__(self) -> int:
        return len(self.groups)

    def sample(self, index: int, stream: BinaryIO) -> Sample | Reject:
        """Read one sample from the open tar; any number of threads may share `stream`."""
        key, group = self.groups[index]
        try:
            return _sample(self.tar, stream, index, key, group)
        except _Fault as fault:
            return Reject(index, key, str(fault))


def list_samples(tar: Path, views: int = 1) -> Listing:
    """List a tar, whose objects have so many views, without reading its contents.

    Raises `ShardError` if it is missing, not a tar, truncated, continued behind its end mark, or has no image, or if
    not one object has just that many views.
    """
    members = list_members(tar)
    if views > 1:
        return Listing(tar, tuple(split_views(tar, members, views, IMAGE_EXTENSIONS)), views)
    if not any(member.extension in IMAGE_EXTENSIONS for group in members.values() for member in group):
        raise ShardError(
            f"{tar} has {len(members)} samples but no image ({', '.join(IMAGE_EXTENSIONS)}); {_remedy(members)}"
        )
    return Listing(tar, tuple(members.items()))


def read_samples(tar: Path, views: int = 1) -> Iterator[Sample | Reject]:
    """Return all samples and rejects of a tar; raises `ShardError` at the call as `list_samples` does."""
    return _read(list_samples(tar, views))


def _remedy(members: Mapping[str, list[Member]]) -> str:
    extensions = (member.extension for group in members.values() for member in group)
    if any(view_number(extension, IMAGE_EXTENSIONS) is not None for extension in extensions):
        return "its images are views (<key>.0.jpg), so say in `views` of the data set how many an object has"
    return "check that it is a webdataset tar of images"


def _read(listing: Listing) -> Iterator[Sample | Reject]:
    with listing.tar.open("rb") as stream:
        for index in range(len(listing)):
            yield listing.sample(index, stream)


def decode_image(sample: Sample) -> Image.Image:
    """Return the image of a sample as RGB; raises `UndecodableImage` whose `reason` says what is wrong."""
    try:
        with Image.open(io.BytesIO(sample.image), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > IMAGE_PIXELS_MAX:
                raise UndecodableImage(
                    f"image undecodable: {width} x {height} pixels, more than {IMAGE_PIXELS_MAX}"
                )
            return _as_rgb(image)
    except UndecodableImage:
        raise
    except _DECODER_FAULTS as fault:
        text = " ".join(str(fault).split()) or type(fault).__name__
        text = re.sub(
            r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", text
        )  # an address would differ on each run
        raise UndecodableImage(f"image undecodable: {text}") from fault


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.format == "JPEG" and image.mode == "RGB":
        image.load()
        return image  # converting would copy it
    return image.convert("RGB")


def _sample(tar: Path, stream: BinaryIO, index: int, key: str, group: list[Member]) -> Sample:
    parts = _checked(group)
    image = next(member for extension, member in parts.items() if extension in IMAGE_EXTENSIONS)
    captions, attributes = _captions(
        text=_content(tar, stream, parts["txt"]) if "txt" in parts else None,
        record=_content(tar, stream, parts["json"]) if "json" in parts else None,
    )
    if not captions:
        raise _Fault("caption missing")
    return Sample(index, key, _content(tar, stream, image), captions, attributes)


def _checked(group: list[Member]) -> dict[str, Member]:
    """Return extension -> member of a sample that can be read; raises `_Fault` from the headers alone."""
    if faults := [member.fault for member in group if member.fault]:
        raise _Fault(faults[0])
    parts = {member.extension: member for member in group}
    if len(parts) < len(group):
        extensions = [member.extension for member in group]
        twice = next(extension for extension in extensions if extensions.count(extension) > 1)
        raise _Fault(f"member .{twice} occurs more than once")
    images = [extension for extension in parts if extension in IMAGE_EXTENSIONS]
    if not images:
        raise _Fault("image missing")
    if len(images) > 1:
        raise _Fault(f"more than one image: .{', .'.join(images)}")
    limits = {images[0]: IMAGE_BYTES_MAX, "txt": TEXT_BYTES_MAX, "json": TEXT_BYTES_MAX}
    for extension, limit in limits.items():
        if extension in parts and parts[extension].bytes > limit:
            raise _Fault(f"member .{extension} too large: {parts[extension].bytes} bytes, at most {limit}")
    if not parts[images[0]].bytes:
        raise _Fault("image empty")
    return parts


def _content(tar: Path, stream: BinaryIO, member: Member) -> bytes:
    content = os.pread(stream.fileno(), member.bytes, member.offset)
    if len(content) < member.bytes:
        raise ShardError(
            f"{tar} became shorter while it was read (member {member.name}); fetch or write it again"
        )
    return content


def _captions(
    *, text: bytes | None, record: bytes | None
) -> tuple[tuple[str, ...], dict[str, object] | None]:
    """Return the captions, each once and in order (text file first), and the attributes of one sample."""
    found: list[str] = []
    attributes = None
    if text is not None:
        try:
            found.append(text.decode("utf-8"))
        except UnicodeDecodeError as fault:
            raise _Fault(f"caption is not UTF-8: {fault.reason} at byte {fault.start}") from fault
    if record is not None:
        try:
            fields = json.loads(record)
        except (ValueError, RecursionError) as fault:
            raise _Fault(f"json unreadable: {fault}") from fault
        if not isinstance(fields, dict):
            raise _Fault(f"json is a {type(fields).__name__}, expected an object")
        more = fields.get("captions", [])
        if not isinstance(more, list) or not all(isinstance(one, str) for one in more):
            raise _Fault("json: captions is not a list of texts")
        found.extend(more)
        attributes = fields.get("attributes")
        if attributes is not None and not isinstance(attributes, dict):
            raise _Fault("json: attributes is not an object")
    stripped = (one.strip() for one in found)
    return tuple(dict.fromkeys(one for one in stripped if one)), attributes
