"""Training loader: batches of paired tokens in an order that is a pure function of (seed, epoch).

Step s of a run always sees the same ids (order.py), so a run resumes at any step without replaying the ones before,
and any number of ranks sees the same global batches. Records are read from the stores at computed offsets into
buffers that are used again (ring.py), by threads that work ahead of the consumer.

A sample is a pair of images, or, where objects have several views, V of them: its tokens are those of all views, one
view after the other.

Shapes: B samples in a batch, V views, T tokens of a sample (of each view, the class token first, then patches row by
row), D channels.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowkit.errors import StoreError
from flowkit.features.metadata import POOLED, TOKENS
from flowkit.features.order import Ids, Schedule, Shuffle
from flowkit.features.pairs import Rows, read_pairs
from flowkit.features.prefetch import prefetched
from flowkit.features.ring import Buffers, Ring, build_ring, half_buffer
from flowkit.features.store import TokenStore
from flowkit.features.store_index import StoreIndex, read_index
from flowkit.progress import logger
from flowkit.view_keys import object_and_view

Layout = Literal["cls_patches", "patches", "pooled"]
SourceTokens = Literal["all", "cls"]
Numbers = NDArray[np.integer]
Step = tuple[int, Ids, Tensor, Tensor]

BATCHES_AHEAD = 3
DECODER_VERSION = "version"
"""What `preprocessing` of a store calls the version of the library that decoded its images."""


class PairedTokens:
    """The pairs of a data set as training data.

    `layout` is "cls_patches" (class token and patches), "patches" (no class token) or "pooled" (one vector of each
    view). With `source_tokens` "cls" the source's class token stands in the place of all tokens of its view, so nothing
    of the patches is seen. With `by_view` every view is a sample of its own. The stores are those from which `pairs`
    was made, in the same order, or conversions of them; `index` is the index of `pairs`, if it was read before. Raises
    `StoreError` if they are not, if stores of one side come from different encoders, or if "cls_patches" is asked of
    stores without a class token.
    """

    def __init__(
        self,
        pairs: Path,
        source_stores: Sequence[Path],
        target_stores: Sequence[Path],
        layout: Layout = "cls_patches",
        tars: slice = slice(None),
        *,
        source_tokens: SourceTokens = "all",
        by_view: bool = False,
        index: StoreIndex | None = None,
    ) -> None:
        if layout not in get_args(Layout):
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(get_args(Layout))}")
        index = index or read_index(pairs)
        sources, targets = (index.open(paths) for paths in (source_stores, target_stores))
        for stores in (sources, targets):
            _demand_one_encoder(stores)
        rows = read_pairs(pairs, sources, targets)
        chosen = range(len(source_stores))[tars]
        self._of_objects = rows.of_tars(chosen)
        self.rows = self._of_objects.by_view() if by_view else self._of_objects
        if not len(self.rows):
            raise StoreError(
                f"{pairs}: no pair is in the {len(chosen)} of {len(source_stores)} tars asked for; "
                "use more tars, or hold fewer out"
            )
        self._source = _Side(sources, layout, self.views, shown=source_tokens)
        self._target = _Side(targets, layout, self.views)
        self._path = pairs

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def views(self) -> int:
        """Images of a sample, whose tokens follow each other."""
        return self.rows.views

    @property
    def views_of_object(self) -> int:
        """Views that an object has, whether or not they are one sample."""
        return self._of_objects.views

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
        """Rows and columns of the patches of one view of the target; (1, 1) of pooled vectors."""
        if self._target.is_pooled:
            return 1, 1
        rows, columns = self._target.stores[0].attributes["grid"]
        return rows, columns

    def batch(self, ids: Numbers, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Source and target tokens of the pairs `ids`: two new contiguous tensors [B, T, D] on the CPU."""
        source, target = (half_buffer(shape) for shape in self._record_shapes(len(ids)))
        self._fill(ids, (source, target), self._as_on_disk(ids), check=True)
        return (
            self._source.view(source).to(dtype).contiguous(),
            self._target.view(target).to(dtype).contiguous(),
        )

    def source(self, ids: Numbers | None = None) -> TokensOfSide:
        """The source tokens of all pairs, or of `ids`, to be read row by row when they are asked for."""
        return self._tokens_of(self._source, self.rows.source_row_NV, ids)

    def target(self, ids: Numbers | None = None) -> TokensOfSide:
        """The target tokens of all pairs, or of `ids`, to be read row by row when they are asked for."""
        return self._tokens_of(self._target, self.rows.target_row_NV, ids)

    def _tokens_of(self, side: _Side, row_NV: Rows, ids: Numbers | None) -> TokensOfSide:
        chosen = slice(None) if ids is None else ids
        return TokensOfSide(side, self.rows.tar_NV[chosen], row_NV[chosen])

    def batches(
        self,
        *,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: Shuffle = "random",
        readers: int = 1,
        check: bool = True,
        device: torch.device | str = "cpu",
    ) -> Generator[Step]:
        """Yield (step, ids, source_BTD, target_BTD) without end, from `start_step` on, in the order of `Schedule`.

        The tensors are float16. On the CPU they are views of buffers that are used again: valid until the next step
        is asked for. On a GPU they are new tensors, copied there while the step before runs. `batch_size` is that of
        all ranks together, `readers` threads share the records of a batch, `check` verifies every checksum.
        Raises `StoreError` if there are fewer pairs than `batch_size`.
        """
        if batch_size > len(self):
            raise StoreError(
                f"{self._path} has {len(self)} pairs, fewer than one batch of {batch_size}; "
                "lower the batch size or extract more shards"
            )
        if readers < 1:
            raise ValueError(f"readers is {readers}, expected at least 1")
        schedule = Schedule(len(self), batch_size, seed, rank, world_size, shuffle)
        shapes = self._record_shapes(schedule.local_batch_size)
        ring = build_ring(shapes, BATCHES_AHEAD + 1, torch.device(device))
        filled = self._filled(schedule.steps(start_step), ring, readers, check=check)
        return self._received(prefetched(filled, BATCHES_AHEAD), ring)

    def keys(self, ids: Numbers) -> list[str]:
        """What the tars call the samples `ids`; of objects with several views, their own key."""
        first = self.rows.tar_NV[ids, 0], self.rows.target_row_NV[ids, 0]
        keys = (
            str(self._target.stores[tar].samples["key"].iloc[row]) for tar, row in zip(*first, strict=True)
        )
        return list(keys) if self.views == 1 else [object_and_view(key)[0] for key in keys]

    def samples(self) -> pd.DataFrame:
        """The sample table (tables.py) of the target stores, one line per sample, in the order of the samples.

        The line of an object with several views is that of its first one, under the object's own key.
        """
        table = self._lines(self.rows.tar_NV[:, 0], self.rows.target_row_NV[:, 0])
        if self.views > 1:
            table["key"] = [object_and_view(key)[0] for key in table["key"]]
        return table

    def images(self, count: int) -> tuple[NDArray[np.int32], pd.DataFrame]:
        """Number of the tar [n] and line of the sample table of every image of the first `count` samples."""
        tars, rows = self.rows.tar_NV[:count].reshape(-1), self.rows.target_row_NV[:count].reshape(-1)
        return tars, self._lines(tars, rows)

    def _lines(self, tars: Numbers, rows: Numbers) -> pd.DataFrame:
        found, starts = np.unique(tars, return_index=True)  # samples are in tar order
        parts = zip(found, np.split(rows, starts[1:]), strict=True)
        tables = [self._target.stores[tar].samples.iloc[of_tar] for tar, of_tar in parts]
        return pd.concat(tables, ignore_index=True)

    def _filled(
        self, steps: Iterator[tuple[int, Ids]], ring: Ring, readers: int, *, check: bool
    ) -> Iterator[tuple[int, Ids]]:
        """Fill the next slot of `ring` for each of `steps`, then pass the step on."""
        with ThreadPoolExecutor(max_workers=readers, thread_name_prefix="read") as pool:
            for turn, (step, ids) in enumerate(steps):
                slot = ring.slot(turn)
                parts = np.array_split(self._as_on_disk(ids), readers)
                reads = [pool.submit(self._fill, ids, slot, part, check=check) for part in parts[1:]]
                self._fill(ids, slot, parts[0], check=check)
                for read in reads:
                    read.result()
                ring.send(turn)
                yield step, ids

    def _received(self, filled: Generator[tuple[int, Ids]], ring: Ring) -> Generator[Step]:
        try:
            for turn, (step, ids) in enumerate(filled):
                source, target = ring.receive(turn)
                yield step, ids, self._source.view(source), self._target.view(target)
        finally:
            filled.close()

    def _as_on_disk(self, ids: Numbers) -> Numbers:
        """The images of the samples `ids`, counted through, by store and record."""
        return np.lexsort((self.rows.source_row_NV[ids].reshape(-1), self.rows.tar_NV[ids].reshape(-1)))

    def _fill(self, ids: Numbers, slot: Buffers, places: Numbers, *, check: bool) -> None:
        """Read the images `places` of the samples `ids` to the same places of the buffers of both sides, by store."""
        samples, views = np.divmod(places, self.views)
        at = ids[samples], views
        tars, (source, target) = self.rows.tar_NV[at], slot
        self._source.read(tars, self.rows.source_row_NV[at], source, places, check=check)
        self._target.read(tars, self.rows.target_row_NV[at], target, places, check=check)

    def _record_shapes(self, count: int) -> list[tuple[int, ...]]:
        return [(count * self.views, *side.record_shape) for side in (self._source, self._target)]


