"""Token store writer: an append-only stream that survives `kill -9` at any moment.

Each call of `append` adds one model batch: first its rows to the journal, then its records to the arrays. On
opening a half-written store, the records that match their checksums are counted in every array, and arrays
and journal are cut back to the last batch that all of them hold. `finish` writes the indexes, the tables and
at last the group's metadata: from then on the folder is a complete store, byte for byte the one an
uninterrupted run leaves. Giving it its final name is up to the caller.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from flowkit.errors import StoreError
from flowkit.features import tables
from flowkit.features.halves import Floats, refusal_of, to_half
from flowkit.features.journal import Batch, Journal
from flowkit.features.metadata import (
    DOCUMENT,
    GROUP_SCHEMA,
    JOURNAL_FILE,
    POOLED,
    TOKENS,
    array_document,
    data_file,
    flush,
    group_document,
    plain,
    write_document,
)
from flowkit.features.records import HalfArray, RecordLayout
from flowkit.features.store import TokenStore
from flowkit.features.stream import RecordStream, checksum_of, disk_errors
from flowkit.features.tables import RejectRow, SampleRow

SYNC_BYTES = 1 << 30
"""Written bytes after which the arrays are forced to disk, so that a power cut costs little."""


@dataclass(frozen=True)
class Counts:
    """How many members of a tar became samples and how many were rejected."""

    samples: int
    rejects: int


@dataclass(frozen=True)
class _Encoded:
    """A batch ready to be written: `refused` maps positions to reasons, the rest is by array."""

    refused: dict[int, str]
    records: dict[str, list[HalfArray]]
    checksums: dict[str, list[bytes]]


class TokenStoreWriter:
    """Writes the store `work_dir`, going on where an earlier writer of the same store was stopped.

    `token_shape` is (tokens, channels); `pooled_width` None leaves out the pooled embeddings. `attributes`
    (JSON values, no time, host or job id) go into the group beside the counts. `restart` throws away what an
    earlier writer left. `origin`, to be set where it may turn out to be the wrong thing, is what the next batches are
    read from (origin.py); the store does not tell. Raises `StoreError` if the folder holds a store of other shapes or
    attributes, or another writer is at work on it.
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
        self._streams: dict[str, RecordStream] = {}
        self._buffers: dict[tuple[str, int], HalfArray] = {}
        self._unsynced, self._failed, self.finished = 0, False, False
        self.origin: str | None = None
        with ExitStack() as stack:
            self._open(stack, restart=restart)
            self._files = stack.pop_all()

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

    @property
    def verified_origins(self) -> frozenset[str]:
        """The origins that `verify_origin` was called for, by this writer or an earlier one."""
        return frozenset() if self.finished else frozenset(self._journal.verified)

    def verify_origin(self, origin: str) -> None:
        """Note that `origin` is the right thing to read from; safe while another thread appends."""
        self._journal.add_verified(origin)

    def drop_unverified(self) -> None:
        """Take back all batches from the first one whose origin is not known to be right."""
        batches, verified = self._journal.batches, self._journal.verified
        kept = next((n for n, batch in enumerate(batches) if batch.origin not in verified), len(batches))
        with self._all_or_nothing():
            self._journal.keep(kept)
            for stream in self._streams.values():
                stream.cut(self.counts.samples)

    def append(
        self,
        tokens_NTD: Floats,
        pooled_NP: Floats | None,
        rows: Sequence[SampleRow],
        *,
        rejects: Sequence[RejectRow] = (),
        reasons: Mapping[int, str] | None = None,
        next_index: int,
    ) -> None:
        """Add the model batch that ends before member `next_index`: its samples and its rejects.

        A sample with a value that is not finite or beyond float16 becomes a reject; no value is ever clamped.
        Float16 arrays are written as they are, without a copy. A caller that made them elsewhere passes
        `reasons`, {position in `rows`: why it did not fit}, in the words of halves.py: it has looked at every
        value then, and they are not looked at again.
        """
        values = {TOKENS: tokens_NTD} | ({} if pooled_NP is None else {POOLED: pooled_NP})
        with self._all_or_nothing():
            self._check_batch(values, rows, rejects, next_index)
            batch = self._encode(values, rows, reasons)
            refused = (RejectRow(rows[n].index, rows[n].key, batch.refused[n]) for n in sorted(batch.refused))
            kept = (row for number, row in enumerate(rows) if number not in batch.refused)
            self._journal.append(Batch(next_index, tuple(kept), (*rejects, *refused), self.origin))
            for name, stream in self._streams.items():
                self._unsynced += stream.append(batch.records[name], batch.checksums[name])
            self._sync_now_and_then()

    def finish(self) -> Counts:
        """Complete the store and flush it to disk; calling it again on a finished store does nothing."""
        counts = self.counts
        if self.finished:
            return counts
        with self._all_or_nothing():
            for name in self._layouts:
                self._streams.pop(name).finish()
                document = array_document(name, counts.samples, self._layouts[name])
                write_document(self.path / name / DOCUMENT, document)
            batches = self._journal.batches
            digests = {
                tables.SAMPLES_FILE: tables.write_samples(
                    self.path / tables.SAMPLES_FILE, [row for batch in batches for row in batch.samples]
                ),
                tables.REJECTS_FILE: tables.write_rejects(
                    self.path / tables.REJECTS_FILE, [row for batch in batches for row in batch.rejects]
                ),
            }
            numbers = {
                "seen": counts.samples + counts.rejects,
                "samples": counts.samples,
                "rejects": counts.rejects,
            }
            document = group_document({**self._header, "counts": numbers}, digests)
            write_document(self.path / DOCUMENT, document)
            self._journal.path.unlink()
            flush(self.path)
        self.finished, self._finished_counts = True, counts
        self.close()
        return counts

    def close(self) -> None:
        """Close the files and let other writers in; an unfinished store can be resumed."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, stack: ExitStack, *, restart: bool) -> None:
        journal = self.path / JOURNAL_FILE
        begun = journal.exists() or (self.path / DOCUMENT).exists()
        if begun and not restart and not journal.exists():
            self._adopt()
            return
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(journal)
        stack.callback(self._journal.close)
        if restart and begun:
            self._discard()
        if (self.path / DOCUMENT).exists():
            self._adopt()
            journal.unlink()
        else:
            self._resume(stack)

    def _discard(self) -> None:
        """Delete what an earlier writer left, its group document first, so that it is no store any more."""
        (self.path / DOCUMENT).unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != JOURNAL_FILE:
                path.unlink()
        self._journal.start(self._header)

    def _adopt(self) -> None:
        """Take over a store that was finished but not yet renamed."""
        store = TokenStore(self.path)
        found = {name: value for name, value in store.attributes.items() if name != "counts"}
        self._demand_same(found)
        self.finished, self._finished_counts = True, Counts(len(store), len(store.rejects))

    def _resume(self, stack: ExitStack) -> None:
        if self._journal.header is None:
            self._journal.start(self._header)
        self._demand_same(self._journal.header)
        known = sum(len(batch.samples) for batch in self._journal.batches)
        paths = {name: data_file(self.path, name) for name in self._layouts}
        with disk_errors(self.path):
            for path in paths.values():
                path.parent.mkdir(exist_ok=True)
        self._journal.cut(
            min(layout.count_valid(paths[name], known) for name, layout in self._layouts.items())
        )
        for name, layout in self._layouts.items():
            self._streams[name] = RecordStream(paths[name], layout, self.counts.samples)
            stack.callback(self._streams[name].close)

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
        expected = {name: (len(rows), *layout.shape) for name, layout in self._layouts.items()}
        found = {name: array.shape for name, array in values.items()}
        if found != expected:
            raise StoreError(f"{self.path}: a batch has the shapes {found}, expected {expected}")
        indexes = sorted([row.index for row in rows] + [row.index for row in rejects])
        if any(not self.next_index <= index < next_index for index in indexes):
            raise StoreError(
                f"{self.path}: the batch from {self.next_index} to {next_index} holds the members {indexes}"
            )

    def _encode(
        self, values: Mapping[str, Floats], rows: Sequence[SampleRow], reasons: Mapping[int, str] | None
    ) -> _Encoded:
        """The samples of a batch as records, and the reasons of those that are none."""
        trusted = reasons is not None and all(array.dtype == np.float16 for array in values.values())
        batch = _Encoded(dict(reasons or {}), {name: [] for name in values}, {name: [] for name in values})
        if not set(batch.refused) <= set(range(len(rows))):
            raise ValueError(f"reasons are given for {sorted(batch.refused)}, the batch has {len(rows)} rows")
        for number in range(len(rows)):
            if number in batch.refused:
                continue
            floats = {name: np.ascontiguousarray(array[number]) for name, array in values.items()}
            halves = {
                name: to_half(array, partial(self._buffer, name, number)) for name, array in floats.items()
            }
            reason = None if trusted else _refusal(floats, halves)
            if reason is not None:
                batch.refused[number] = reason
                continue
            for name, half in halves.items():
                batch.records[name].append(half)
                batch.checksums[name].append(checksum_of(half))
        return batch

    def _buffer(self, name: str, number: int) -> HalfArray:
        """Room for sample `number` of a batch, used again for every batch."""
        if (name, number) not in self._buffers:
            self._buffers[name, number] = np.empty(self._layouts[name].shape, np.float16)
        return self._buffers[name, number]

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """After any error in here only a new writer can go on: a batch would be missing, or torn."""
        if self.finished:
            raise StoreError(f"{self.path} is finished; nothing can be appended")
        if self._failed:
            raise StoreError(
                f"{self.path}: an earlier batch could not be added; open the store again to go on"
            )
        self._failed = True
        with disk_errors(self.path):
            yield
        self._failed = False

    def _sync_now_and_then(self) -> None:
        if self._unsynced < SYNC_BYTES:
            return
        self._journal.sync()
        for stream in self._streams.values():
            stream.sync()
        self._unsynced = 0


def _refusal(values: Mapping[str, Floats], halves: Mapping[str, HalfArray]) -> str | None:
    """Why a sample cannot be stored, or None."""
    reasons = (refusal_of(name, values[name], half) for name, half in halves.items())
    return next((reason for reason in reasons if reason), None)
