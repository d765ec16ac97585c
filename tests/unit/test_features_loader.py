"""The training loader: right rows, an order that is a pure function, and exact resume at any step."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import StoreError
from flowkit.features.loader import Layout, PairedTokens, order
from flowkit.features.pairs import merge_pairs
from flowkit.features.prefetch import prefetched
from flowkit.features.store import TokenStore
from flowkit.features.tables import SampleRow
from flowkit.features.writer import TokenStoreWriter

SOURCE_SHAPE, TARGET_SHAPE, TARS, PER_TAR = (5, 6), (5, 4), 3, 7


def _write(
    path: Path, tar: int, shape: tuple[int, int], encoder: str, *, skip: int, has_cls: bool = True
) -> Path:
    """The store of tar `tar`, without member `skip`; every value tells tar, member, token and channel."""
    members = [index for index in range(PER_TAR) if index != skip]
    values = np.random.default_rng([tar, len(encoder)]).standard_normal((PER_TAR, *shape)).astype(np.float16)
    attributes = {
        "encoder": encoder,
        "has_cls": has_cls,
        "source": {"name": f"{tar}.tar", "sha256": str(tar)},
    }
    with TokenStoreWriter(path, token_shape=shape, pooled_width=shape[1], attributes=attributes) as writer:
        rows = [SampleRow(index, f"{tar}-{index}", (f"caption {tar} {index}",)) for index in members]
        writer.append(values[members], values[members].mean(1), rows, next_index=PER_TAR)
        writer.finish()
    return path


Stores = tuple[Path, list[Path], list[Path]]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("features")
    sources = [_write(folder / f"s{tar}", tar, SOURCE_SHAPE, "eva", skip=tar) for tar in range(TARS)]
    targets = [_write(folder / f"t{tar}", tar, TARGET_SHAPE, "clip", skip=5) for tar in range(TARS)]
    merge_pairs(sources, targets, folder / "pairs.parquet")
    return folder / "pairs.parquet", sources, targets


@pytest.fixture(scope="module")
def data(stores: Stores) -> PairedTokens:
    return PairedTokens(*stores)


def test_batch_holds_the_tokens_of_each_pair(data: PairedTokens, stores: Stores) -> None:
    assert (len(data), data.source_shape, data.target_shape) == (15, SOURCE_SHAPE, TARGET_SHAPE)
    ids = np.array([14, 0, 7, 0])
    source, target = data.batch(ids)
    assert source.dtype == target.dtype == torch.float32
    for position, pair in enumerate(data.pairs.iloc[ids].itertuples()):
        left, right = TokenStore(stores[1][pair.tar]), TokenStore(stores[2][pair.tar])
        assert left.samples["key"][pair.source_row] == right.samples["key"][pair.target_row]
        np.testing.assert_array_equal(source[position].numpy(), left.read_tokens([pair.source_row])[0])
        np.testing.assert_array_equal(target[position].numpy(), right.read_tokens([pair.target_row])[0])


def test_samples_follow_the_pairs(data: PairedTokens) -> None:
    keys = list(data.samples()["key"])
    assert keys[:6] == ["0-1", "0-2", "0-3", "0-4", "0-6", "1-0"]
    assert len(keys) == len(data)


@pytest.mark.parametrize(
    ("layout", "source", "target"),
    [("cls_patches", (5, 6), (5, 4)), ("patches", (4, 6), (4, 4)), ("pooled", (1, 6), (1, 4))],
)
def test_layouts_are_views_of_one_store(
    data: PairedTokens, stores: Stores, layout: Layout, source: tuple[int, int], target: tuple[int, int]
) -> None:
    view = PairedTokens(*stores, layout=layout)
    ids = np.arange(len(view))
    loaded = view.batch(ids)
    assert (view.source_shape, view.target_shape) == (source, target)
    assert [tensor.shape[1:] for tensor in loaded] == [source, target]
    if layout != "pooled":
        skipped = 5 - source[0]
        assert torch.equal(loaded[1], data.batch(ids)[1][:, skipped:])
        assert loaded[1].is_contiguous()


def test_class_token_cannot_be_invented(tmp_path: Path) -> None:
    source = _write(tmp_path / "s", 0, SOURCE_SHAPE, "eva", skip=0, has_cls=False)
    target = _write(tmp_path / "t", 0, TARGET_SHAPE, "clip", skip=0)
    merge_pairs([source], [target], tmp_path / "pairs.parquet")
    with pytest.raises(StoreError, match=r"/s holds no class token"):
        PairedTokens(tmp_path / "pairs.parquet", [source], [target])
    patches = PairedTokens(tmp_path / "pairs.parquet", [source], [target], layout="patches")
    assert (patches.source_shape, patches.target_shape) == ((5, 6), (4, 4))


def test_stores_of_two_encoders_do_not_mix(stores: Stores) -> None:
    with pytest.raises(StoreError, match=r"t1 has arrays = .*, .*s0 has"):
        PairedTokens(stores[0], [stores[1][0], stores[2][1], stores[1][2]], stores[2])
    with pytest.raises(StoreError, match="no feature stores"):
        PairedTokens(stores[0], [], [])


def test_unknown_layout_is_refused(stores: Stores) -> None:
    with pytest.raises(ValueError, match="layout is 'cls', expected one of cls_patches"):
        PairedTokens(*stores, layout="cls")  # type: ignore[arg-type]


def test_order_is_the_one_that_old_runs_used() -> None:
    """A changed order would make resumed runs differ from uninterrupted ones in silence."""
    assert order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 2**40), count=st.integers(0, 300))
def test_order_is_a_permutation(seed: int, epoch: int, count: int) -> None:
    ids = order(seed, epoch, count)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(np.sort(ids), np.arange(count))
    np.testing.assert_array_equal(ids, order(seed, epoch, count))


def test_order_depends_on_seed_and_epoch() -> None:
    first = order(1, 0, 100)
    assert not np.array_equal(first, order(2, 0, 100))
    assert not np.array_equal(first, order(1, 1, 100))
    assert not np.array_equal(order(1, 2, 100), order(2, 1, 100))


def test_epochs_have_no_repeats_and_drop_the_rest(data: PairedTokens) -> None:
    steps = list(islice(data.batches(seed=5, batch_size=4), 6))
    assert [step for step, *_ in steps] == list(range(6))
    for epoch in range(2):
        ids = np.concatenate([ids for _, ids, *_ in steps[3 * epoch : 3 * epoch + 3]])
        assert len(set(ids)) == 12
        np.testing.assert_array_equal(ids, order(5, epoch, 15)[:12])


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_resume_gives_the_identical_remaining_batches(data: PairedTokens, start: int) -> None:
    whole = list(islice(data.batches(seed=9, batch_size=4), 9))
    rest = list(islice(data.batches(seed=9, batch_size=4, start_step=start), 9 - start))
    for (step, ids, source, target), (step_again, ids_again, *again) in zip(whole[start:], rest, strict=True):
        assert step == step_again
        np.testing.assert_array_equal(ids, ids_again)
        assert torch.equal(source, again[0])
        assert torch.equal(target, again[1])


def test_buffers_used_again_do_not_change_batches_in_hand(data: PairedTokens) -> None:
    kept = list(islice(data.batches(seed=1, batch_size=5), 12))
    for _, ids, source, target in kept:
        assert torch.equal(source, data.batch(ids)[0])
        assert torch.equal(target, data.batch(ids)[1])


def test_batch_size_must_fit(data: PairedTokens) -> None:
    with pytest.raises(StoreError, match=r"pairs\.parquet has 15 pairs, fewer than one batch of 16"):
        data.batches(seed=0, batch_size=16)
    with pytest.raises(ValueError, match="batch_size is 0"):
        data.batches(seed=0, batch_size=0)


def test_damage_found_in_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    source = _write(tmp_path / "s", 0, SOURCE_SHAPE, "eva", skip=0)
    merge_pairs([source], [source], tmp_path / "pairs.parquet")
    data = PairedTokens(tmp_path / "pairs.parquet", [source], [source])
    with (source / "tokens/c.0.0.0").open("r+b") as file:
        file.seek(70)
        file.write(b"\x00\x01\x02")
    with pytest.raises(StoreError, match=r"s/tokens/c\.0\.0\.0: row 1"):
        list(islice(data.batches(seed=0, batch_size=6), 1))


def test_prefetch_stays_ahead_keeps_order_and_ends_its_thread() -> None:
    made: list[int] = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    before = threading.active_count()
    ahead = prefetched(source(), 3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    ahead.close()
    assert 5 <= len(made) <= 9
    assert threading.active_count() == before
    assert list(prefetched(iter(range(4)), 3)) == [0, 1, 2, 3]


def test_training_data_needs_no_encoder_and_no_zarr() -> None:
    code = (
        "import sys, flowkit.features.loader\n"
        "heavy = {'zarr', 'open_clip', 'timm', 'snakemake', 'flowkit.encoders', 'flowkit.shards'}\n"
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
