"""The row journal of a store that is being written: one JSON line per model batch.

    {"header": {...}}                                                    what is being written, for whom
    {"next_index": 64, "samples": [...], "rejects": [...]}               the batch that ends before member 64

A line is written before the tensor bytes of its batch, so after a crash the journal may know more rows than
the arrays hold, never fewer. A torn last line is dropped. The journal says up to which line to keep; the
writer cuts the arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from flowkit.features.tables import RejectRow, SampleRow


@dataclass(frozen=True)
class Batch:
    """The rows of one model batch; `next_index` is the first member of the tar that it does not cover."""

    next_index: int
    samples: tuple[SampleRow, ...]
    rejects: tuple[RejectRow, ...]

    def to_line(self) -> bytes:
        return _line(asdict(self))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        samples = tuple(
            SampleRow(**{**row, "captions": tuple(row["captions"])}) for row in document["samples"]
        )
        return cls(document["next_index"], samples, tuple(RejectRow(**row) for row in document["rejects"]))


class Journal:
    """The journal file `path`; `header` and `batches` are its whole lines when it was opened or last cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.batches: list[Batch] = []
        self._ends: list[int] = []
        if path.exists():
            self._load(path.read_bytes())

    def start(self, header: dict[str, Any]) -> None:
        """Begin a new, empty journal."""
        self.header, self.batches = header, []
        line = _line({"header": header})
        self._ends = [len(line)]
        self.path.write_bytes(line)

    def cut(self, samples: int) -> None:
        """Keep the longest run of batches with at most `samples` samples in all."""
        kept = total = 0
        for batch in self.batches:
            total += len(batch.samples)
            if total > samples:
                break
            kept += 1
        self.batches = self.batches[:kept]
        self._ends = self._ends[: kept + 1]
        with self.path.open("r+b") as file:
            file.truncate(self._ends[-1])

    def append(self, batch: Batch) -> None:
        """Add one batch."""
        line = batch.to_line()
        with self.path.open("ab") as file:
            file.write(line)
        self.batches.append(batch)
        self._ends.append(self._ends[-1] + len(line))

    def _load(self, content: bytes) -> None:
        end = 0
        for document, end in _whole_lines(content):
            if self.header is None:
                self.header = document["header"]
            else:
                self.batches.append(Batch.from_document(document))
            self._ends.append(end)


def _whole_lines(content: bytes) -> Iterable[tuple[dict[str, Any], int]]:
    """(document, end) of each line up to the first that is torn or not JSON."""
    end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line), end
        except ValueError:
            return


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=True, sort_keys=True).encode("ascii") + b"\n"
