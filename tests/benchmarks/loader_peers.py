"""The tokens of the loader benchmark in every form, and everybody who reads them.

Three shards of 96 pairs, EVA [257, 4096] and CLIP [257, 1024] in float16 (2.6 MB a pair), batches of 32 in random
order: as stores for this project's loader and for zarr-python, as raw files for np.memmap, as tars of .npy files for
webdataset.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
import zarr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowkit.features.loader import BATCHES_AHEAD, PairedTokens
from flowkit.features.metadata import TOKENS, data_file
from flowkit.features.order import Schedule
from flowkit.features.pairs import merge_pairs
from flowkit.features.prefetch import prefetched
from flowkit.features.ring import Ring
from flowkit.features.tables import SampleRow
from flowkit.features.writer import TokenStoreWriter

SHARDS, PER_SHARD, BATCH = 3, 96, 32
SHAPES = {"source": (257, 4096), "target": (257, 1024)}
PAIRS = SHARDS * PER_SHARD
EPOCH_BATCHES = PAIRS // BATCH

Batches = Generator[tuple[Tensor, Tensor], None, None]
Mapped = Mapping[str, list[np.memmap]]


@dataclass(frozen=True)
class Material:
    """The same tokens as stores, as raw files and as tars of .npy files."""

    folder: Path

    def stores(self, side: str) -> list[Path]:
        return [self.folder / f"{side}-{shard}" for shard in range(SHARDS)]

    def raw(self, side: str) -> list[Path]:
        return [self.folder / f"{side}-{shard}.raw" for shard in range(SHARDS)]

    def tars(self) -> list[Path]:
        return [self.folder / f"{shard}.tar" for shard in range(SHARDS)]

    def data_files(self) -> list[Path]:
        stores = [data_file(store, TOKENS) for side in SHAPES for store in self.stores(side)]
        return [*stores, *(path for side in SHAPES for path in self.raw(side)), *self.tars()]

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.parquet"

    def make(self) -> None:
        if self.pairs.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for shard in range(SHARDS):
            generator = torch.Generator().manual_seed(shard)
            tokens = {
                side: torch.randn(PER_SHARD, *shape, generator=generator).half().numpy()
                for side, shape in SHAPES.items()
            }
            for side, values in tokens.items():
                values.tofile(self.raw(side)[shard])
                _write_store(self.stores(side)[shard], values, side, shard)
            _write_tar(self.tars()[shard], tokens)
        merge_pairs(self.stores("source"), self.stores("target"), self.pairs)

    def mapped(self) -> Mapped:
        """The raw files, newly mapped."""
        return {
            side: [np.memmap(path, np.float16, "r", shape=(PER_SHARD, *shape)) for path in self.raw(side)]
            for side, shape in SHAPES.items()
        }

    def open(self) -> PairedTokens:
        return PairedTokens(self.pairs, self.stores("source"), self.stores("target"))


def _write_store(folder: Path, values: NDArray[np.float16], side: str, shard: int) -> None:
    attributes = {
        "encoder": side,
        "has_cls": True,
        "source": {"name": f"{shard}.tar", "sha256": str(shard)},
    }
    with TokenStoreWriter(
        folder, token_shape=SHAPES[side], pooled_width=None, attributes=attributes, restart=True
    ) as writer:
        for first in range(0, PER_SHARD, BATCH):
            members = range(first, first + BATCH)
            rows = [SampleRow(index, f"{shard}-{index}") for index in members]
            writer.append(values[first : members.stop], None, rows, next_index=members.stop)
        writer.finish()


def _write_tar(path: Path, tokens: Mapping[str, NDArray[np.float16]]) -> None:
    with tarfile.open(path, "w") as tar:
        for row in range(PER_SHARD):
            for side, values in tokens.items():
                buffer = io.BytesIO()
                np.save(buffer, values[row])
                info = tarfile.TarInfo(f"{row:05d}.{side}.npy")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


def contenders_of(material: Material) -> dict[str, Callable[[], Batches]]:
    """Name -> endless batches of 32 pairs in random order.

    The memmaps are the friendliest there are: their pages stay mapped from run to run, as those of a data set larger
    than the memory do not.
    """
    pairs, files = material.open(), material.mapped()
    return {
        "memmap": lambda: memmap_fresh(files),
        "memmap ring": lambda: memmap_ring(files),
        "ring": lambda: flowkit_ring(pairs, check=False),
        "ring checked": lambda: flowkit_ring(pairs),
        "ring checked 2 readers": lambda: flowkit_ring(pairs, readers=2),
        "ring checked blocks": lambda: flowkit_ring(pairs, shuffle="blocks"),
        "fresh": lambda: flowkit_fresh(pairs),
        "zarr": lambda: zarr_python(material),
        "webdataset": lambda: npy_tars(material),
    }


def _steps() -> Iterator[NDArray[np.int64]]:
    return (ids for _, ids in Schedule(PAIRS, BATCH, seed=1).steps())


def memmap_fresh(files: Mapped) -> Batches:
    """The reference: random rows of mapped files, copied into new torch tensors."""
    for ids in _steps():
        batch = {side: torch.empty((BATCH, *shape), dtype=torch.float16) for side, shape in SHAPES.items()}
        for side, tensor in batch.items():
            copy_rows(files[side], ids, tensor.numpy())
        yield batch["source"], batch["target"]


def memmap_ring(files: Mapped) -> Batches:
    """The loader's ring and thread over mapped files."""
    ring = Ring([(BATCH, *shape) for shape in SHAPES.values()], BATCHES_AHEAD + 1)

    def fill() -> Iterator[int]:
        for turn, ids in enumerate(_steps()):
            for side, buffer in zip(SHAPES, ring.slot(turn), strict=True):
                copy_rows(files[side], ids, buffer.numpy())
            yield turn

    with closing(prefetched(fill(), BATCHES_AHEAD)) as turns:
        for turn in turns:
            source, target = ring.receive(turn)
            yield source, target


