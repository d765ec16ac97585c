"""Conversion of a float16 token store to int8 (quantisation.py), half the size, with a table of what it costs.

    tokens        [N, T, D] int8          tokens_scale  [N, T] float32
    channels      [2, D] float32          pooled        [N, P] float16, as it was

The tables are copied; the group says `"storage": "int8"` and which store it was made from. Readers get float16.
The group document is written last, so what a killed conversion leaves is no store and is made again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features import tables
from flowkit.features.journal import Journal
from flowkit.features.metadata import (
    CHANNELS,
    DOCUMENT,
    JOURNAL_FILE,
    POOLED,
    TOKENS,
    TOKENS_SCALE,
    array_document,
    commit,
    data_file,
    flush,
    group_document,
    write_document,
)
from flowkit.features.quantisation import Channels, channels_of, quantise
from flowkit.features.records import REMEDY, HalfArray, RecordLayout
from flowkit.features.store import TokenStore
from flowkit.features.stream import RecordStream, checksum_of, disk_errors
from flowkit.provenance import file_digest

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ErrorTable:
    """What int8 changed, over all tokens of a store; a store without samples has no error.

    Cosines are between a token before and after, as it is and after standardising its channels: the plain one is
    blind to all but the largest channels. `rms_error_in_std` is the root mean square error in standard deviations of
    the channel, `relative_l2` the norm of all errors over the norm of all values.
    """

    samples: int
    mean_cosine: float
    min_cosine: float
    mean_cosine_standardised: float
    min_cosine_standardised: float
    rms_error_in_std: float
    relative_l2: float


def convert_store(store: TokenStore, work: Path, *, progress: Progress | None = None) -> ErrorTable:
    """Write the int8 form of `store` into the folder `work` and compare the two, sample by sample.

    A conversion that was finished there before is only compared again. `progress` is called with the number of
    samples just compared. Raises `StoreError` if `store` is int8 already or `work` holds another store.
    """
    if store.storage != "float16":
        raise StoreError(f"{store.path} is {store.storage} already, expected float16; use it as it is")
    attributes = {
        **store.attributes,
        "storage": "int8",
        "source": {**store.attributes.get("source", {}), "converted_from": store.digest()},
    }
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    with closing(Journal(work / JOURNAL_FILE)) as lock, disk_errors(work):
        if not (work / DOCUMENT).exists():
            _write(store, work, attributes)
        lock.path.unlink()
        flush(work)
    converted = TokenStore(work)
    if converted.attributes != attributes:
        raise StoreError(f"{work} was converted from another store than {store.path}; delete this folder")
    return compare(store, converted, progress=progress)


def compare(store: TokenStore, converted: TokenStore, *, progress: Progress | None = None) -> ErrorTable:
    """The error of the tokens of `converted`, as readers get them, against those of `store`."""
    channels = Channels(*converted.records(CHANNELS).read([0, 1]))
    plain, standardised = _Errors(), _Errors()
    for row in range(len(store)):
        before_TD, after_TD = store.read_tokens([row])[0], converted.read_tokens([row])[0]
        plain.add(before_TD, after_TD)
        standardised.add(channels.standardise(before_TD), channels.standardise(after_TD))
        if progress is not None:
            progress(1)
    return ErrorTable(
        samples=len(store),
        mean_cosine=_rounded(plain.mean_cosine),
        min_cosine=_rounded(plain.min_cosine),
        mean_cosine_standardised=_rounded(standardised.mean_cosine),
        min_cosine_standardised=_rounded(standardised.min_cosine),
        rms_error_in_std=_rounded(math.sqrt(standardised.squared_error / max(standardised.values, 1))),
        relative_l2=_rounded(math.sqrt(plain.squared_error / (plain.squared_norm or 1.0))),
    )


class _Errors:
    """Sums over the tokens seen so far."""

    def __init__(self) -> None:
        self.tokens = self.values = 0
        self.min_cosine = 1.0
        self.squared_error = self.squared_norm = self._cosines = 0.0

    @property
    def mean_cosine(self) -> float:
        return self._cosines / self.tokens if self.tokens else 1.0

    def add(self, before_TD: NDArray[np.floating], after_TD: NDArray[np.floating]) -> None:
        before, after = (
            torch.from_numpy(values).to(torch.float64).numpy() for values in (before_TD, after_TD)
        )
        before_T, after_T = np.einsum("td,td->t", before, before), np.einsum("td,td->t", after, after)
        dots_T = np.einsum("td,td->t", before, after)
        norms_T = np.sqrt(before_T * after_T)
        both_zero_T = (before_T == 0) & (after_T == 0)  # no direction that could have changed
        cosines_T = np.where(both_zero_T, 1.0, dots_T / np.where(norms_T == 0, 1.0, norms_T))
        self.tokens += len(cosines_T)
        self.values += before.size
        self.min_cosine = min(self.min_cosine, float(cosines_T.min()))
        self._cosines += float(cosines_T.sum())
        self.squared_error += max(0.0, float((before_T + after_T - 2 * dots_T).sum()))
        self.squared_norm += float(before_T.sum())


def _rounded(value: float) -> float:
    """Eight digits: the table goes into digests, and the last ones differ between machines."""
    return float(f"{value:.8g}")


def _write(store: TokenStore, work: Path, attributes: dict[str, Any]) -> None:
    for path in work.iterdir():
        if path.name != JOURNAL_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    channels = channels_of(_tokens(store), store.token_shape[1])
    _write_array(work, CHANNELS, iter(channels.as_array()), RecordLayout((store.token_shape[1],), "float32"))
    _write_tokens(store, work, channels)
    if POOLED in store.attributes["arrays"]:
        pooled = (store.read_pooled([row])[0] for row in range(len(store)))
        _write_array(work, POOLED, pooled, RecordLayout((store.pooled_width,)))
    digests = {}
    for name in (tables.SAMPLES_FILE, tables.REJECTS_FILE):
        partial = work / f"{name}.partial"
        shutil.copyfile(store.path / name, partial)
        digests[name] = file_digest(partial)
        if digests[name] != store.table_digests[name]:
            raise StoreError(f"{store.path / name} does not match its checksum; {REMEDY}")
        commit(partial, work / name)
    write_document(work / DOCUMENT, group_document(attributes, digests))


def _tokens(store: TokenStore) -> Iterator[HalfArray]:
    return (store.read_tokens([row])[0] for row in range(len(store)))


def _write_tokens(store: TokenStore, work: Path, channels: Channels) -> None:
    tokens, width = store.token_shape
    layouts = {
        TOKENS: RecordLayout((tokens, width), "int8"),
        TOKENS_SCALE: RecordLayout((tokens,), "float32"),
    }
    streams = {name: _open_stream(work, name, layout) for name, layout in layouts.items()}
    for record_TD in _tokens(store):
        parts: tuple[NDArray[Any], ...] = quantise(record_TD, channels)
        for stream, part in zip(streams.values(), parts, strict=True):
            stream.append([part], [checksum_of(part)])
    for name, stream in streams.items():
        _finish(work, name, stream)


def _write_array(work: Path, name: str, records: Iterator[NDArray[Any]], layout: RecordLayout) -> None:
    stream = _open_stream(work, name, layout)
    for record in records:
        stream.append([record], [checksum_of(record)])
    _finish(work, name, stream)


def _open_stream(work: Path, name: str, layout: RecordLayout) -> RecordStream:
    path = data_file(work, name)
    path.parent.mkdir()
    return RecordStream(path, layout)


def _finish(work: Path, name: str, stream: RecordStream) -> None:
    stream.finish()
    write_document(work / name / DOCUMENT, array_document(name, stream.count, stream.layout))
