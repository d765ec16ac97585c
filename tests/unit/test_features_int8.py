"""Int8 stores: half the size, close to the original in every channel, and readable as float16 by whoever comes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from features_material import files_of, sample_row, write_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features.int8 import ErrorTable, convert_store
from flowkit.features.quantisation import channels_of, dequantise, quantise
from flowkit.features.store import TokenStore
from flowkit.features.tables import RejectRow
from flowkit.features.writer import TokenStoreWriter

TOKENS, CHANNELS, POOLED = 33, 512, 6


def tokens_with_outliers(seed: int, count: int = 4, channels: int = CHANNELS) -> NDArray[np.float16]:
    """What vision encoders do: channels of all sizes, a few far from zero by 20 to 60 spreads, some huge tokens."""
    generator = np.random.default_rng(seed)
    spread = np.exp(generator.standard_normal(channels))
    shifted = generator.random(channels) < 0.002
    shifted[0] = True
    signs = generator.choice([-1, 1], channels)
    mean = np.where(shifted, spread * generator.uniform(20, 60, channels) * signs, 0)
    values = mean + spread * generator.standard_normal((count, TOKENS, channels))
    values[generator.random((count, TOKENS)) < 0.03] *= 10
    return values.astype(np.float16)


def write_store(folder: Path, values: NDArray[np.float16], *, pooled: bool = True) -> TokenStore:
    attributes = {"encoder": "toy", "has_cls": True, "source": {"name": "0.tar", "sha256": "ab"}}
    with TokenStoreWriter(
        folder,
        token_shape=(values.shape[1], values.shape[2]),
        pooled_width=POOLED if pooled else None,
        attributes=attributes,
    ) as writer:
        rows = [sample_row(index) for index in range(len(values))]
        vectors = np.arange(len(values) * POOLED, dtype=np.float16).reshape(-1, POOLED) if pooled else None
        rejects = [RejectRow(len(values), "bad", "image undecodable")]
        writer.append(values, vectors, rows, rejects=rejects, next_index=len(values) + 1)
        writer.finish()
    return TokenStore(folder)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return write_store(tmp_path / "half", tokens_with_outliers(0))


@pytest.mark.parametrize("seed", range(5))
def test_every_channel_survives_outliers(tmp_path: Path, seed: int) -> None:
    values = tokens_with_outliers(seed)
    errors = convert_store(write_store(tmp_path / "half", values), tmp_path / "int8")
    assert errors.min_cosine_standardised >= 0.9995
    assert errors.min_cosine_standardised <= errors.mean_cosine_standardised < 1
    assert errors.rms_error_in_std < 0.03
    assert errors.relative_l2 < 0.01
    assert errors.min_cosine >= 0.999


def test_scale_per_token_alone_would_not_do() -> None:
    """The bar above is not met by the simpler scheme, so it measures what it should."""
    values = tokens_with_outliers(0).astype(np.float32)
    scale = np.abs(values).max(axis=2, keepdims=True) / 127
    simple = np.rint(values / scale) * scale
    mean, std = values.mean((0, 1)), values.std((0, 1))
    a, b = (values - mean) / std, (simple - mean) / std
    cosines = (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    assert cosines.min() < 0.99


def test_error_table_is_that_of_a_plain_computation(store: TokenStore, tmp_path: Path) -> None:
    errors = convert_store(store, tmp_path / "int8")
    before = store.read_tokens(range(4)).astype(np.float64)
    after = TokenStore(tmp_path / "int8").read_tokens(range(4)).astype(np.float64)
    mean, std = before.mean((0, 1)), before.std((0, 1))

    def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)

    plain, standardised = cosines(before, after), cosines((before - mean) / std, (after - mean) / std)
    expected = ErrorTable(
        samples=4,
        mean_cosine=plain.mean(),
        min_cosine=plain.min(),
        mean_cosine_standardised=standardised.mean(),
        min_cosine_standardised=standardised.min(),
        rms_error_in_std=float(np.sqrt((((before - after) / std) ** 2).mean())),
        relative_l2=float(np.linalg.norm(before - after) / np.linalg.norm(before)),
    )
    assert asdict(errors) == pytest.approx(asdict(expected), rel=1e-5)
    json.dumps(asdict(errors), allow_nan=False)


def test_int8_store_reads_like_the_store_it_came_from(store: TokenStore, tmp_path: Path) -> None:
    convert_store(store, tmp_path / "int8")
    converted = TokenStore(tmp_path / "int8", encoder="toy")
    assert (converted.storage, store.storage) == ("int8", "float16")
    assert (len(converted), converted.token_shape, converted.pooled_width) == (4, (TOKENS, CHANNELS), POOLED)
    assert converted.samples.equals(store.samples)
    assert converted.rejects.equals(store.rejects)
    np.testing.assert_array_equal(converted.read_pooled(range(4)), store.read_pooled(range(4)))
    buffer = np.zeros((3, TOKENS, CHANNELS), np.float16)
    converted.read_into("tokens", np.array([2, 0]), buffer, np.array([0, 2]))
    np.testing.assert_array_equal(buffer[[0, 2]], converted.read_tokens([2, 0]))
    assert not buffer[1].any()
    assert converted.verify() == 4 + 4 + 2 + 4
    assert converted.attributes["source"]["converted_from"] == store.digest()


def test_zarr_python_gives_the_same_bits_by_the_formula(store: TokenStore, tmp_path: Path) -> None:
    convert_store(store, tmp_path / "int8")
    converted = TokenStore(tmp_path / "int8")
    group = converted.as_zarr()
    steps, scale = np.asarray(group["tokens"][:]), np.asarray(group["tokens_scale"][:])
    mean, std = np.asarray(group["channels"][:])
    assert (steps.dtype, scale.dtype, mean.dtype) == (np.int8, np.float32, np.float32)
    values = steps.astype(np.float32) * scale[:, :, None] * std + mean
    np.testing.assert_array_equal(values.astype(np.float16), converted.read_tokens(range(4)))


def test_half_the_bytes_and_few_inodes(tmp_path: Path) -> None:
    store = write_store(tmp_path / "half", tokens_with_outliers(0, count=40, channels=1024))
    convert_store(store, tmp_path / "int8")
    sizes = [
        sum((path / "tokens/c.0.0.0").stat().st_size for path in [tmp_path / name])
        for name in ("half", "int8")
    ]
    assert sizes[1] / sizes[0] < 0.501
    assert len(list((tmp_path / "int8").rglob("*"))) + 1 <= 16


def test_conversion_is_the_same_again_and_after_a_kill(store: TokenStore, tmp_path: Path) -> None:
    errors = convert_store(store, tmp_path / "int8")
    expected = files_of(tmp_path / "int8")
    assert convert_store(store, tmp_path / "int8") == errors  # finished: only compared
    assert files_of(tmp_path / "int8") == expected
    (tmp_path / "int8/zarr.json").unlink()  # killed before the last step, in the middle of a file
    (tmp_path / "int8/tokens/c.0.0.0").write_bytes(b"half a rec")
    assert convert_store(store, tmp_path / "int8") == errors
    assert files_of(tmp_path / "int8") == expected


def test_other_store_or_int8_store_is_refused(store: TokenStore, tmp_path: Path) -> None:
    convert_store(store, tmp_path / "int8")
    other = write_store(tmp_path / "other", tokens_with_outliers(1))
    with pytest.raises(StoreError, match=r"int8 was converted from another store than .*other; delete"):
        convert_store(other, tmp_path / "int8")
    with pytest.raises(StoreError, match="is int8 already"):
        convert_store(TokenStore(tmp_path / "int8"), tmp_path / "again")


def test_store_without_samples_or_pooled_converts(tmp_path: Path) -> None:
    store = write_store(tmp_path / "half", np.empty((0, 3, 4), np.float16), pooled=False)
    errors = convert_store(store, tmp_path / "int8")
    assert (errors.samples, errors.min_cosine_standardised, errors.relative_l2) == (0, 1.0, 0.0)
    assert TokenStore(tmp_path / "int8").read_tokens([]).shape == (0, 3, 4)


@pytest.mark.parametrize("name", ["tokens/c.0.0.0", "tokens_scale/c.0.0", "channels/c.0.0", "pooled/c.0.0"])
def test_flipped_bit_in_any_array_is_found(store: TokenStore, tmp_path: Path, name: str) -> None:
    convert_store(store, tmp_path / "int8")
    content = bytearray((tmp_path / "int8" / name).read_bytes())
    content[5] ^= 4
    (tmp_path / "int8" / name).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{name}: row 0 does not match its checksum"):
        TokenStore(tmp_path / "int8").verify()


def test_unknown_storage_is_refused(tmp_path: Path) -> None:
    with TokenStoreWriter(
        tmp_path / "store", token_shape=(2, 3), pooled_width=None, attributes={"storage": "int4"}
    ) as writer:
        writer.finish()
    with pytest.raises(StoreError, match="storage is 'int4', expected one of float16, int8"):
        TokenStore(tmp_path / "store")


def test_converting_a_store_of_small_batches_keeps_every_value(tmp_path: Path) -> None:
    store = TokenStore(write_batches(tmp_path / "half", 5))
    errors = convert_store(store, tmp_path / "int8")
    assert errors.samples == len(store) == 17
    assert errors.min_cosine_standardised > 0.9995


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    constant=st.sampled_from([0.0, 1.0, -300.0, 65504.0]),
    scale=st.sampled_from([1e-7, 1e-3, 1.0, 2e4]),
)
def test_constant_channels_are_exact_and_nothing_overflows(seed: int, constant: float, scale: float) -> None:
    generator = np.random.default_rng(seed)
    values = np.clip(generator.standard_normal((6, 10)) * scale, -65504, 65504).astype(np.float16)
    values[:, 3] = constant
    channels = channels_of([values], 10)
    steps, scales = quantise(values, channels)
    out = np.empty_like(values)
    dequantise(steps, scales, channels, out)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:, 3], values[:, 3])
    error = np.abs(out.astype(np.float64) - values) / channels.std_D
    rounding = np.abs(values.astype(np.float64)) * 2.0**-10 + 6e-8  # of float16, once on either side
    assert (error <= (0.5 * scales[:, None] + rounding / channels.std_D) * (1 + 1e-5)).all()
