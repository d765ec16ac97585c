"""Tokens of many images that need not fit into memory: anything with a shape that gives rows when it is indexed.

A numpy array is one; so are the sampled tokens and the paired tokens of a data set that lie in stores on disk. All
passes over tokens read chunks of bounded size, so 5,000 images of 257 x 1024 tokens take no more memory than 500.
Shapes: N images, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
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


def mean_over_images(tokens: Tokens) -> Array:
    """Mean of each position over images [T, D], in float64."""
    total = np.zeros(tokens.shape[1:])
    for rows in token_chunks(tokens):
        total += tokens[rows].sum(axis=0, dtype=np.float64)
    return total / len(tokens)


def evenly_spaced(count: int, at_most: int) -> Integers:
    """Return the rows of at most `at_most` of `count` images, evenly spaced from the first on."""
    kept = min(count, at_most)
    return np.arange(kept, dtype=np.int64) * count // max(kept, 1)


@dataclass(frozen=True)
class Chosen:
    """Some rows of tokens, as tokens of their own."""

    tokens: Tokens
    rows: Integers

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T, D)."""
        return (len(self.rows), *self.tokens.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Integers) -> Floats:
        return self.tokens[self.rows[rows]]
