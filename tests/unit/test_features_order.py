"""The order of epochs and the schedule of steps: permutations, the same for every rank, resumable, well mixed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.features.order import Ids, Schedule, Shuffle, block_order, order, stable_argsort

SEEDS, EPOCHS = st.integers(0, 2**64 - 1), st.integers(0, 2**40)


def test_orders_are_the_ones_that_old_runs_used() -> None:
    """A changed order would make resumed runs differ from uninterrupted ones in silence."""
    assert order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert order(2**64 - 1, 3, 8).tolist() == [3, 2, 0, 1, 6, 5, 4, 7]
    assert block_order(0, 0, 10, block=2, pool=4).tolist() == [9, 5, 8, 4, 2, 3, 1, 0, 7, 6]


@given(seed=SEEDS, epoch=EPOCHS, count=st.integers(0, 300))
def test_order_sorts_the_raw_output_of_philox(seed: int, epoch: int, count: int) -> None:
    raw = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    ids = order(seed, epoch, count)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, np.argsort(raw, kind="stable"))


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(0, 58))
def test_keys_that_nearly_agree_are_sorted_by_all_their_bits(low: list[int], shift: int) -> None:
    keys = np.array(low, dtype=np.uint64) << np.uint64(shift)
    np.testing.assert_array_equal(stable_argsort(keys), np.argsort(keys, kind="stable"))


@given(
    seed=SEEDS, epoch=EPOCHS, count=st.integers(0, 300), block=st.integers(1, 20), pool=st.integers(20, 90)
)
def test_block_order_is_a_permutation(seed: int, epoch: int, count: int, block: int, pool: int) -> None:
    ids = block_order(seed, epoch, count, block=block, pool=pool)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(np.sort(ids), np.arange(count))
    np.testing.assert_array_equal(ids, block_order(seed, epoch, count, block=block, pool=pool))


def test_neighbours_of_a_block_are_visited_within_two_pools() -> None:
    place = np.argsort(block_order(4, 0, 10_000, block=8, pool=500)).reshape(-1, 8)
    assert (place.max(axis=1) - place.min(axis=1)).max() < 2 * 500
    whole = np.argsort(order(4, 0, 10_000)).reshape(-1, 8)
    assert (whole.max(axis=1) - whole.min(axis=1)).min() > 500


@pytest.mark.parametrize("make", [order, block_order])
def test_orders_depend_on_seed_and_epoch(make) -> None:
    first = make(1, 0, 100)
    assert not np.array_equal(first, make(2, 0, 100))
    assert not np.array_equal(first, make(1, 1, 100))
    assert not np.array_equal(make(1, 2, 100), make(2, 1, 100))


def test_block_larger_than_its_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="block is 8 and pool 4"):
        block_order(0, 0, 100, block=8, pool=4)


def test_blocks_mix_batches_nearly_as_well_as_a_full_shuffle() -> None:
    """500 shards of 1000 samples in batches of 128: a training batch must not be dominated by few shards."""
    full, blocks = _mixing(order(0, 0, 500_000)), _mixing(block_order(0, 0, 500_000))
    assert blocks[0] >= 0.95 * full[0]
    assert blocks[1] <= 1.2
    assert full[0] == pytest.approx(113, abs=1)
    assert full[1] == pytest.approx(1, abs=0.1)


def test_the_measure_of_mixing_sees_a_poor_shuffle() -> None:
    distinct, variance = _mixing(block_order(0, 0, 500_000, block=8, pool=1024))
    assert distinct < 0.75 * 113
    assert variance > 1.4


def _mixing(ids: Ids, *, per_shard: int = 1000, batch: int = 128) -> tuple[float, float]:
    """Distinct shards in a batch, and the variance of the batch mean of a shard's attribute, 1 if independent."""
    shard = (ids // per_shard)[: len(ids) // batch * batch].reshape(-1, batch)
    distinct = 1 + (np.diff(np.sort(shard, axis=1), axis=1) > 0).sum(axis=1)
    attribute = np.random.default_rng(0).standard_normal(int(shard.max()) + 1)
    return float(distinct.mean()), float(attribute[shard].mean(axis=1).var() / (attribute.var() / batch))


@given(
    world_size=st.sampled_from([1, 2, 4]),
    start=st.integers(0, 40),
    count=st.integers(8, 50),
    shuffle=st.sampled_from(["random", "blocks"]),
)
def test_any_world_size_and_any_start_give_the_same_global_batches(
    world_size: int, start: int, count: int, shuffle: Shuffle
) -> None:
    whole = list(islice(Schedule(count, 8, seed=3, shuffle=shuffle).steps(), start + 5))[start:]
    ranks = [Schedule(count, 8, 3, rank, world_size, shuffle).steps(start) for rank in range(world_size)]
    for step, ids in whole:
        parts = [next(rank) for rank in ranks]
        assert [part[0] for part in parts] == [step] * world_size
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), ids)


@pytest.mark.parametrize("shuffle", ["random", "blocks"])
def test_epochs_have_no_repeats_and_drop_the_rest(shuffle: Shuffle) -> None:
    steps = list(islice(Schedule(15, 4, seed=5, shuffle=shuffle).steps(), 6))
    assert [step for step, _ in steps] == list(range(6))
    for epoch in range(2):
        ids = np.concatenate([ids for _, ids in steps[3 * epoch : 3 * epoch + 3]])
        expected = (order if shuffle == "random" else block_order)(5, epoch, 15)
        np.testing.assert_array_equal(ids, expected[:12])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected 1 to the 15 samples"),
        ({"batch_size": 16}, "batch_size is 16, expected 1 to the 15 samples"),
        ({"world_size": 3}, "batch_size 4 cannot be split among 3 ranks"),
        ({"rank": 2, "world_size": 2}, "rank is 2, expected 0 <= rank < world_size, which is 2"),
        ({"rank": -1}, "rank is -1"),
        ({"shuffle": "sorted"}, "shuffle is 'sorted', expected one of random, blocks"),
    ],
)
def test_schedules_that_cannot_work_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"count": 15, "batch_size": 4, "seed": 0, **wrong})
