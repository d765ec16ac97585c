"""Record files: the one data file of a Zarr v3 array, written as a stream and read at computed offsets.

    record_0 crc_0 | record_1 crc_1 | ... | (offset_i, bytes_i) for each i | crc of that index

A record is one sample, little-endian numbers of one type in C order; every crc is CRC-32C in four little-endian bytes.
This is what the codec `sharding_indexed` with inner codecs `bytes` and `crc32c` and the index at the end
prescribes. All records have the same size, so record i starts at i * stride and no reader needs the index.
Nothing here knows Zarr metadata; stream.py writes such files.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import resource
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flowkit.errors import StoreError

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
OPEN_FILES_LIMIT = max(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""A random order over a thousand tars has two thousand files in use; opening one takes a network file system long."""
DIGEST_OF_CHECKSUMS = "crc32c:"
"""How a digest begins that was made of the checksums of the records, so that nobody takes it for one of the bytes."""
REMEDY = "delete this store and run the extraction of its tar again"

HALF_LIMIT = 65504.0
"""Largest finite float16."""
LARGEST_BITS, SIGN_BITS = 0x7BFF, 0x8000
"""Its bits, and those of minus zero."""

HalfArray = NDArray[np.float16]
Rows = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class RecordLayout:
    """Geometry of a record file whose records have `shape`, for instance (17, 128) or (768,)."""

    shape: tuple[int, ...]
    dtype: str = "float16"

    @property
    def record_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def stride(self) -> int:
        """Bytes from the start of one record to the start of the next."""
        return self.record_bytes + CRC_BYTES

    def file_bytes(self, count: int) -> int:
        """Size of a finished file of `count` records; a file without records does not exist."""
        return count * (self.stride + INDEX_ENTRY_BYTES) + CRC_BYTES if count else 0

    def demand_room(self, out: NDArray[Any]) -> None:
        """Raise `ValueError` unless records fit into `out` one after the other."""
        if out.shape[1:] != self.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} {out.shape}, expected C-contiguous {self.dtype} (n, *{self.shape})"
            )

    def encode_index(self, count: int) -> bytes:
        """The shard index of `count` records: (offset, bytes) as little-endian uint64, then its checksum."""
        entries = np.empty((count, 2), dtype="<u8")
        entries[:, 0] = np.arange(count, dtype=np.uint64) * np.uint64(self.stride)
        entries[:, 1] = self.stride
        index = entries.tobytes()
        return index + int(google_crc32c.value(index)).to_bytes(CRC_BYTES, "little")

    def count_valid(self, path: Path, limit: int) -> int:
        """How many of the first `limit` records of a perhaps torn file are whole, up to the first bad one."""
        if not path.exists():
            return 0
        with path.open("rb") as file:
            for row in range(limit):
                block = file.read(self.stride)
                if len(block) < self.stride or not _is_whole(block):
                    return row
        return limit


def largest_bits(halves: HalfArray) -> int:
    """The bits of the largest magnitude in `halves`: 0x7BFF is 65504, everything above is not finite.

    As signed numbers the bits order the positive halves, as unsigned ones the negative halves come last.
    """
    if not halves.size:
        return 0
    negative = int(halves.view(np.uint16).max()) - SIGN_BITS
    return max(negative, int(halves.view(np.int16).max()))


def check_size(path: Path | str, layout: RecordLayout, count: int) -> None:
    """Raise `StoreError` unless the file `path` exists and has exactly the size of `count` records."""
    expected = layout.file_bytes(count)
    if not expected:
        return
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is missing, expected {expected} bytes; {REMEDY}")
    if found.st_size != expected:
        raise StoreError(
            f"{path} has {found.st_size} bytes, expected {expected} for {count} samples; {REMEDY}"
        )


