"""Tokens of many images that need not fit into memory: anything with a shape that gives rows when it is indexed.

A numpy array is one; so are the sampled tokens and the paired tokens of a data set that lie in stores on disk. All
passes over tokens read chunks of bounded size, so 5,000 images of 257 x 1024 tokens take no more memory than 500.
Shapes: N images, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
CHUNK_VALUES = 2**23
"""Values of one set in a chunk: 64 MiB in float64."""
MOST_ROWS = 256


class Tokens(Protocol):
    """[N, T, D]; rows are asked for by a slice or an array of row numbers and come as floating-point arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Integers, /) -> Floats: ...


def chunks(images: int, values_per_image: int = 1) -> Iterator[slice]:
    """Yield row ranges of at most `MOST_ROWS` images and about `CHUNK_VALUES` values."""
    step = min(MOST_ROWS, max(1, CHUNK_VALUES // max(1, values_per_image)))
    for start in range(0, images, step):
        yield slice(start, min(start + step, images))


def token_chunks(tokens: Tokens) -> Iterator[slice]:
    """Yield row ranges of `tokens` that fit into a chunk."""
    images, *values = tokens.shape
    yield from chunks(images, int(np.prod(values)))


def mean_over_images(tokens: Tokens) -> NDArray[np.float64]:
    """Mean of each position over images [T, D], in float64."""
    total = np.zeros(tokens.shape[1:])
    for rows in token_chunks(tokens):
        total += np.asarray(tokens[rows], np.float64).sum(axis=0)
    return total / len(tokens)
