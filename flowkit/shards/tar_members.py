"""Which files a tar holds and where, from its headers alone, for tars that nobody vouches for.

The list is made with Python's tarfile and then the end of the tar is checked, because tarfile stops in silence at the
first odd header. Nothing is ever unpacked. A tar whose structure is broken is a `ShardError`; a member that is no plain
file of its own, or whose name is absolute or leads out of the folder, is listed with its fault. Folders, and files
whose name has no extension, are no members, as in webdataset.
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from flowkit.errors import ShardError

BLOCK_BYTES = 512
HEADER_BYTES_MAX = 1 << 17
"""More than names and pax records need; tarfile would read, and search, as many bytes as a header asks for."""
_SAMPLE_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)
_HEADER_FAULTS = (
    tarfile.TarError,
    EOFError,
    ValueError,
    IndexError,
    OverflowError,
    RecursionError,
    struct.error,
)
_KINDS = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar: its content is `bytes` long and begins at `offset`; `fault` says why it cannot be used."""

    name: str
    extension: str
    offset: int
    bytes: int
    fault: str | None


def list_members(tar: Path) -> dict[str, list[Member]]:
    """Return key -> members in order of first appearance.

    The key is the name up to the first dot of its last part, the extension is the rest in lower case. Raises
    `ShardError` if the tar is missing, not a tar, truncated or continued behind its end mark.
    """
    try:
        with tar.open("rb") as stream:
            infos, end = _headers(stream)
            _check_end(tar, stream, end)
    except FileNotFoundError as fault:
        raise ShardError(f"{tar} does not exist; fetch or write it first") from fault
    except _HEADER_FAULTS as fault:
        raise ShardError(f"{tar} is damaged or no tar ({fault}); fetch or write it again") from fault
    members: dict[str, list[Member]] = {}
    for info in infos:
        match = _SAMPLE_NAME.match(info.name)
        if match and not info.isdir():
            extension = match[2].lower()
            member = Member(info.name, extension, info.offset_data, info.size, _fault(info, extension))
            members.setdefault(match[1], []).append(member)
    return members


class _Info(tarfile.TarInfo):
    """Reads the header of a plain file in half the time, without owner, time and mode; leaves all others to tarfile."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Self:  # type: ignore[override]
        size, checksum = (buf[at : at + digits].rstrip(b" \0") for at, digits in ((124, 12), (148, 8)))
        is_plain = buf[156:157] == tarfile.REGTYPE and size.isdigit() and checksum.isdigit()
        if not is_plain or int(checksum, 8) != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        parts = (buf[at : at + length].partition(b"\0")[0] for at, length in ((345, 155), (0, 100)))
        info = cls("/".join(part.decode(encoding, errors) for part in parts if part))
        info.size = int(size, 8)
        return info


class _Headers:
    """The tar as tarfile sees it: no single read is larger than a header can sensibly be."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES_MAX:
            raise tarfile.ReadError(f"a header before byte {self.tell()} claims {size} bytes")
        return self._stream.read(size)


def _headers(stream: BinaryIO) -> tuple[list[tarfile.TarInfo], int]:
    """Return the members and the byte at which tarfile saw the end."""
    with tarfile.open(fileobj=_Headers(stream), mode="r:", encoding="utf-8", tarinfo=_Info) as archive:  # type: ignore[call-overload]
        return list(_forward(archive)), archive.offset


def _forward(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; a negative size would send tarfile back, to go round for ever."""
    end = 0
    while (info := archive.next()) is not None:
        if info.size < 0 or archive.offset <= end:
            raise tarfile.ReadError(f"member {info.name!r} claims {info.size} bytes")
        end = archive.offset
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep and search them
        yield info


def _check_end(tar: Path, stream: BinaryIO, end: int) -> None:
    """Check that only zeros follow from byte `end`."""
    stream.seek(end)
    first = stream.read(BLOCK_BYTES)
    if len(first) < BLOCK_BYTES:
        raise ShardError(f"{tar} is truncated: no end mark at byte {end}; fetch or write it again")
    if any(first):
        raise ShardError(f"{tar} is damaged: no valid header at byte {end}; fetch or write it again")
    while chunk := stream.read(1 << 20):
        if any(chunk):
            raise ShardError(f"{tar} goes on behind its end mark at byte {end}, as joined tars do; split it")


def _fault(info: tarfile.TarInfo, extension: str) -> str | None:
    """Why a member cannot be used, or None."""
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return f"member name leads out of the folder: {info.name}"
    if info.issparse():
        return f"member .{extension} is a sparse file, expected a plain one"
    if not info.isfile():
        return f"member .{extension} is a {_KINDS.get(info.type, 'special file')}, expected a plain file"
    return None
