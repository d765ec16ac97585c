"""Token store writer: an append-only stream that survives `kill -9` at any moment.

Each call of `append` adds one model batch: first its rows to the journal, then its records to the arrays. On
opening a half-written store, the records that match their checksums are counted in every array, and arrays
and journal are cut back to the last batch that all of them hold. `finish` writes the indexes, the tables and
at last the group's metadata: from then on the folder is a complete store, byte for byte the one an
uninterrupted run leaves. Giving it its final name is up to the caller, as is making sure that only one
process writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features import tables
from flowkit.features.journal import Batch, Journal
from flowkit.features.metadata import (
    DOCUMENT,
    GROUP_SCHEMA,
    POOLED,
    TOKENS,
    array_document,
    data_file,
    flush,
    group_document,
    plain,
    write_document,
)
from flowkit.features.records import RecordLayout
from flowkit.features.store import TokenStore
from flowkit.features.tables import RejectRow, SampleRow

JOURNAL_FILE = "journal.jsonl"
HALF_LIMIT = 65504.0
"""Largest finite float16."""
SYNC_BYTES = 1 << 30
"""Written bytes after which the arrays are forced to disk, so that a power cut costs little."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Counts:
    """How many members of a tar became samples and how many were rejected."""

    samples: int
    rejects: int