def copy_rows(files: list[np.memmap], ids: NDArray[np.int64], out: NDArray[np.float16]) -> None:
    for place, pair in enumerate(ids):
        out[place] = files[pair // PER_SHARD][pair % PER_SHARD]


def flowkit_ring(pairs: PairedTokens, **settings: Any) -> Batches:
    with closing(pairs.batches(seed=1, batch_size=BATCH, **settings)) as batches:
        for _, _, source, target in batches:
            yield source, target


def flowkit_fresh(pairs: PairedTokens) -> Batches:
    for ids in _steps():
        yield pairs.batch(ids, dtype=torch.float16)


class _ZarrPairs(Dataset[tuple[Tensor, Tensor]]):
    """One pair by `z[i]` on the files of the stores."""

    def __init__(self, material: Material) -> None:
        self._arrays = [
            [zarr.open_group(path, mode="r")["tokens"] for path in material.stores(side)] for side in SHAPES
        ]

    def __len__(self) -> int:
        return PAIRS

    def __getitem__(self, pair: int) -> tuple[Tensor, Tensor]:
        source, target = (
            torch.from_numpy(np.asarray(arrays[pair // PER_SHARD][pair % PER_SHARD]))
            for arrays in self._arrays
        )
        return source, target


def zarr_python(material: Material) -> Batches:
    sampler = (int(pair) for ids in _steps() for pair in ids)
    yield from DataLoader(_ZarrPairs(material), batch_size=BATCH, sampler=sampler)


def npy_tars(material: Material, *, shuffled: bool = True) -> Batches:
    names = [str(path) for path in material.tars()]
    data = webdataset.WebDataset(names, shardshuffle=SHARDS if shuffled else False, empty_check=False)
    if shuffled:
        data = data.repeat().shuffle(64)
    for source, target in data.decode().to_tuple("source.npy", "target.npy").batched(BATCH):
        yield torch.from_numpy(source), torch.from_numpy(target)


def demand_same_tokens(contenders: Mapping[str, Callable[[], Batches]], material: Material) -> None:
    """Raise `ValueError` unless one epoch of every contender holds every token once."""
    once = {**contenders, "webdataset": lambda: npy_tars(material, shuffled=False)}
    found = {}
    for name, begin in once.items():
        with closing(begin()) as batches:
            epoch = islice(batches, EPOCH_BATCHES)
            found[name] = sum(int(side.view(torch.int16).sum()) for pair in epoch for side in pair)
    if len(set(found.values())) != 1:
        raise ValueError(f"the loaders deliver other tokens: sums {found}; they must be equal")
