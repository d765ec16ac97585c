"""Training loader: batches of paired tokens in an order that is a pure function of (seed, epoch).

Step s of a run always sees the same ids, so a run resumes at any step without replaying the ones before.
Within an epoch no pair comes twice; the rest that does not fill a batch is left out until the next epoch.
Records are read from the stores at computed offsets into a buffer that is used again for every batch, in a
thread that works ahead of the consumer.

Shapes: B pairs in a batch, T tokens (class token first, then patches row by row), D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowkit.errors import StoreError
from flowkit.features.metadata import POOLED, TOKENS
from flowkit.features.pairs import read_pairs
from flowkit.features.prefetch import prefetched
from flowkit.features.records import HalfArray
from flowkit.features.store import TokenStore

Layout = Literal["cls_patches", "patches", "pooled"]
Ids = NDArray[np.int64]
Step = tuple[int, Ids, Tensor, Tensor]

BATCHES_AHEAD = 3


def order(seed: int, epoch: int, count: int) -> Ids:
    """The permutation of 0 .. count - 1 for one epoch, from 0 <= seed < 2^64 and epoch alone.

    It sorts the raw output of Philox keyed by (seed, epoch), which no version of numpy may change.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


class PairedTokens:
    """The pairs of a data set as training data.

    `layout` is "cls_patches" (class token and patches), "patches" (no class token) or "pooled" (one vector,
    T = 1). The stores are those from which `pairs` was made, in the same order. Raises `StoreError` if they
    are not, if stores of one side come from different encoders, or if "cls_patches" is asked of stores
    without a class token.
    """

    def __init__(
        self,
        pairs: Path,
        source_stores: Sequence[Path],
        target_stores: Sequence[Path],
        layout: Layout = "cls_patches",
        tars: slice = slice(None),
    ) -> None:
        if layout not in get_args(Layout):
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(get_args(Layout))}")
        self._source = _Side([TokenStore(path) for path in source_stores], layout)
        self._target = _Side([TokenStore(path) for path in target_stores], layout)
        table = read_pairs(pairs, self._source.stores, self._target.stores)
        chosen = range(len(source_stores))[tars]
        self.pairs: pd.DataFrame = table[table["tar"].isin(chosen)].reset_index(drop=True)
        if self.pairs.empty:
            raise StoreError(
                f"{pairs}: no pair is in the {len(chosen)} of {len(source_stores)} tars asked for; "
                "use more tars, or hold fewer out"
            )
        self._path = pairs
        self._tar = self.pairs["tar"].to_numpy()
        self._source_row = self.pairs["source_row"].to_numpy()
        self._target_row = self.pairs["target_row"].to_numpy()

    def __len__(self) -> int:
        return len(self._tar)

    @property
    def source_shape(self) -> tuple[int, int]:
        """(T, D) of the source tokens."""
        return self._source.shape

    @property
    def target_shape(self) -> tuple[int, int]:
        """(T, D) of the target tokens."""
        return self._target.shape

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of the target."""
        rows, columns = self._target.stores[0].attributes["grid"]
        return rows, columns

    def batch(self, ids: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Source and target tokens of the pairs `ids`: two new float32 tensors [B, T, D] on the CPU."""
        return self._load(ids, self._source.buffer(len(ids)), self._target.buffer(len(ids)))

    def batches(self, *, seed: int, batch_size: int, start_step: int = 0) -> Iterator[Step]:
        """Yield (step, ids, source_BTD, target_BTD) without end, from `start_step` on, in the header's order.

        Raises `StoreError` if there are fewer pairs than `batch_size`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if batch_size > len(self):
            raise StoreError(
                f"{self._path} has {len(self)} pairs, fewer than one batch of {batch_size}; "
                "lower the batch size or extract more shards"
            )
        return prefetched(self._steps(seed, batch_size, start_step), BATCHES_AHEAD)

    def samples(self) -> pd.DataFrame:
        """The sample table (tables.py) of the target stores, one line per pair, in the order of the pairs."""
        tables = [
            store.samples.iloc[self._target_row[self._tar == number]]
            for number, store in enumerate(self._target.stores)
        ]
        return pd.concat(tables, ignore_index=True)

    def _steps(self, seed: int, batch_size: int, start_step: int) -> Iterator[Step]:
        steps_per_epoch = len(self) // batch_size
        source, target = self._source.buffer(batch_size), self._target.buffer(batch_size)
        epoch, step_in_epoch = divmod(start_step, steps_per_epoch)
        while True:
            permutation = order(seed, epoch, len(self))
            for number in range(step_in_epoch, steps_per_epoch):
                ids = permutation[number * batch_size : (number + 1) * batch_size]
                yield epoch * steps_per_epoch + number, ids, *self._load(ids, source, target)
            epoch, step_in_epoch = epoch + 1, 0

    def _load(self, ids: NDArray[np.integer], source: HalfArray, target: HalfArray) -> tuple[Tensor, Tensor]:
        tars = self._tar[ids]
        return (
            self._source.load(tars, self._source_row[ids], source),
            self._target.load(tars, self._target_row[ids], target),
        )


class _Side:
    """The stores of one encoder, read in one layout."""

    def __init__(self, stores: Sequence[TokenStore], layout: Layout) -> None:
        _demand_one_encoder(stores)
        first = stores[0]
        if layout == "cls_patches" and not first.has_cls:
            raise StoreError(
                f"{first.path} holds no class token, but the layout is cls_patches; use the layout patches"
            )
        self.stores = stores
        self._readers = [store.array(POOLED if layout == "pooled" else TOKENS) for store in stores]
        self._first_token = int(layout == "patches" and first.has_cls)
        tokens, channels = (1, first.pooled_width) if layout == "pooled" else first.token_shape
        self.shape = (tokens - self._first_token, channels)

    def buffer(self, count: int) -> HalfArray:
        """Room for `count` records as they lie on disk."""
        return np.empty((count, *self._readers[0].layout.shape), dtype=np.float16)

    def load(self, tars: NDArray[np.integer], rows: NDArray[np.integer], buffer: HalfArray) -> Tensor:
        """The tokens [B, T, D] float32 of (tar, row) pairs, read through `buffer`."""
        for number in np.unique(tars):
            slots = np.flatnonzero(tars == number)
            self._readers[number].read_into(rows[slots], buffer, slots)
        tokens_BTD = torch.from_numpy(buffer).reshape(len(rows), -1, self.shape[1])
        return tokens_BTD[:, self._first_token :].to(torch.float32, memory_format=torch.contiguous_format)


def _demand_one_encoder(stores: Sequence[TokenStore]) -> None:
    """Raise `StoreError` unless all stores are alike in everything but their tar and its counts."""
    if not stores:
        raise StoreError("no feature stores were given, expected at least one; extract a shard first")
    kinds = [
        {name: value for name, value in store.attributes.items() if name not in ("source", "counts")}
        for store in stores
    ]
    for store, kind in zip(stores, kinds, strict=True):
        names = [name for name in sorted({*kind, *kinds[0]}) if kind.get(name) != kinds[0].get(name)]
        if names:
            raise StoreError(
                f"{store.path} has {names[0]} = {kind.get(names[0])!r}, {stores[0].path} has "
                f"{kinds[0].get(names[0])!r}; extract both with the same settings"
            )
