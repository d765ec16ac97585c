"""Pictures and tars for the tests of the shard reader: every kind of image, and tars that nobody should trust."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

HUGE = 20_000
"""Pixels of each side of an image that must not be decoded."""


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours that JPEG keeps well."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    return encoded(image or picture(), "JPEG", **{"quality": 95, **options})


def rotated_jpeg() -> bytes:
    """A JPEG whose EXIF asks viewers to turn it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


def animated(image_format: str, first: str = "red", second: str = "blue") -> bytes:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (first, second)]
    options = {"lossless": True} if image_format == "WEBP" else {}
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


def png_of(pixels: np.ndarray, *, colour_type: int) -> bytes:
    """A PNG of the samples [H, W, channels] uint8 or uint16, which PIL itself cannot write for 16-bit colour."""
    height, width, _ = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    lines = b"".join(b"\0" + line.astype(pixels.dtype.newbyteorder(">")).tobytes() for line in pixels)
    return _png(width, height, bits, colour_type, zlib.compress(lines))


def huge_png() -> bytes:
    """A whole PNG, 50 kB, of 20,000 x 20,000 black pixels."""
    squeeze = zlib.compressobj(1)
    line = bytes(1 + HUGE // 8)
    content = b"".join(squeeze.compress(line) for _ in range(HUGE)) + squeeze.flush()
    return _png(HUGE, HUGE, 1, 0, content)


def huge_jpeg() -> bytes:
    """A JPEG whose header says 20,000 x 20,000."""
    content = jpeg()
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + struct.pack(">HH", HUGE, HUGE) + content[frame + 4 :]


def huge_webp() -> bytes:
    """A WebP whose header says 16,383 x 16,383, the most that the format knows."""
    content = bytearray(encoded(picture(), "WEBP", lossless=True))
    start = content.index(b"VP8L") + 9
    rest = int.from_bytes(content[start : start + 4], "little") >> 28
    content[start : start + 4] = (16_382 | 16_382 << 14 | rest << 28).to_bytes(4, "little")
    return bytes(content)


def _png(width: int, height: int, bits: int, colour_type: int, content: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar; `fields` are what its header says besides, for instance `type`."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def good(key: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{key}.jpg", jpeg()), member(f"{key}.txt", f"caption {key}".encode())]


def write_members(
    path: Path, members: list[tuple[tarfile.TarInfo, bytes]], *, tar_format: int = tarfile.PAX_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def patched_header(tar: Path, name: str, field: slice, value: bytes) -> None:
    """Overwrite bytes in the header of member `name`, and make its checksum right."""
    content = bytearray(tar.read_bytes())
    start = content.index(name.encode() + b"\0")
    content[start + field.start : start + field.stop] = value.ljust(field.stop - field.start, b"\0")
    header = content[start : start + 512]
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    content[start + 148 : start + 156] = b"%06o\0 " % total
    tar.write_bytes(content)
