"""Bars of the export: 192 images of CLIP tokens [257, 1024] in float16, from a store to a file of [192, 1024, 256].

Peer: numpy's transpose, astype and save of the same tokens as one array. The demand stands on both ways to bring the
same data: from the store, where either side reads the same records with checksums, and from memory, where nobody reads.
The contenders take turns, each into a new file; wall time decides, and the CPU seconds of all threads are given beside
it. Reported without a demand: numpy by chunks of 8 images with plain writes, the best that a few lines of numpy do;
and the other forms.

What limits the ratio from memory, in CPU seconds for 201 MB of output on two cores that others used too: an export took
0.20 in all (converting and transposing 0.054, the kernel's copy into a fresh file 0.045, looking for numbers that are
not finite 0.010, copying out of memory 0.006 when measured one by one; the rest is fresh buffers and threads in each
other's way), numpy 0.22. With about the same work, two cores can give little more than 2; more comes only where numpy's
one large array costs the kernel time to find pages (0.03 to 0.5 s from one round to the next). Smaller chunks (1, 2
MiB), fewer slots and a single worker changed nothing beyond the spread; a map of the output took twice the time of
writes, and fallocate before them saved 0.01 s, at the price of a file system that fills blocks with zeros where it has
no such call.
`rows(folder)` needs about 1 GB.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rows import Row, row

from flowkit.export.consumers import CONSUMERS
from flowkit.export.exporter import Content, write_export
from flowkit.export.sources import ArrayTokens, StoredTokens
from flowkit.features.samples import write_tokens
from flowkit.features.store import TokenStore

IMAGES, TOKENS, CHANNELS = 192, 257, 1024
BATCH, CHUNK = 32, 8
Halves = NDArray[np.float16]


def rows(folder: Path, *, repeats: int = 9) -> list[Row]:
    """Measure everything, writing below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "store"
    generator = np.random.default_rng(0)
    batches = (
        generator.standard_normal((BATCH, TOKENS, CHANNELS), np.float32) for _ in range(IMAGES // BATCH)
    )
    write_tokens(store, batches, {})
    in_memory = TokenStore(store).read_tokens(range(IMAGES))
    ways: dict[str, Callable[[Path], None]] = {
        "export": lambda work: export(work, "point-e", StoredTokens(store)),
        "export of rows": lambda work: export(work, "shap-e-diffusers", StoredTokens(store)),
        "numpy": lambda work: save_transposed(work, TokenStore(store).read_tokens(range(IMAGES))),
        "numpy by chunks": lambda work: write_chunks(work, TokenStore(store)),
        "numpy from memory": lambda work: save_transposed(work, in_memory),
        "export from memory": lambda work: export(work, "point-e", _Memory(in_memory)),
    }
    seconds, cpu = take_turns(folder / "turn", ways, repeats)
    check_same(folder / "same", store, in_memory)
    return [
        ratio("export / numpy transpose, astype, save", seconds, cpu, "export", "numpy", 2.5),
        ratio(
            "export / numpy, both from memory", seconds, cpu, "export from memory", "numpy from memory", 2.5
        ),
        ratio("export / numpy by chunks of 8 images", seconds, cpu, "export", "numpy by chunks", None),
        ratio(
            "export of rows as they are / export channels first",
            seconds,
            cpu,
            "export of rows",
            "export",
            None,
        ),
    ]


def export(folder: Path, consumer: str, source: StoredTokens | ArrayTokens) -> None:
    """What stage `export` does for one consumer."""
    write_export(folder / "export", CONSUMERS[consumer], source, Content("cls_patches"))


def save_transposed(folder: Path, tokens: Halves) -> None:
    """Three lines of numpy; without order="C", saving the strided result takes five times as long."""
    np.save(folder / "peer.npy", tokens[:, 1:].transpose(0, 2, 1).astype(np.float32, order="C"))


def write_chunks(folder: Path, store: TokenStore) -> None:
    """The same by chunks that stay in the cache, each written as it is."""
    with (folder / "peer.bin").open("wb", buffering=0) as file:
        for first in range(0, IMAGES, CHUNK):
            tokens = store.read_tokens(range(first, first + CHUNK))
            file.write(tokens[:, 1:].transpose(0, 2, 1).astype(np.float32, order="C"))


class _Memory(StoredTokens):
    """Tokens in memory, as a store would give them."""

    def __init__(self, tokens: Halves) -> None:
        self._tokens = tokens

    @property
    def shape(self) -> tuple[int, int, int]:
        images, tokens, channels = self._tokens.shape
        return images, tokens, channels

    @property
    def keys(self) -> list[str]:
        return [str(number) for number in range(len(self._tokens))]

    @property
    def refused_keys(self) -> list[str]:
        return []

    def read(self, first: int, last: int, out: object) -> None:
        out.numpy()[...] = self._tokens[first:last]  # type: ignore[attr-defined]


def check_same(folder: Path, store: Path, tokens: Halves) -> None:
    """What is compared must be the same numbers."""
    from flowkit.export.reading import read_export

    shutil.rmtree(folder, ignore_errors=True)
    export(folder, "point-e", StoredTokens(store))
    found = read_export(folder / "export").embeddings.numpy()
    if not np.array_equal(found, tokens[:, 1:].transpose(0, 2, 1).astype(np.float32)):
        raise AssertionError("the export does not hold the numbers that numpy writes")
    shutil.rmtree(folder)


Seconds = dict[str, list[float]]


def take_turns(
    work: Path, ways: Mapping[str, Callable[[Path], None]], repeats: int
) -> tuple[Seconds, Seconds]:
    """Wall and CPU seconds of each way and repeat, after one round that does not count; the disk rests in between."""
    wall: Seconds = {name: [] for name in ways}
    cpu: Seconds = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            os.sync()
            began, began_cpu = time.perf_counter(), time.process_time()
            way(work)
            taken, taken_cpu = time.perf_counter() - began, time.process_time() - began_cpu
            if repeat:
                wall[name].append(taken)
                cpu[name].append(taken_cpu)
    shutil.rmtree(work)
    return wall, cpu


def ratio(
    name: str,
    seconds: Mapping[str, Sequence[float]],
    cpu: Mapping[str, Sequence[float]],
    own: str,
    peer: str,
    demand: float | None,
) -> Row:
    """How many times faster the export is than its peer in the same round, with the median CPU seconds of both."""
    times = [theirs / ours for ours, theirs in zip(seconds[own], seconds[peer], strict=True)]
    spent = [float(f"{statistics.median(cpu[side]):.3g}") for side in (own, peer)]
    return row(name, times, demand, cpu_seconds=spent)
