"""Record streams: records go to the end of their file straight from the caller's arrays, without a copy.

One `writev` per batch hands the kernel (record, checksum, record, checksum, ...); see records.py for the
format. A stream that was stopped anywhere is opened again at any earlier record.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features.records import CRC_BYTES, RecordLayout

BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")


class OpenFile:
    """A file that is open for writing; `_descriptor` is negative once it is closed."""

    path: Path
    _descriptor: int

    def sync(self) -> None:
        """Force to disk what was written."""
        with disk_errors(self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; closing it twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class RecordStream(OpenFile):
    """The file `path` while it is being written, cut back to its first `count` records."""

    def __init__(self, path: Path, layout: RecordLayout, count: int = 0) -> None:
        self.path, self.layout, self.count = path, layout, count
        with disk_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.cut(count)

    def append(self, records: Iterable[NDArray[Any]], checksums: Sequence[bytes]) -> int:
        """Write records of the layout's shape and type, C-contiguous, with `checksum_of` each; bytes written."""
        buffers = [part for pair in zip(records, checksums, strict=True) for part in pair]
        self._write(buffers)
        self.count += len(checksums)
        return len(checksums) * self.layout.stride

    def cut(self, count: int) -> None:
        """Keep the first `count` records."""
        with disk_errors(self.path):
            cut_back(self._descriptor, count * self.layout.stride)
        self.count = count

    def finish(self) -> None:
        """Write the index, force everything to disk and close; a file without records is removed."""
        if self.count:
            self._write([self.layout.encode_index(self.count)])
            os.fsync(self._descriptor)
        else:
            self.path.unlink()
        self.close()

    def _write(self, buffers: Sequence[bytes | NDArray[Any]]) -> None:
        with disk_errors(self.path):
            write_fully(self._descriptor, buffers)


def checksum_of(record: NDArray[Any]) -> bytes:
    """The four bytes that follow a C-contiguous record."""
    return int(google_crc32c.value(record)).to_bytes(CRC_BYTES, "little")


def write_fully(descriptor: int, buffers: Sequence[bytes | NDArray[Any]]) -> None:
    """Write all of `buffers`, however little the system takes at a time."""
    views = [_bytes_of(buffer) for buffer in buffers]
    for start in range(0, len(views), BUFFERS_PER_CALL):
        pending = views[start : start + BUFFERS_PER_CALL]
        while pending:
            written = os.writev(descriptor, pending)
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]


def cut_back(descriptor: int, size: int) -> None:
    """Truncate to `size`. A file of that size is left alone: ext4 flushes a truncated file when it is closed."""
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, size)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full or failing disk into `StoreError`; `path` is named where the system does not."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        raise StoreError(
            f"{error.filename or path} could not be written ({reason}); make room and run this again, "
            "what is whole is kept"
        ) from error


def _bytes_of(buffer: bytes | NDArray[Any]) -> memoryview:
    return memoryview(buffer) if isinstance(buffer, bytes) else buffer.reshape(-1).view(np.uint8).data
