"""Reads webdataset tars with Python's tarfile, so that every fault is seen.

A sample is all members that share a key: the member's path up to the first dot of its base name; the rest, in
lower case, is the extension. Images: jpg, jpeg, png, webp. Captions: `.txt` (one) and the list "captions" of
a `.json` object, whose "attributes" object is kept too. A damaged tar is a `ShardError`; a damaged sample is
a `Reject` with its reason, never a made-up image or caption.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from flowkit.errors import ShardError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_PIXELS_MAX = 64_000_000
BLOCK_BYTES = 512
_MEMBER_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$")
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


def read_samples(tar: Path) -> Iterator[Sample | Reject]:
    """Return the samples and rejects of a tar in order of first appearance.

    The member list is checked at the call: raises `ShardError` if the tar is missing, not a tar, truncated,
    continued behind its end mark, or has no image.
    """
    members = _list_members(tar)
    if not any(extension in IMAGE_EXTENSIONS for group in members.values() for extension, _ in group):
        raise ShardError(
            f"{tar} has {len(members)} samples but no image ({', '.join(IMAGE_EXTENSIONS)}); "
            "check that it is a webdataset tar of images"
        )
    return _read_listed(tar, members)


def decode_image(sample: Sample) -> Image.Image:
    """Return the image of a sample as RGB; raises `UndecodableImage` whose `reason` says what is wrong."""
    try:
        with Image.open(io.BytesIO(sample.image), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > IMAGE_PIXELS_MAX:
                raise UndecodableImage(
                    f"image undecodable: {width} x {height} pixels, more than {IMAGE_PIXELS_MAX}"
                )
            return image.convert("RGB")
    except UndecodableImage:
        raise
    except _DECODER_FAULTS as fault:
        text = " ".join(str(fault).split()) or type(fault).__name__
        text = re.sub(
            r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", text
        )  # an address would differ on each run
        raise UndecodableImage(f"image undecodable: {text}") from fault


def _list_members(tar: Path) -> dict[str, list[tuple[str, tarfile.TarInfo]]]:
    """Return key -> [(extension, member)] in order of first appearance, after checking the structure."""
    try:
        with tar.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            infos = archive.getmembers()
            _check_end(tar, stream, archive.offset)
    except (tarfile.TarError, EOFError) as fault:
        raise ShardError(f"{tar} is damaged or no tar ({fault}); fetch or write it again") from fault
    except FileNotFoundError as fault:
        raise ShardError(f"{tar} does not exist; fetch or write it first") from fault
    members: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for info in infos:
        match = _MEMBER_NAME.match(info.name)
        if info.isfile() and match:
            members.setdefault(match[1], []).append((match[2].lower(), info))
    return members


def _check_end(tar: Path, stream: BinaryIO, end: int) -> None:
    """Check that only zeros follow from byte `end`: tarfile stops in silence at the first odd header."""
    stream.seek(end)
    first = stream.read(BLOCK_BYTES)
    if len(first) < BLOCK_BYTES:
        raise ShardError(f"{tar} is truncated: no end mark at byte {end}; fetch or write it again")
    if any(first):
        raise ShardError(f"{tar} is damaged: no valid header at byte {end}; fetch or write it again")
    while chunk := stream.read(1 << 20):
        if any(chunk):
            raise ShardError(f"{tar} goes on behind its end mark at byte {end}, as joined tars do; split it")


def _read_listed(
    tar: Path, members: dict[str, list[tuple[str, tarfile.TarInfo]]]
) -> Iterator[Sample | Reject]:
    with tar.open("rb") as stream:
        for index, (key, group) in enumerate(members.items()):
            try:
                yield _sample(tar, stream, index, key, group)
            except _Fault as fault:
                yield Reject(index, key, str(fault))


def _sample(
    tar: Path, stream: BinaryIO, index: int, key: str, group: list[tuple[str, tarfile.TarInfo]]
) -> Sample:
    parts = dict(group)
    if len(parts) < len(group):
        extensions = [extension for extension, _ in group]
        twice = next(extension for extension in extensions if extensions.count(extension) > 1)
        raise _Fault(f"member .{twice} occurs more than once")
    images = [extension for extension in parts if extension in IMAGE_EXTENSIONS]
    if not images:
        raise _Fault("image missing")
    if len(images) > 1:
        raise _Fault(f"more than one image: .{', .'.join(images)}")
    captions, attributes = _captions(
        text=_content(tar, stream, parts["txt"]) if "txt" in parts else None,
        record=_content(tar, stream, parts["json"]) if "json" in parts else None,
    )
    if not captions:
        raise _Fault("caption missing")
    image = _content(tar, stream, parts[images[0]])
    if not image:
        raise _Fault("image empty")
    return Sample(index, key, image, captions, attributes)


def _content(tar: Path, stream: BinaryIO, info: tarfile.TarInfo) -> bytes:
    stream.seek(info.offset_data)
    content = stream.read(info.size)
    if len(content) < info.size:
        raise ShardError(
            f"{tar} became shorter while it was read (member {info.name}); fetch or write it again"
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
        except ValueError as fault:
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
