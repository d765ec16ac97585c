"""Discrepancy, alignment and neighbours against their definitions, scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors

from flowkit.evaluation.similarity import alignment, discrepancy, nearest_neighbours, shared_neighbours


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def pair():
    """Embeddings with a common direction, and noisy predictions of them."""
    generator = np.random.default_rng(0)
    target = generator.normal(size=(300, 8)) + 2.0
    return target + 0.7 * generator.normal(size=target.shape), target


def test_discrepancy_is_the_unbiased_sum_over_pairs_of_images(pair):
    predicted, target = (unit(one) for one in pair)
    distances = np.sum((target[:, None] - target[None]) ** 2, axis=2)
    gamma = 1 / np.median(distances[np.triu_indices(300, 1)])
    kernel = [
        rbf_kernel(a, b, gamma=gamma)
        for a, b in ((predicted, predicted), (target, target), (predicted, target))
    ]
    off = ~np.eye(300, dtype=bool)
    expected = kernel[0][off].mean() + kernel[1][off].mean() - 2 * kernel[2][off].mean()
    found = discrepancy(*pair)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high


def test_discrepancy_of_equal_sets_is_zero_and_length_does_not_matter(pair):
    predicted, target = pair
    assert discrepancy(target, target).value == pytest.approx(0.0, abs=1e-15)
    assert discrepancy(3 * predicted, target).value == pytest.approx(discrepancy(predicted, target).value)


def test_discrepancy_is_unbiased_for_two_samples_of_one_distribution():
    generator = np.random.default_rng(1)
    values = [discrepancy(*generator.normal(size=(2, 60, 4))).value for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_discrepancy_sees_a_collapse_that_the_mean_does_not(pair):
    _, target = pair
    collapsed = np.broadcast_to(target.mean(axis=0), target.shape)
    assert discrepancy(collapsed, target).low > 0.1


def test_alignment_is_the_ratio_of_centred_kernels(pair):
    predicted, target = (one - one.mean(axis=0) for one in pair)
    grams = predicted @ predicted.T, target @ target.T
    expected = np.sum(grams[0] * grams[1]) / np.sqrt(np.sum(grams[0] ** 2) * np.sum(grams[1] ** 2))
    assert alignment(*pair).value == pytest.approx(expected)


def test_alignment_ignores_rotation_and_scale_and_a_constant_has_none(pair):
    predicted, target = pair
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0]
    assert alignment(target, target).value == pytest.approx(1.0)
    assert alignment(5 * predicted @ rotation + 3, target).value == pytest.approx(
        alignment(predicted, target).value
    )
    assert alignment(np.ones_like(target), target).value == 0.0


def test_neighbours_are_those_of_scikit_learn(pair):
    _, target = pair
    found = nearest_neighbours(target)
    expected = NearestNeighbors(n_neighbors=11, metric="cosine").fit(target).kneighbors(return_distance=False)
    assert [set(row) for row in found] == [set(row) for row in expected[:, :10]]


def test_shared_neighbours_by_hand_and_at_chance(pair):
    predicted, target = pair
    mine, true = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 2, 9], [4, 5, 6]])
    assert shared_neighbours(mine, true) == pytest.approx([2 / 3, 1.0])
    shuffled = nearest_neighbours(target[np.random.default_rng(3).permutation(300)])
    assert shared_neighbours(shuffled, nearest_neighbours(target)).mean() == pytest.approx(10 / 299, abs=0.02)
    good = shared_neighbours(nearest_neighbours(predicted), nearest_neighbours(target)).mean()
    assert 0.1 < good < 1


def test_few_images_have_fewer_neighbours():
    few = np.random.default_rng(4).normal(size=(4, 3))
    assert nearest_neighbours(few).shape == (4, 3)
    assert shared_neighbours(nearest_neighbours(few), nearest_neighbours(-few)).tolist() == [1.0] * 4
