"""Sampled tokens in the format of a token store: what a translator made of a data set, for the evaluation.

The store has the array `tokens` alone and comes from no tar, so its source is named "-". Sample i of the
input has index i in the table; a sample that is not finite, or beyond float16, is in the rejects table, so
rows must be aligned by `index`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features.store import TokenStore
from flowkit.features.tables import SampleRow
from flowkit.features.writer import Counts, TokenStoreWriter


class SampledTokens:
    """Tokens [N, T, D] that `write_tokens` wrote, refused samples left out; rows are read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self._store = TokenStore(directory)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        return (len(self._store), *self._store.token_shape)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        wanted = np.arange(len(self))[rows]
        return self._store.read_tokens(wanted).astype(np.float32)

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return [str(key) for key in self._store.samples["key"]]

    @property
    def refused_keys(self) -> list[str]:
        """Keys of the samples that were not finite or beyond float16."""
        return [str(key) for key in self._store.rejects["key"]]


def write_tokens(
    directory: Path,
    batches: Iterable[NDArray[np.floating]],
    attributes: Mapping[str, Any],
    *,
    keys: Sequence[str] | None = None,
) -> Counts:
    """Write the arrays [n, T, D] of `batches`, one after the other, as a complete store in `directory`.

    `keys` names the samples; without it the key of a sample is its number. What an earlier, killed call left
    in `directory` is replaced. Raises `StoreError` if there is no batch or the number of keys does not fit.
    """
    arrays = iter(batches)
    first = next(arrays, None)
    if first is None:
        raise StoreError(f"{directory}: there are no sampled tokens to write, expected at least one batch")
    with TokenStoreWriter(
        directory,
        token_shape=(first.shape[1], first.shape[2]),
        pooled_width=None,
        attributes={"source": {"name": "-"}, **attributes},
        restart=True,
    ) as writer:
        for array in chain([first], arrays):
            start, end = writer.next_index, writer.next_index + len(array)
            names = [str(index) for index in range(start, end)] if keys is None else keys[start:end]
            if len(names) < len(array):
                raise StoreError(f"{directory}: {len(keys or ())} keys for more than {end - 1} samples")
            rows = [SampleRow(index, key) for index, key in zip(range(start, end), names, strict=True)]
            writer.append(array, None, rows, next_index=end)
        if keys is not None and len(keys) != writer.next_index:
            raise StoreError(f"{directory}: {len(keys)} keys for {writer.next_index} samples")
        return writer.finish()
