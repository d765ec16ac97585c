"""The row journal of a store that is being written: one JSON line per model batch, and the lock on the store.

    {"header": {...}}                                                    what is being written, for whom
    {"next_index": 64, "samples": [...], "rejects": [...]}               the batch that ends before member 64

Each line begins with its CRC-32C in eight hexadecimal digits. It is written before the tensor bytes of its
batch, so after a crash the journal may know more rows than the arrays hold, never fewer. It ends at the first
torn or damaged line; the writer cuts the arrays. Whoever has the journal open is the only writer: the kernel
frees the lock when the process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c

from flowkit.errors import StoreError
from flowkit.features.stream import cut_back, disk_errors, write_fully
from flowkit.features.tables import RejectRow, SampleRow

_CRC_DIGITS = 8


@dataclass(frozen=True)
class Batch:
    """The rows of one model batch; `next_index` is the first member of the tar that it does not cover."""

    next_index: int
    samples: tuple[SampleRow, ...]
    rejects: tuple[RejectRow, ...]

    def to_line(self) -> bytes:
        return _line(
            {
                "next_index": self.next_index,
                "samples": [vars(row) for row in self.samples],
                "rejects": [vars(row) for row in self.rejects],
            }
        )

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        samples = tuple(
            SampleRow(**{**row, "captions": tuple(row["captions"])}) for row in document["samples"]
        )
        return cls(document["next_index"], samples, tuple(RejectRow(**row) for row in document["rejects"]))


class Journal:
    """The journal file `path`; `header` and `batches` are its whole lines when it was opened or last cut.

    Raises `StoreError` if another process, or another journal of this one, has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.batches: list[Batch] = []
        self._ends: list[int] = [0]
        self._descriptor = _open_locked(path)
        self._load(path.read_bytes())

    def start(self, header: dict[str, Any]) -> None:
        """Begin a new, empty journal."""
        line = _line({"header": header})
        self.header, self.batches, self._ends = header, [], [0]
        cut_back(self._descriptor, 0)
        self._write(line)

    def cut(self, samples: int) -> None:
        """Keep the longest run of batches with at most `samples` samples in all."""
        kept = total = 0
        for batch in self.batches:
            total += len(batch.samples)
            if total > samples:
                break
            kept += 1
        self.batches = self.batches[:kept]
        self._ends = self._ends[: kept + 2]
        cut_back(self._descriptor, self._ends[-1])

    def append(self, batch: Batch) -> None:
        """Add one batch."""
        self._write(batch.to_line())
        self.batches.append(batch)

    def sync(self) -> None:
        """Force to disk what was written."""
        with disk_errors(self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file and its lock; closing it twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _write(self, line: bytes) -> None:
        with disk_errors(self.path):
            write_fully(self._descriptor, [line])
        self._ends.append(self._ends[-1] + len(line))

    def _load(self, content: bytes) -> None:
        for document, end in _whole_lines(content):
            if self.header is None:
                self.header = document["header"]
            else:
                self.batches.append(Batch.from_document(document))
            self._ends.append(end)


def _open_locked(path: Path) -> int:
    """A descriptor of `path`, made if need be, that holds the lock on it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                reason = "is being written by another process; wait for it to end or stop it"
            else:
                reason = f"is on a file system without locks ({error.strerror}); mount it with flock"
            raise StoreError(f"{path.parent} {reason}") from error
        os.close(descriptor)  # the writer that held it has just finished and taken its journal away


def _whole_lines(content: bytes) -> Iterable[tuple[dict[str, Any], int]]:
    """(document, end) of each line up to the first that is torn or damaged."""
    end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        text = line[_CRC_DIGITS + 1 :]
        if line != _with_checksum(text):
            return
        yield json.loads(text), end


def _line(document: dict[str, Any]) -> bytes:
    return _with_checksum(json.dumps(document, ensure_ascii=True, sort_keys=True).encode("ascii") + b"\n")


def _with_checksum(text: bytes) -> bytes:
    return b"%0*x %s" % (_CRC_DIGITS, google_crc32c.value(text), text)
