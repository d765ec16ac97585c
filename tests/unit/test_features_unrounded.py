"""Samples in float32: read as sampled tokens are, and refused where they are not whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from features_material import files_of

from flowkit.errors import StoreError
from flowkit.features.samples import (
    SampledTokens,
    UnroundedTokens,
    open_samples,
    write_tokens,
    write_unrounded,
)

TOKENS = np.random.default_rng(0).standard_normal((11, 3, 2)).astype(np.float32)
KEYS = [f"image-ü-{number}" for number in range(len(TOKENS))]


def test_every_bit_comes_back_in_any_order(tmp_path: Path) -> None:
    write_unrounded(tmp_path / "a", [TOKENS[:4], TOKENS[4:5], TOKENS[5:]], keys=KEYS)
    read = open_samples(tmp_path / "a")
    assert isinstance(read, UnroundedTokens)
    assert (read.shape, len(read), read.keys, read.refused_keys) == ((11, 3, 2), 11, KEYS, [])
    assert np.array_equal(read[2:9], TOKENS[2:9])
    assert np.array_equal(read[np.array([10, 0, 3])], TOKENS[[10, 0, 3]])
    read[:][:] = 0  # what is read belongs to the reader
    assert np.array_equal(read[:], TOKENS)


def test_both_formats_are_read_alike(tmp_path: Path) -> None:
    halves = TOKENS.astype(np.float16).astype(np.float32)
    write_unrounded(tmp_path / "exact", [halves], keys=KEYS)
    write_tokens(tmp_path / "store", [halves], {}, keys=KEYS)
    one, other = open_samples(tmp_path / "exact"), open_samples(tmp_path / "store")
    assert isinstance(other, SampledTokens)
    for read in (one, other):
        assert (read.shape, len(read), read.keys, read.refused_keys) == ((11, 3, 2), 11, KEYS, [])
        for rows in (slice(None), slice(3, 7), np.array([5, 1])):
            assert read[rows].dtype == np.float32
            assert np.array_equal(read[rows], halves[rows])


def test_any_reader_of_numpy_files_opens_them_and_batches_do_not_matter(tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 5), ("c", 11)):
        batches = [TOKENS[first : first + size] for first in range(0, len(TOKENS), size)]
        write_unrounded(tmp_path / name, batches, keys=KEYS)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert np.array_equal(np.load(tmp_path / "a" / "tokens.npy"), TOKENS)


def test_what_a_killed_call_left_is_no_result_and_is_replaced(tmp_path: Path) -> None:
    def dying():
        yield TOKENS[:4]
        raise KeyboardInterrupt

    write_unrounded(tmp_path / "whole", [TOKENS], keys=KEYS)
    write_unrounded(tmp_path / "killed", [TOKENS + 1], keys=KEYS)
    with pytest.raises(KeyboardInterrupt):
        write_unrounded(tmp_path / "killed", dying(), keys=KEYS)
    with pytest.raises(StoreError, match=r"tokens\.npy is missing or damaged"):
        open_samples(tmp_path / "killed")
    write_unrounded(tmp_path / "killed", [TOKENS], keys=KEYS)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "no sampled tokens to write"),
        ([TOKENS[:5]], "11 keys for 5 samples"),
        ([TOKENS, TOKENS], "11 keys for 22 samples"),
        ([TOKENS[:5], TOKENS[5:, :2]], r"a batch has the shape \(6, 2, 2\), the first had \(5, 3, 2\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, batches: list[np.ndarray], says: str) -> None:
    with pytest.raises(StoreError, match=says):
        write_unrounded(tmp_path, batches, keys=KEYS)
    assert not (tmp_path / "keys.json").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    write_unrounded(tmp_path, [TOKENS], keys=KEYS)
    np.save(tmp_path / "tokens.npy", TOKENS[:7])
    with pytest.raises(StoreError, match=r"holds float32 \(7, 3, 2\) for 11 keys"):
        open_samples(tmp_path)
    np.save(tmp_path / "tokens.npy", TOKENS.astype(np.float64))
    with pytest.raises(StoreError, match="holds float64"):
        open_samples(tmp_path)
    (tmp_path / "tokens.npy").write_bytes(b"")
    with pytest.raises(StoreError, match=r"tokens\.npy is missing or damaged"):
        open_samples(tmp_path)
