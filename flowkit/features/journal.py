"""The row journal of a store that is being written: one JSON line per model batch, and the lock on the store.

    {"header": {...}}                                                    what is being written, for whom
    {"next_index": 64, "samples": [...], "rejects": [...]}               the batch that ends before member 64
    {"verified": "..."}                                                  an origin that turned out right

Each line begins with its CRC-32C in eight hexadecimal digits. It is written before the tensor bytes of its
batch, so after a crash the journal may know more rows than the arrays hold, never fewer. It ends at the first
torn or damaged line; the writer cuts the arrays. A batch may name its `origin`, what it was read from; whether that
was the right thing may be known only later, and is a line of its own. Whoever has the journal open is the only
writer: the kernel frees the lock when the process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c

from flowkit.errors import StoreError
from flowkit.features.stream import OpenFile, cut_back, disk_errors, write_fully
from flowkit.features.tables import RejectRow, SampleRow

_CRC_DIGITS = 8


@dataclass(frozen=True)
class Batch:
    """The rows of one model batch; `next_index` is the first member of the tar that it does not cover.

    `origin` tells apart what batches were read from, see origin.py.
    """

    next_index: int
    samples: tuple[SampleRow, ...]
    rejects: tuple[RejectRow, ...]
    origin: str | None = None

    def to_line(self) -> bytes:
        document: dict[str, Any] = {
            "next_index": self.next_index,
            "samples": [vars(row) for row in self.samples],
            "rejects": [vars(row) for row in self.rejects],
        }
        return _line(document if self.origin is None else {**document, "origin": self.origin})

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        samples = tuple(
            SampleRow(**{**row, "captions": tuple(row["captions"])}) for row in document["samples"]
        )
        rejects = tuple(RejectRow(**row) for row in document["rejects"])
        return cls(document["next_index"], samples, rejects, document.get("origin"))


class Journal(OpenFile):
    """The journal file `path`; `header`, `batches` and `verified` are its whole lines when it was opened or last cut.

    `append` and `add_verified` may be called from different threads. Raises `StoreError` if another process, or another
    journal of this one, has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.batches: list[Batch] = []
        self.verified: set[str] = set()
        self._ends: list[int] = []  # of the header, then of each batch
        self._end = 0
        self._writing = threading.Lock()
        with disk_errors(path):
            self._descriptor = _open_locked(path)
        self._load(path.read_bytes())

    def start(self, header: dict[str, Any]) -> None:
        """Begin a new, empty journal."""
        line = _line({"header": header})
        self.header, self.batches, self.verified, self._ends = header, [], set(), []
        self._cut_back(0)
        self._ends.append(self._write(line))

    def cut(self, samples: int) -> None:
        """Keep the longest run of batches with at most `samples` samples in all."""
        kept = total = 0
        for batch in self.batches:
            total += len(batch.samples)
            if total > samples:
                break
            kept += 1
        self.keep(kept)

    def keep(self, batches: int) -> None:
        """Keep the first `batches` batches, and what is known of origins."""
        if batches == len(self.batches):
            self._cut_back(self._end)  # behind it is at most a torn line
            return
        self.batches, self._ends = self.batches[:batches], self._ends[: batches + 1]
        self._cut_back(self._ends[-1])
        for origin in sorted(self.verified):
            self._write(_verified_line(origin))

    def append(self, batch: Batch) -> None:
        """Add one batch."""
        self._ends.append(self._write(batch.to_line()))
        self.batches.append(batch)

    def add_verified(self, origin: str) -> None:
        """Note that batches of `origin`, earlier and later ones, were read from the right thing."""
        self._write(_verified_line(origin))
        self.verified.add(origin)

    def _write(self, line: bytes) -> int:
        """Add a line; returns where it ends."""
        with self._writing, disk_errors(self.path):
            write_fully(self._descriptor, [line])
            self._end += len(line)
            return self._end

    def _cut_back(self, size: int) -> None:
        with disk_errors(self.path):
            cut_back(self._descriptor, size)
        self._end = size

    def _load(self, content: bytes) -> None:
        for document, self._end in _whole_lines(content):
            if "verified" in document:
                self.verified.add(document["verified"])
                continue
            if self.header is None:
                self.header = document["header"]
            else:
                self.batches.append(Batch.from_document(document))
            self._ends.append(self._end)


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


def _verified_line(origin: str) -> bytes:
    return _line({"verified": origin})


def _line(document: dict[str, Any]) -> bytes:
    return _with_checksum(json.dumps(document, ensure_ascii=True, sort_keys=True).encode("ascii") + b"\n")


def _with_checksum(text: bytes) -> bytes:
    return b"%0*x %s" % (_CRC_DIGITS, google_crc32c.value(text), text)
