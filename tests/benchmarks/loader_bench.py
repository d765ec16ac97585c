"""Bars of the training loader, each a ratio of CPU time against a peer in the same run.

In every repeat each contender (loader_peers.py) fills its buffers with some batches that do not count, then delivers
one epoch, all files in the page cache. `rows(folder)` makes the data below `folder` once, about 2.3 GB. Rows whose
demand is None are reported only.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from loader_peers import (
    BATCH,
    EPOCH_BATCHES,
    Batches,
    Material,
    contenders_of,
    demand_same_tokens,
    flowkit_ring,
    memmap_fresh,
)
from numpy.typing import NDArray
from rows import Row, row

from flowkit.features.loader import PairedTokens
from flowkit.features.order import block_order, order
from flowkit.features.pairs import PAIRS_SCHEMA
from flowkit.features.tables import write_parquet

WARM_BATCHES = 5
READ_BYTES = 1 << 23
PAIRS_OF_A_LONG_RUN = 5_000_000


def rows(folder: Path, *, repeats: int = 7) -> list[Row]:
    """Measure everything; data are made below `folder` if they are not there yet."""
    material = Material(folder / "loader")
    material.make()
    runs = compare_loaders(material, repeats)
    return [
        *[_ratio_row(runs, name, *bar) for name, bar in BARS.items()],
        *cold_rows(material, repeats),
        *shuffle_rows(),
        *resume_rows(material, repeats),
    ]


def compare_loaders(material: Material, repeats: int) -> dict[str, list[Seconds]]:
    """Seconds of an epoch of everybody; no file stays mapped, for those could not be dropped from memory later.

    All files come into memory in one way, because the size of the pages depends on it, and the speed on that.
    """
    for path in material.data_files():
        drop_from_memory(path)
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass
    contenders = contenders_of(material)
    demand_same_tokens(contenders, material)
    return measure(contenders, repeats)


@dataclass(frozen=True)
class Seconds:
    cpu: float
    wall: float


def measure(contenders: Mapping[str, Callable[[], Batches]], repeats: int) -> dict[str, list[Seconds]]:
    """Seconds of one epoch, for each contender and repeat; the order changes from repeat to repeat."""
    names = list(contenders)
    runs: dict[str, list[Seconds]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            with closing(contenders[name]()) as batches:
                runs[name].append(_time_epoch(batches))
    return runs


def _time_epoch(batches: Batches) -> Seconds:
    for _ in islice(batches, WARM_BATCHES):
        pass
    cpu, wall = time.process_time(), time.perf_counter()
    for source, target in islice(batches, EPOCH_BATCHES):
        float(source[0, 0, 0] + target[-1, -1, -1])
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


BARS: dict[str, tuple[str, str, float | None]] = {
    "loader, reused buffers / np.memmap": ("ring", "memmap", 1.2),
    "loader, reused buffers / np.memmap in the same ring": ("ring", "memmap ring", None),
    "loader, every checksum verified / np.memmap": ("ring checked", "memmap", 1.0),
    "loader, fresh batch, checksums verified / np.memmap": ("fresh", "memmap", 0.9),
    "loader, checksums verified / zarr-python z[i]": ("ring checked", "zarr", 3.5),
    "loader, checksums verified / webdataset tar of .npy": ("ring checked", "webdataset", 2.5),
    "loader, checksums verified, 2 readers / np.memmap": ("ring checked 2 readers", "memmap", None),
    "loader, checksums verified, blocks / np.memmap": ("ring checked blocks", "memmap", None),
}
"""Name of the bar -> contender, peer, smallest ratio of their speeds; None: reported only."""


def _ratio_row(
    runs: Mapping[str, list[Seconds]], name: str, contender: str, peer: str, demand: float | None
) -> Row:
    paired = list(zip(runs[peer], runs[contender], strict=True))
    ratios = [slow.cpu / fast.cpu for slow, fast in paired]
    wall = statistics.median(slow.wall / fast.wall for slow, fast in paired)
    return row(name, ratios, demand, wall=round(wall, 3))


def cold_rows(material: Material, repeats: int) -> list[Row]:
    """Wall time of an epoch from disk; no rows where the page cache cannot be dropped. Disks differ: no demand."""
    pairs = material.open()
    ways: dict[str, Callable[[], Batches]] = {
        "memmap": lambda: memmap_fresh(material.mapped()),
        "1 reader": lambda: flowkit_ring(pairs),
        "4 readers": lambda: flowkit_ring(pairs, readers=4),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, begin in ways.items():
            taken = _time_cold(material, begin)
            if taken is None:
                return []
            seconds[way].append(taken)
    return [
        row(
            f"loader from disk, checksums verified, {way}, wall / np.memmap",
            [slow / fast for slow, fast in zip(seconds["memmap"], seconds[way], strict=True)],
            None,
        )
        for way in list(ways)[1:]
    ]


def _time_cold(material: Material, begin: Callable[[], Batches]) -> float | None:
    """Seconds of an epoch after all files left the page cache, or None if it did not come from disk."""
    for path in material.data_files():
        drop_from_memory(path)
    before, started, delivered = _bytes_from_disk(), time.perf_counter(), 0
    with closing(begin()) as batches:
        for source, target in islice(batches, EPOCH_BATCHES):
            delivered += source.nbytes + target.nbytes
        taken = time.perf_counter() - started
    return taken if _bytes_from_disk() - before > 0.9 * delivered else None


def drop_from_memory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _bytes_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("read_bytes"))


def shuffle_rows(shards: int = 500, per_shard: int = 1000, batch: int = 128) -> list[Row]:
    """How well block order mixes shards, against a full random order, over whole epochs."""
    attribute = np.random.default_rng(0).standard_normal(shards)

    def mixed(ids: NDArray[np.int64]) -> tuple[float, float]:
        shard = (ids // per_shard)[: len(ids) // batch * batch].reshape(-1, batch)
        distinct = (1 + (np.diff(np.sort(shard, axis=1), axis=1) > 0).sum(axis=1)).mean()
        return float(distinct), float(attribute[shard].mean(axis=1).var() / (attribute.var() / batch))

    count = shards * per_shard
    full = [mixed(order(0, epoch, count)) for epoch in range(3)]
    blocks = [mixed(block_order(0, epoch, count)) for epoch in range(3)]
    return [
        row(
            "blocks: distinct shards per batch / full random",
            [b[0] / f[0] for b, f in zip(blocks, full, strict=True)],
            0.95,
        ),
        row(
            "blocks: variance of a shard's attribute / independent", [b[1] for b in blocks], 1.2, at_most=True
        ),
    ]


def resume_rows(material: Material, repeats: int) -> list[Row]:
    """Seconds from asking for a late step of a run over 5 M pairs to its first batch."""
    path = material.folder / "long.parquet"
    if not path.exists():
        table = pq.read_table(material.pairs)
        repeated = table.take(np.arange(PAIRS_OF_A_LONG_RUN) * len(table) // PAIRS_OF_A_LONG_RUN)
        write_parquet(path, repeated.cast(PAIRS_SCHEMA.with_metadata(table.schema.metadata)))
    opened = time.perf_counter()
    pairs = PairedTokens(path, material.stores("source"), material.stores("target"))
    opened = time.perf_counter() - opened
    seconds = []
    for repeat in range(repeats):
        started = time.perf_counter()
        with closing(
            pairs.batches(seed=repeat, batch_size=BATCH, start_step=12 * PAIRS_OF_A_LONG_RUN // BATCH - 99)
        ) as batches:
            next(batches)
            seconds.append(time.perf_counter() - started)
    name = "first batch after a resume at a late step, 5 M pairs, wall seconds"
    return [row(name, seconds, 2.0, at_most=True, opening_seconds=round(opened, 3))]


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(line) + "\n" for line in rows(Path(sys.argv[1])))
