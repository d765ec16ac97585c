"""Bars of the export: 192 images of CLIP tokens [257, 1024] in float16, from a store to a file of [192, 1024, 256].

Peer: numpy's transpose, astype and save of the same tokens, read by the same reader. The contenders take turns, each
into a new file; wall time decides. Reported beside it: numpy by chunks of 8 images with plain writes, the best that a
few lines of numpy do; the same from memory, so that no reading is counted on either side; and the other forms.
`rows(folder)` needs about 1 GB.
"""

from __future__ import annotations

import os
import shutil
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
    seconds = take_turns(folder / "turn", ways, repeats)
    check_same(folder / "same", store, in_memory)
    return [
        ratio("export / numpy transpose, astype, save", seconds, "export", "numpy", 2.5),
        ratio("export / numpy, both from memory", seconds, "export from memory", "numpy from memory", None),
        ratio("export / numpy by chunks of 8 images", seconds, "export", "numpy by chunks", None),
        ratio(
            "export of rows as they are / export channels first", seconds, "export of rows", "export", None
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


def take_turns(
    work: Path, ways: Mapping[str, Callable[[Path], None]], repeats: int
) -> dict[str, list[float]]:
    """Wall seconds of each way and repeat, after one round that does not count; the disk comes to rest in between."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            os.sync()
            began = time.perf_counter()
            way(work)
            taken = time.perf_counter() - began
            if repeat:
                seconds[name].append(taken)
    shutil.rmtree(work)
    return seconds


def ratio(
    name: str, seconds: Mapping[str, Sequence[float]], own: str, peer: str, demand: float | None
) -> Row:
    """How many times faster the export is than its peer in the same round."""
    return row(
        name, [theirs / ours for ours, theirs in zip(seconds[own], seconds[peer], strict=True)], demand
    )
