"""Bars of the token store: writing speed, bytes and inodes on disk, and what int8 costs in exactness.

One tar of 96 samples, CLIP [257, 1024] and EVA [257, 4096] in float16 (2.6 MB a sample), appended in model batches.
The contenders of a bar take turns, each writing new files; CPU time decides, wall time is reported. zarr-python
appends 16 parts to one shard of 256 CLIP samples, with the same codecs. `rows(folder)` needs about 1 GB.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from rows import Row, row
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from flowkit.features.int8 import convert_store
from flowkit.features.store import TokenStore
from flowkit.features.tables import SampleRow
from flowkit.features.writer import TokenStoreWriter

SAMPLES, POOLED_WIDTH = 96, 768
SHAPES = {"clip": (257, 1024), "eva": (257, 4096)}
ZARR_SAMPLES, ZARR_PARTS = 256, 16
OUTLIER_SAMPLES = 8

Floats = NDArray[np.floating]


def rows(folder: Path, *, repeats: int = 7) -> list[Row]:
    """Measure everything, writing below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *writing_rows(folder, repeats),
        *zarr_rows(folder, repeats),
        *disk_rows(folder),
        *int8_rows(folder, repeats),
    ]


# Writing


def writing_rows(folder: Path, repeats: int) -> list[Row]:
    """The writer against plain writes of the same bytes; extraction checks values where it makes float16 of them."""
    halves = {side: random_tokens(SAMPLES, shape) for side, shape in SHAPES.items()}
    floats = {side: values.astype(np.float32) for side, values in halves.items()}
    ways: dict[str, Callable[[Path], Seconds]] = {
        "raw 32": lambda work: write_raw(work / "files", halves, 32),
        "store 32": lambda work: write_stores(work / "files", halves, 32, checked=True),
        "raw 16": lambda work: write_raw(work / "files", halves, 16),
        "store 16": lambda work: write_stores(work / "files", halves, 16, checked=True),
        "store, range check": lambda work: write_stores(work / "files", halves, 32),
        "store float32": lambda work: write_stores(work / "files", floats, 32),
        "raw flushed": lambda work: write_raw(work / "files", halves, 32, flush=True),
        "store finished": lambda work: write_stores(work / "files", halves, 32, checked=True, finish=True),
    }
    runs = take_turns(folder, ways, 2 * repeats + 1)  # short, and at the mercy of the system's write-back
    return [
        speed_row("writer, batches of 32 / raw write", runs, "store 32", "raw 32", 0.6),
        speed_row("writer, batches of 16 / raw write", runs, "store 16", "raw 16", 0.6),
        speed_row("writer with its own range check / raw write", runs, "store, range check", "raw 32", None),
        speed_row("writer, float32 input / raw write of float16", runs, "store float32", "raw 32", None),
        speed_row("writer, finished and flushed / raw write, flushed", runs, "store finished", "raw flushed", None),
    ]  # fmt: skip


def zarr_rows(folder: Path, repeats: int) -> list[Row]:
    """The writer against zarr-python appending to one shard."""
    values = random_tokens(ZARR_SAMPLES, SHAPES["clip"])
    batch = ZARR_SAMPLES // ZARR_PARTS
    ways: dict[str, Callable[[Path], Seconds]] = {
        "zarr": lambda work: append_with_zarr(work / "files", values, batch),
        "store": lambda work: write_stores(work / "files", {"clip": values}, batch),
    }
    runs = take_turns(folder, ways, repeats)
    return [speed_row("writer / zarr-python appending 16 parts to one shard", runs, "store", "zarr", 10.0)]


def write_raw(folder: Path, values: Mapping[str, Floats], batch: int, *, flush: bool = False) -> Seconds:
    """One file for each side, without checksums."""
    folder.mkdir()
    watch = Watch()
    for side, array in values.items():
        with (folder / side).open("wb", buffering=0) as file:
            for first in range(0, len(array), batch):
                file.write(array[first : first + batch])
            if flush:
                os.fsync(file.fileno())
    return watch.seconds()


def write_stores(
    folder: Path, values: Mapping[str, Floats], batch: int, *, checked: bool = False, finish: bool = False
) -> Seconds:
    """One store for each side, tokens only; `finish` adds indexes, tables and metadata, and flushes it all."""
    folder.mkdir()
    rows = sample_rows(max(len(array) for array in values.values()))
    watch = Watch()
    with ExitStack() as stack:
        for side, array in values.items():
            shape = (array.shape[1], array.shape[2])
            writer = TokenStoreWriter(
                folder / side, token_shape=shape, pooled_width=None, attributes={"encoder": side}
            )
            stack.enter_context(writer)
            for first in range(0, len(array), batch):
                members = slice(first, first + batch)
                writer.append(
                    array[members],
                    None,
                    rows[members],
                    reasons={} if checked else None,
                    next_index=members.stop,
                )
            if finish:
                writer.finish()
    return watch.seconds()  # fmt: skip