class _Side:
    """The stores of one encoder, read in one layout; a sample is `views` records."""

    def __init__(
        self, stores: Sequence[TokenStore], layout: Layout, views: int, shown: SourceTokens = "all"
    ) -> None:
        first = stores[0]
        self.is_pooled, self._shows_cls_alone = layout == "pooled", shown == "cls"
        if (layout == "cls_patches" or self._shows_cls_alone) and not first.has_cls:
            asked = "source_tokens is cls" if self._shows_cls_alone else "the layout is cls_patches"
            raise StoreError(f"{first.path} holds no class token, but {asked}; use the layout patches")
        self.stores = stores
        self._array = POOLED if layout == "pooled" else TOKENS
        self.record_shape = first.record_shape(self._array)
        self._first_token = int(layout == "patches" and first.has_cls)
        tokens, channels = (1, first.pooled_width) if layout == "pooled" else first.token_shape
        self.views = views
        self.shape = (views * (tokens - self._first_token), channels)

    def read(self, tars: Numbers, rows: Numbers, out: Tensor, slots: Numbers, *, check: bool) -> None:
        """Read record `rows[k]` of store `tars[k]` into `out[slots[k]]` for every k; `tars` is sorted."""
        records = out.numpy()
        starts = np.flatnonzero(np.diff(tars, prepend=-1)).tolist()
        for first, last in pairwise([*starts, len(tars)]):
            store = self.stores[tars[first]]
            store.read_into(self._array, rows[first:last], records, slots[first:last], check=check)

    def view(self, records: Tensor) -> Tensor:
        """The tokens [B, T, D] in records as they lie on disk, view by view.

        Without a copy, unless class tokens are left out of several views.
        """
        tokens = records.view(len(records), -1, self.shape[1])
        if self._shows_cls_alone and not self.is_pooled:
            tokens = tokens[:, :1].expand(-1, self.shape[0] // self.views, -1)
        else:
            tokens = tokens[:, self._first_token :]
        return tokens if self.views == 1 else tokens.reshape(-1, *self.shape)


class TokensOfSide:
    """Tokens [N, T, D] of one side of some pairs; rows are read when they are asked for, as float32.

    Every checksum is verified. Raises `StoreError` for a damaged record.
    """

    def __init__(self, side: _Side, tar_NV: Rows, row_NV: Rows) -> None:
        self._side, self._tar_NV, self._row_NV = side, tar_NV, row_NV

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        return (len(self._row_NV), *self._side.shape)

    def __len__(self) -> int:
        return len(self._row_NV)

    def __getitem__(self, rows: slice | Numbers) -> NDArray[np.float32]:
        tars, wanted = self._tar_NV[rows].reshape(-1), self._row_NV[rows].reshape(-1)
        records = half_buffer((len(wanted), *self._side.record_shape))
        places = np.lexsort((wanted, tars))
        self._side.read(tars[places], wanted[places], records, places, check=True)
        return self._side.view(records).to(torch.float32).contiguous().numpy()


def _demand_one_encoder(stores: Sequence[TokenStore]) -> None:
    """Raise `StoreError` unless all stores are alike in everything but their tar and its counts.

    A decoder of another version is logged, once: the library was upgraded between two extractions.
    """
    if not stores:
        raise StoreError("no feature stores were given, expected at least one; extract a shard first")
    kinds = [_kind(store) for store in stores]
    for store, kind in zip(stores, kinds, strict=True):
        if kind == kinds[0]:
            continue
        names = [name for name in sorted({*kind, *kinds[0]}) if kind.get(name) != kinds[0].get(name)]
        raise StoreError(
            f"{store.path} has {names[0]} = {kind.get(names[0])!r}, {stores[0].path} has "
            f"{kinds[0].get(names[0])!r}; extract both with the same settings"
        )
    others = [store for store in stores if _decoder_version(store) != _decoder_version(stores[0])]
    if others:
        logger.warning(
            "%d of %d stores were decoded by version %s and not %s, for instance %s; their tokens may differ slightly",
            len(others),
            len(stores),
            _decoder_version(others[0]),
            _decoder_version(stores[0]),
            others[0].path,
        )


def _kind(store: TokenStore) -> dict[str, object]:
    """The attributes that stores of one side share."""
    kind = {name: value for name, value in store.attributes.items() if name not in ("source", "counts")}
    if "preprocessing" in kind:
        kind["preprocessing"] = {
            name: value for name, value in kind["preprocessing"].items() if name != DECODER_VERSION
        }
    return kind


def _decoder_version(store: TokenStore) -> object:
    return store.attributes.get("preprocessing", {}).get(DECODER_VERSION)
