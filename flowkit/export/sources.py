"""Where exported tokens come from: samples of a run, in either format, or any tokens that are read row by row.

Samples are on the raw scale of the target's tokens: the translator undoes the scale that a run was trained in before
it hands them over, so nothing is undone here. Shapes: N images, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.features.samples import UNROUNDED_FILE, UnroundedTokens
from flowkit.features.store import TokenStore


class TokenSource(Protocol):
    """Tokens [N, T, D] with the keys of their images; several threads may read at once."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of what is read."""
        ...

    @property
    def keys(self) -> list[str]:
        """One per row."""
        ...

    @property
    def refused_keys(self) -> list[str]:
        """Keys of images that have no row, because their tokens could not be kept."""
        ...

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Read the rows from `first` to before `last` into `out` [last - first, T, D] of `dtype`."""
        ...


class StoredTokens:
    """The tokens of a token store, as they lie there; every checksum is verified. Raises `StoreError` for damage."""

    dtype = torch.float16

    def __init__(self, directory: Path) -> None:
        self._store = TokenStore(directory)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        return (len(self._store), *self._store.token_shape)

    @property
    def keys(self) -> list[str]:
        """One per row."""
        return [str(key) for key in self._store.samples["key"]]

    @property
    def refused_keys(self) -> list[str]:
        """Keys in the rejects table: not finite, or beyond float16."""
        return [str(key) for key in self._store.rejects["key"]]

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Read rows into `out`."""
        self._store.read_tokens(range(first, last), out.numpy())


class Rows(Protocol):
    """What gives rows of tokens as float32 arrays when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


class ArrayTokens:
    """Any tokens that are read row by row, with the keys that belong to them."""

    dtype = torch.float32

    def __init__(self, rows: Rows, keys: Sequence[str]) -> None:
        if len(keys) != rows.shape[0]:
            raise ValueError(f"{len(keys)} keys for {rows.shape[0]} rows")
        self._rows, self._keys = rows, list(keys)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        images, tokens, channels = self._rows.shape
        return images, tokens, channels

    @property
    def keys(self) -> list[str]:
        """One per row."""
        return list(self._keys)

    @property
    def refused_keys(self) -> list[str]:
        """None: every row is there."""
        return []

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Read rows into `out`."""
        out.copy_(torch.from_numpy(np.ascontiguousarray(self._rows[first:last])))


def sampled(directory: Path) -> TokenSource:
    """Return the samples in a folder, in whichever format they are."""
    if (directory / UNROUNDED_FILE).exists():
        samples = UnroundedTokens(directory)
        return ArrayTokens(samples, samples.keys)
    return StoredTokens(directory)