def append_with_zarr(folder: Path, values: Floats, batch: int) -> Seconds:
    """One shard with the store's codecs, `batch` samples at a time."""
    folder.mkdir()
    watch = Watch()
    sharding = ShardingCodec(chunk_shape=(1, *values.shape[1:]), codecs=[BytesCodec(), Crc32cCodec()])
    array = zarr.create_array(
        folder,
        shape=values.shape,
        chunks=values.shape,
        dtype=values.dtype,
        filters=None,
        compressors=None,
        serializer=sharding,
    )
    for first in range(0, len(values), batch):
        array[first : first + batch] = values[first : first + batch]
    return watch.seconds()


def random_tokens(count: int, shape: tuple[int, int]) -> NDArray[np.float16]:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).half().numpy()


def sample_rows(count: int) -> list[SampleRow]:
    """Rows as long as real ones."""
    return [
        SampleRow(index, f"{index:09d}", ("a dog asleep on a red sofa",), 640, 480, f"{index:064x}")
        for index in range(count)
    ]


# Size on disk


def disk_rows(folder: Path) -> list[Row]:
    """Bytes and inodes of a finished EVA store with pooled embeddings."""
    values = random_tokens(SAMPLES, SHAPES["eva"])
    pooled = np.zeros((SAMPLES, POOLED_WIDTH), np.float16)
    store = folder / "disk"
    with TokenStoreWriter(
        store,
        token_shape=SHAPES["eva"],
        pooled_width=POOLED_WIDTH,
        attributes={"encoder": "eva"},
        restart=True,
    ) as writer:
        writer.append(values, pooled, sample_rows(SAMPLES), next_index=SAMPLES)
        writer.finish()
    paths = [store, *store.rglob("*")]
    on_disk = sum(path.stat().st_size for path in paths if path.is_file())
    return [
        row("bytes on disk / raw bytes", [on_disk / (values.nbytes + pooled.nbytes)], 1.001, at_most=True),
        row("inodes of a store", [float(len(paths))], 12.0, at_most=True),
    ]


# Int8


def int8_rows(folder: Path, repeats: int) -> list[Row]:
    """The worst token of stores with outliers, each with numbers of its own, after standardising the channels."""
    worst = []
    for seed in range(repeats):
        for side, shape in SHAPES.items():
            work = folder / f"int8-{side}-{seed}"
            half = write_outliers(work / "half", tokens_with_outliers(OUTLIER_SAMPLES, shape, seed))
            worst.append(convert_store(half, work / "int8").min_cosine_standardised)
            shutil.rmtree(work)
    made = row("int8: smallest cosine of a token, channels standardised, outlier data", worst, 0.9995)
    return [{**made, "value": round(min(worst), 6), "holds": min(worst) >= 0.9995}]


def tokens_with_outliers(count: int, shape: tuple[int, int], seed: int) -> NDArray[np.float16]:
    """Channels of log-normal size, 0.2 % of them shifted by 20 to 60 spreads, 3 % of the tokens ten times larger."""
    generator, (tokens, channels) = np.random.default_rng(seed), shape
    spread_D = np.exp(generator.standard_normal(channels))
    shift_D = generator.uniform(20, 60, channels) * generator.choice([-1, 1], channels)
    mean_D = np.where(generator.permutation(channels) < 0.002 * channels, spread_D * shift_D, 0)
    values_NTD = mean_D + spread_D * generator.standard_normal((count, tokens, channels))
    values_NTD[generator.random((count, tokens)) < 0.03] *= 10
    return values_NTD.astype(np.float16)


def write_outliers(folder: Path, values: NDArray[np.float16]) -> TokenStore:
    shape = (values.shape[1], values.shape[2])
    with TokenStoreWriter(
        folder, token_shape=shape, pooled_width=None, attributes={"encoder": "-"}
    ) as writer:
        writer.append(values, None, sample_rows(len(values)), next_index=len(values))
        writer.finish()
    return TokenStore(folder)


# Measuring


@dataclass(frozen=True)
class Seconds:
    cpu: float
    wall: float


class Watch:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self) -> Seconds:
        return Seconds(time.process_time() - self._cpu, time.perf_counter() - self._wall)


def take_turns(
    folder: Path, ways: Mapping[str, Callable[[Path], Seconds]], repeats: int
) -> dict[str, list[Seconds]]:
    """Seconds of each way and repeat, after one round that does not count.

    Before each way all earlier files are deleted and the disk comes to rest, so that none pays for another.
    """
    work = folder / "turn"
    runs: dict[str, list[Seconds]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            os.sync()
            taken = way(work)
            if repeat:
                runs[name].append(taken)
    shutil.rmtree(work)
    return runs


def speed_row(
    name: str, runs: Mapping[str, Sequence[Seconds]], contender: str, peer: str, demand: float | None
) -> Row:
    """How many times faster the contender is than its peer, by CPU time."""
    paired = list(zip(runs[peer], runs[contender], strict=True))
    wall = statistics.median(peer.wall / contender.wall for peer, contender in paired)
    return row(name, [peer.cpu / own.cpu for peer, own in paired], demand, wall=round(wall, 3))
