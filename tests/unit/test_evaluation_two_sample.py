"""The two-sample test against sets whose answer is known: equal ones, and ones that differ in a single respect."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from flowkit.evaluation import two_sample
from flowkit.evaluation.two_sample import two_sample_auc

IMAGES, TOKENS, CHANNELS = 240, 3, 6


def clusters(seed, *, images=IMAGES, tokens=TOKENS, noise=0.3):
    """Tokens around eight corners of a cube: far from Gaussian, although mean and covariance look harmless."""
    generator = np.random.default_rng(seed)
    corners = generator.choice([-1.0, 1.0], size=(images, tokens, CHANNELS))
    corners[..., 3:] = corners[..., :3]
    return (corners + noise * generator.normal(size=corners.shape)).astype(np.float32)


def gaussian_with_moments_of(tokens, seed):
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(float)
    drawn = np.random.default_rng(seed).normal(size=flat.shape)
    drawn -= drawn.mean(axis=0)
    drawn = np.linalg.solve(np.linalg.cholesky(np.cov(drawn.T)), drawn.T).T
    return (
        (drawn @ np.linalg.cholesky(np.cov(flat.T)).T + flat.mean(axis=0))
        .reshape(tokens.shape)
        .astype(np.float32)
    )


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_sets_from_one_distribution_are_not_told_apart(tokens):
    found = [
        two_sample_auc(clusters(s, tokens=tokens), clusters(s + 50, tokens=tokens), seed=s) for s in range(8)
    ]
    assert np.mean([one.value for one in found]) == pytest.approx(0.5, abs=0.02)
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 6
    assert all(one.low < one.value < one.high for one in found)


def test_the_truth_itself_cannot_be_told_from_the_truth():
    found = two_sample_auc(clusters(0), clusters(0), seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_equal_moments_do_not_hide_another_distribution():
    """This is what ridge followed by Gaussian optimal transport does."""
    target = clusters(0)
    predicted = gaussian_with_moments_of(target, 1)
    flat = [np.cov(a.reshape(-1, CHANNELS).T) for a in (predicted, target)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-5)
    assert two_sample_auc(predicted, target, seed=0).low > 0.7


@pytest.mark.parametrize(
    "spoil",
    [
        lambda target, generator: np.broadcast_to(target.mean(axis=0), target.shape),
        lambda target, generator: target + 0.3 * generator.normal(size=target.shape).astype(np.float32),
        lambda target, generator: 0.8 * target,
        lambda target, generator: target * [1, 1, 1, 1, 1, -1],  # every channel is right, not their relation
    ],
    ids=["constant", "noise", "shrinkage", "relation"],
)
def test_a_difference_is_seen(spoil):
    target = clusters(0)
    predicted = np.asarray(spoil(target, np.random.default_rng(1)), np.float32)
    assert two_sample_auc(predicted, target, seed=0).low > 0.55


def test_a_small_direction_counts_as_much_as_a_large_one():
    scale = np.array([1e3, 1e3, 1e3, 1e3, 1e3, 200], np.float32)
    target, predicted = clusters(0, noise=1.0) * scale, clusters(1, noise=1.0) * scale
    predicted[..., 5] *= 0.3
    assert two_sample_auc(predicted, target, seed=0).low > 0.6


def test_what_could_be_learned_by_heart_about_an_image_is_of_no_use():
    """Every image has a place of its own and each kind a side of it: known after one token, unknown on other images."""
    generator = np.random.default_rng(0)
    place = generator.normal(size=(IMAGES, 1, CHANNELS))
    side = generator.normal(size=(IMAGES, 1, CHANNELS))
    predicted, target = (
        (place + sign * side + 0.01 * generator.normal(size=(IMAGES, 8, CHANNELS))).astype(np.float32)
        for sign in (1, -1)
    )
    found = two_sample_auc(predicted, target, seed=0)
    assert found.low <= 0.5 <= found.high
    assert found.value < 0.6


def test_the_seed_decides_and_threads_do_not():
    predicted, target = clusters(0, images=120, tokens=1, noise=0.4), clusters(1, images=120, tokens=1)
    with threadpool_limits(1):
        first = two_sample_auc(predicted, target, seed=0)
    with threadpool_limits(2):
        again = two_sample_auc(predicted, target, seed=0)
    assert (again.value, again.low, again.high) == pytest.approx(
        (first.value, first.low, first.high), abs=1e-6
    )
    assert two_sample_auc(predicted, target, seed=1).value != first.value


def test_a_choice_of_a_large_set_is_judged_in_bounded_reads(monkeypatch):
    monkeypatch.setattr(two_sample, "MOST_IMAGES", 200)
    monkeypatch.setattr(two_sample, "MOST_POSITIONS", 2)
    monkeypatch.setattr(two_sample, "MOST_CHANNELS", 5)

    class OnDisk:
        shape = (IMAGES, TOKENS, CHANNELS)

        def __init__(self, values):
            self.values, self.reads = values.astype(np.float16), []

        def __len__(self):
            return len(self.values)

        def __getitem__(self, rows):
            self.reads.append(len(rows))
            return self.values[rows]

    predicted, target = OnDisk(0.8 * clusters(0)), OnDisk(clusters(0))
    assert two_sample_auc(predicted, target, seed=0).low > 0.55
    assert sum(target.reads) == 200
    assert max(target.reads) <= two_sample.IMAGES_PER_READ


def test_too_few_images_are_not_measured():
    few = two_sample.FEWEST_IMAGES - 1
    assert np.isnan(two_sample_auc(clusters(0, images=few), clusters(1, images=few), seed=0).value)
    assert np.isfinite(two_sample_auc(clusters(0, images=few + 1), clusters(1, images=few + 1), seed=0).high)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("is_predicted", [True, False])
def test_what_is_not_finite_is_not_measured(value, is_predicted):
    spoiled = clusters(0)
    spoiled[7, 1, 2] = value
    sets = (spoiled, clusters(1)) if is_predicted else (clusters(1), spoiled)
    assert np.isnan(two_sample_auc(*sets, seed=0).value)


def test_flat_targets_and_huge_predictions_are_judged():
    flat = np.ones((IMAGES, TOKENS, CHANNELS), np.float32)
    assert two_sample_auc(flat, flat, seed=0).value == pytest.approx(0.5)
    assert two_sample_auc(clusters(0), flat, seed=0).value == pytest.approx(1.0)
    assert two_sample_auc(1e6 * clusters(0), clusters(1), seed=0).value > 0.99


def test_sets_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="pair up"):
        two_sample_auc(clusters(0), clusters(0)[:-1], seed=0)


def test_the_first_position_is_always_among_those_that_are_judged():
    """It is the class token, of which all embeddings are made: one that is wrong may not go unseen."""
    target, predicted = (clusters(seed, tokens=40) for seed in (0, 1))
    predicted[:, 0] = 0
    for seed in range(3):
        assert two_sample_auc(predicted, target, seed=seed).low > 0.53
        assert two_sample_auc(predicted[:, 1:], target[:, 1:], seed=seed).value < 0.53
