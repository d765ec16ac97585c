"""Sampled tokens: what a translator made of a data set, for the evaluation, in one of two formats.

A token store with the array `tokens` alone. It comes from no tar, so its source is named "-". Sample i of the input
has index i in the table; a sample that is not finite, or beyond float16, is in the rejects table, so rows must be
aligned by `index`.

Unrounded tokens, where rounding is what is measured: `tokens.npy` [N, T, D] in float32 and `keys.json`, the keys of
the N samples in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features.store import TokenStore
from flowkit.features.stream import disk_errors
from flowkit.features.tables import SampleRow
from flowkit.features.writer import Counts, TokenStoreWriter
from flowkit.provenance import read_json, write_json

UNROUNDED_FILE, KEYS_FILE = "tokens.npy", "keys.json"


class SampledTokens:
    """Tokens [N, T, D] that `write_tokens` wrote, refused samples left out; rows are read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self._store = TokenStore(directory)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        return (len(self._store), *self._store.token_shape)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        wanted = np.arange(len(self))[rows]
        return self._store.read_tokens(wanted).astype(np.float32)

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return [str(key) for key in self._store.samples["key"]]

    @property
    def indices(self) -> list[int]:
        """Which of the images that were sampled each one is."""
        return [int(index) for index in self._store.samples["index"]]

    @property
    def refused_keys(self) -> list[str]:
        """Keys of the samples that were not finite or beyond float16."""
        return [str(key) for key in self._store.rejects["key"]]


class UnroundedTokens:
    """Tokens [N, T, D] that `write_unrounded` wrote; rows are read when they are asked for.

    Raises `StoreError` if a file is missing, damaged or does not fit the other.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / UNROUNDED_FILE
        try:
            self._tokens: NDArray[np.float32] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{path} is missing or damaged ({error}); make the samples again") from error
        self._keys: list[str] = read_json(directory / KEYS_FILE)
        if self._tokens.ndim != 3 or self._tokens.dtype != np.float32 or len(self._tokens) != len(self._keys):
            raise StoreError(
                f"{path} holds {self._tokens.dtype} {self._tokens.shape} for {len(self._keys)} keys, expected float32 "
                "[samples, tokens, channels]; make the samples again"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        samples, tokens, channels = self._tokens.shape
        return samples, tokens, channels

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        return np.array(self._tokens[rows])

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return list(self._keys)

    @property
    def indices(self) -> list[int]:
        """Which of the images that were sampled each one is."""
        return list(range(len(self)))

    @property
    def refused_keys(self) -> list[str]:
        """None: every float32 number can be written."""
        return []


Samples = SampledTokens | UnroundedTokens
"""Tokens of a sampler, in either format."""


def open_samples(directory: Path) -> Samples:
    """Return the samples in a folder, in whichever format they are."""
    if (directory / UNROUNDED_FILE).exists():
        return UnroundedTokens(directory)
    return SampledTokens(directory)


def write_unrounded(
    directory: Path, batches: Iterable[NDArray[np.float32]], *, keys: Sequence[str]
) -> UnroundedTokens:
    """Write the arrays [n, T, D] of `batches`, one after the other, as float32 into `directory`.

    `keys` names the samples; the file of keys comes last. What an earlier, killed call left in `directory` is replaced.
    Raises `StoreError` if there is no batch, the number of keys does not fit, or the disk is full.
    """
    arrays = iter(batches)
    first = next(arrays, None)
    if first is None:
        raise StoreError(f"{directory}: there are no sampled tokens to write, expected at least one batch")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / KEYS_FILE).unlink(missing_ok=True)
    path, written = directory / UNROUNDED_FILE, 0
    # no memory map: on a full disk the kernel would kill whoever writes to one
    with disk_errors(path), path.open("wb") as file:
        shape = (len(keys), *first.shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for array in chain([first], arrays):
            if array.shape[1:] != first.shape[1:]:
                raise StoreError(f"{path}: a batch has the shape {array.shape}, the first had {first.shape}")
            file.write(np.ascontiguousarray(array, "<f4").data)
            written += len(array)
    if written != len(keys):
        raise StoreError(f"{path}: {len(keys)} keys for {written} samples")
    write_json(directory / KEYS_FILE, list(keys))
    return UnroundedTokens(directory)


def by_view(tokens_NTD: NDArray[np.float32], views: int) -> NDArray[np.float32]:
    """Return tokens [N V, T / V, D], one row per view, of samples whose views stand one after the other in T."""
    samples, tokens, channels = tokens_NTD.shape
    return tokens_NTD.reshape(samples * views, tokens // views, channels)


def whole_samples(batches: Iterable[NDArray[np.float32]], views: int) -> Iterator[NDArray[np.float32]]:
    """Join tokens [n, T, D] of images, whose batches end anywhere, into samples of `views` images: [m, V T, D].

    Raises `ValueError` if the last sample is not whole.
    """
    rest: NDArray[np.float32] | None = None
    for batch in batches:
        images = batch if rest is None else np.concatenate([rest, batch])
        whole = len(images) // views
        rest = images[whole * views :]
        if whole:
            yield images[: whole * views].reshape(whole, -1, images.shape[2])
    if rest is not None and len(rest):
        raise ValueError(f"{len(rest)} images are left over, expected samples of {views}")


def write_tokens(
    directory: Path,
    batches: Iterable[NDArray[np.floating]],
    attributes: Mapping[str, Any],
    *,
    keys: Sequence[str] | None = None,
) -> Counts:
    """Write the arrays [n, T, D] of `batches`, one after the other, as a complete store in `directory`.

    `keys` names the samples; without it the key of a sample is its number. What an earlier, killed call left
    in `directory` is replaced. Raises `StoreError` if there is no batch or the number of keys does not fit.
    """
    arrays = iter(batches)
    first = next(arrays, None)
    if first is None:
        raise StoreError(f"{directory}: there are no sampled tokens to write, expected at least one batch")
    with TokenStoreWriter(
        directory,
        token_shape=(first.shape[1], first.shape[2]),
        pooled_width=None,
        attributes={"source": {"name": "-"}, **attributes},
        restart=True,
    ) as writer:
        for array in chain([first], arrays):
            start, end = writer.next_index, writer.next_index + len(array)
            names = [str(index) for index in range(start, end)] if keys is None else keys[start:end]
            if len(names) < len(array):
                raise StoreError(f"{directory}: {len(keys or ())} keys for more than {end - 1} samples")
            rows = [SampleRow(index, key) for index, key in zip(range(start, end), names, strict=True)]
            writer.append(array, None, rows, next_index=end)
        if keys is not None and len(keys) != writer.next_index:
            raise StoreError(f"{directory}: {len(keys)} keys for {writer.next_index} samples")
        return writer.finish()