class TokenStoreWriter:
    """Writes the store `work_dir`, going on where an earlier writer of the same store was stopped.

    `token_shape` is (tokens, channels); `pooled_width` None leaves out the pooled embeddings. `attributes`
    (JSON values, no time, host or job id) go into the group beside the counts. `restart` throws away what an
    earlier writer left. Raises `StoreError` if the folder holds a store of other shapes or attributes.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        token_shape: tuple[int, int],
        pooled_width: int | None,
        attributes: Mapping[str, Any],
        restart: bool = False,
    ) -> None:
        self.path = Path(work_dir)
        shapes = {TOKENS: list(token_shape)} | ({} if pooled_width is None else {POOLED: [pooled_width]})
        self._header = plain({**attributes, "flowkit_store": GROUP_SCHEMA, "arrays": shapes})
        self._layouts = {name: RecordLayout(tuple(shape)) for name, shape in shapes.items()}
        self._unsynced = 0
        self._files: dict[str, BinaryIO] = {}
        if restart and any((self.path / name).exists() for name in (DOCUMENT, JOURNAL_FILE)):
            shutil.rmtree(self.path)
        for name in self._layouts:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self.finished = (self.path / DOCUMENT).exists()
        if self.finished:
            self._adopt()
        else:
            self._resume()

    @property
    def next_index(self) -> int:
        """The member index from which to go on; everything before it is in the store."""
        if self.finished:
            return self.counts.samples + self.counts.rejects
        return self._journal.batches[-1].next_index if self._journal.batches else 0

    @property
    def counts(self) -> Counts:
        """Samples and rejects so far."""
        if self.finished:
            return self._finished_counts
        batches = self._journal.batches
        return Counts(sum(len(b.samples) for b in batches), sum(len(b.rejects) for b in batches))

    def append(
        self,
        tokens_NTD: Floats,
        pooled_NP: Floats | None,
        rows: Sequence[SampleRow],
        *,
        rejects: Sequence[RejectRow] = (),
        next_index: int,
    ) -> None:
        """Add the model batch that ends before member `next_index`: its samples and its rejects.

        A sample with a value that is not finite or beyond float16 becomes a reject; no value is ever clamped.
        """
        values = {TOKENS: tokens_NTD} | ({} if pooled_NP is None else {POOLED: pooled_NP})
        self._check_batch(values, rows, rejects, next_index)
        refused = {
            number: RejectRow(row.index, row.key, reason)
            for number, row in enumerate(rows)
            if (reason := _refusal({name: array[number] for name, array in values.items()}))
        }
        kept = [number for number in range(len(rows)) if number not in refused]
        batch = Batch(next_index, tuple(rows[number] for number in kept), (*rejects, *refused.values()))
        self._journal.append(batch)
        for name, array in values.items():
            good = array[kept] if refused else array
            self._write(name, self._layouts[name].encode(good.astype(np.float16, copy=False)))
        self._sync_now_and_then()

    def finish(self) -> Counts:
        """Complete the store and flush it to disk; calling it again on a finished store does nothing."""
        counts = self.counts
        if self.finished:
            return counts
        for name in self._layouts:
            self._finish_array(name, counts.samples)
        batches = self._journal.batches
        tables.write_samples(self.path / tables.SAMPLES_FILE, [row for b in batches for row in b.samples])
        tables.write_rejects(self.path / tables.REJECTS_FILE, [row for b in batches for row in b.rejects])
        numbers = {
            "seen": counts.samples + counts.rejects,
            "samples": counts.samples,
            "rejects": counts.rejects,
        }
        write_document(self.path / DOCUMENT, group_document({**self._header, "counts": numbers}))
        self._journal.path.unlink()
        flush(self.path)
        self.finished, self._finished_counts = True, counts
        return counts

    def close(self) -> None:
        """Close the files; an unfinished store can be resumed."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _adopt(self) -> None:
        """Take over a store that was finished but not yet renamed."""
        store = TokenStore(self.path)
        found = {name: value for name, value in store.attributes.items() if name != "counts"}
        self._demand_same(found)
        self._finished_counts = Counts(len(store), len(store.rejects))
        (self.path / JOURNAL_FILE).unlink(missing_ok=True)

    def _resume(self) -> None:
        self._journal = Journal(self.path / JOURNAL_FILE)
        if self._journal.header is None:
            self._journal.start(self._header)
        self._demand_same(self._journal.header)
        known = sum(len(batch.samples) for batch in self._journal.batches)
        whole = [
            layout.count_valid(data_file(self.path, name), known) for name, layout in self._layouts.items()
        ]
        self._journal.cut(min(whole))
        for name, layout in self._layouts.items():
            file = data_file(self.path, name).open("ab")
            file.truncate(self.counts.samples * layout.stride)
            self._files[name] = file

    def _demand_same(self, found: Mapping[str, Any] | None) -> None:
        if found == self._header:
            return
        found = found or {}
        names = sorted(n for n in {*found, *self._header} if found.get(n) != self._header.get(n))
        raise StoreError(
            f"{self.path} was begun with {names[0]} = {found.get(names[0])!r}, "
            f"now it is {self._header.get(names[0])!r}; delete this folder to begin again"
        )

    def _check_batch(
        self,
        values: Mapping[str, Floats],
        rows: Sequence[SampleRow],
        rejects: Sequence[RejectRow],
        next_index: int,
    ) -> None:
        if self.finished:
            raise StoreError(f"{self.path} is finished; nothing can be appended")
        expected = {name: (len(rows), *layout.shape) for name, layout in self._layouts.items()}
        found = {name: array.shape for name, array in values.items()}
        if found != expected:
            raise StoreError(f"{self.path}: a batch has the shapes {found}, expected {expected}")
        indexes = sorted([row.index for row in rows] + [row.index for row in rejects])
        if any(not self.next_index <= index < next_index for index in indexes):
            raise StoreError(
                f"{self.path}: the batch from {self.next_index} to {next_index} holds the members {indexes}"
            )

    def _write(self, name: str, block: NDArray[np.uint8]) -> None:
        file = self._files[name]
        try:
            file.write(block.data)
            file.flush()
        except OSError as error:
            raise StoreError(
                f"{data_file(self.path, name)}: {block.nbytes} bytes could not be written "
                f"({error.strerror}); make room and start again, it goes on from the last whole batch"
            ) from error
        self._unsynced += block.nbytes

    def _sync_now_and_then(self) -> None:
        if self._unsynced < SYNC_BYTES:
            return
        flush(self._journal.path)
        for file in self._files.values():
            os.fdatasync(file.fileno())
        self._unsynced = 0

    def _finish_array(self, name: str, count: int) -> None:
        path = data_file(self.path, name)
        if count:
            self._write(name, np.frombuffer(self._layouts[name].encode_index(count), np.uint8))
        self._files.pop(name).close()
        if count:
            flush(path)
        else:
            path.unlink()
        write_document(path.parent / DOCUMENT, array_document(name, count, self._layouts[name].shape))


def _refusal(values: Mapping[str, Floats]) -> str | None:
    """Why a sample cannot be stored as float16, or None."""
    for name, array in values.items():
        if _fits_half(array):
            continue
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            return f"not finite: {bad} of {array.size} values of {name}"
        return f"beyond float16: {name} reach {np.abs(array).max():.6g}, the limit is {HALF_LIMIT:g}"
    return None


def _fits_half(array: Floats) -> bool:
    """Whether all values are finite and within +- 65504."""
    if array.dtype == np.float16:  # by the exponent bits: numpy compares float16 a hundred times slower
        return bool((np.ascontiguousarray(array).view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(array.min() >= -HALF_LIMIT and array.max() <= HALF_LIMIT)  # false for NaN