class RecordReader:
    """Reads records of one finished file; safe to use from several threads.

    The number of open files of the process stays bounded, whatever the number of readers.
    """

    def __init__(self, path: Path, layout: RecordLayout, count: int) -> None:
        self.path = path
        self.layout = layout
        self.count = count
        self._number = _open_files.register(self)

    def check_size(self) -> None:
        """Raise `StoreError` unless the file exists and has exactly the size of `count` records."""
        check_size(self.path, self.layout, self.count)

    def read(self, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Records `rows` as [n, *shape] of the layout's type; each checksum is verified.

        `out`, if given, is a C-contiguous array of that shape, filled and returned.
        Raises `StoreError` naming the file and the row on a bad checksum, `IndexError` on a row out of range.
        """
        if out is None:
            out = np.empty((len(rows), *self.layout.shape), dtype=self.layout.dtype)
        self.read_into(rows, out, range(len(rows)))
        return out

    def read_into(self, rows: Rows, out: NDArray[Any], slots: Rows, *, check: bool = True) -> None:
        """Read record `rows[k]` into `out[slots[k]]` for every k; checksums are verified if `check`."""
        self.layout.demand_room(out)
        if not len(rows):
            return
        file = _open_files.get(self._number, self.path)
        stride, crc = self.layout.stride, bytearray(CRC_BYTES)
        flat = out.reshape(len(out), -1).view(np.uint8)
        for row, slot in zip(map(int, rows), map(int, slots), strict=True):
            if not 0 <= row < self.count:
                raise IndexError(f"row {row} of {self.path}, which has {self.count} samples")
            record = flat[slot]
            found = os.preadv(file.descriptor, [record, crc], row * stride)
            if found != stride:
                raise StoreError(f"{self.path}: row {row} ends after {found} of {stride} bytes; {REMEDY}")
            if check and google_crc32c.value(record) != int.from_bytes(crc, "little"):
                raise StoreError(f"{self.path}: row {row} does not match its checksum; {REMEDY}")

    def check_index(self) -> None:
        """Raise `StoreError` unless the index at the end is the one that these records must have."""
        if not self.count:
            return
        expected = self.layout.encode_index(self.count)
        descriptor = _open_files.get(self._number, self.path).descriptor
        if os.pread(descriptor, len(expected), self.count * self.layout.stride) != expected:
            raise StoreError(f"{self.path}: the index at its end is damaged; {REMEDY}")

    def checksums(self) -> bytes:
        """The stored checksums of all records, four bytes each, without reading the records."""
        if not self.count:
            return b""
        descriptor, stride = _open_files.get(self._number, self.path).descriptor, self.layout.stride
        start = self.layout.record_bytes
        return b"".join(os.pread(descriptor, CRC_BYTES, start + row * stride) for row in range(self.count))

    def digest(self) -> str:
        """`DIGEST_OF_CHECKSUMS` and the SHA-256 of the size, all stored checksums and the index; reads no record."""
        if not self.count:
            raise StoreError(f"{self.path} holds no records, so there is no such file; {REMEDY}")
        descriptor = _open_files.get(self._number, self.path).descriptor
        size = os.fstat(descriptor).st_size
        index = os.pread(descriptor, size, self.count * self.layout.stride)
        content = hashlib.sha256(b"%d\n" % size + self.checksums() + index)
        return DIGEST_OF_CHECKSUMS + content.hexdigest()


class _OpenFile:
    """A descriptor that closes when its last user lets go of it: eviction never disturbs a running read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing; {REMEDY}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class _OpenFiles:
    """The open files of the most recently used readers, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.RLock()
        self._numbers = itertools.count()

    def register(self, reader: RecordReader) -> int:
        """A number for `reader`, whose file is closed when the reader is gone."""
        number = next(self._numbers)
        weakref.finalize(reader, self._forget, number)
        return number

    def get(self, number: int, path: Path) -> _OpenFile:
        with self._lock:
            file = self._files.get(number)
            if file is None:
                file = self._files[number] = _OpenFile(path)
            self._files.move_to_end(number)
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
            return file

    def _forget(self, number: int) -> None:
        with self._lock:
            self._files.pop(number, None)


_open_files = _OpenFiles(OPEN_FILES_LIMIT)


def _is_whole(block: bytes) -> bool:
    return google_crc32c.value(block[:-CRC_BYTES]) == int.from_bytes(block[-CRC_BYTES:], "little")
