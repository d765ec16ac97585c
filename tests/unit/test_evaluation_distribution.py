"""Frechet distance against closed forms, scipy and repeated sampling."""

import numpy as np
import pytest
from scipy import linalg

from flowkit.evaluation import distribution
from flowkit.evaluation.distribution import disjoint_frechet, frechet_distance, halves_are_measurable
from flowkit.evaluation.moments import TenthsOfMoments, moments, moments_of_tenths, total


def relative_frechet(predicted, target):
    shift = np.asarray(target).reshape(-1, target.shape[-1]).mean(axis=0)
    return distribution.relative_frechet(
        moments_of_tenths(predicted, shift), moments_of_tenths(target, shift)
    )


def distance(a, b):
    shift = np.zeros(a.shape[-1])
    return frechet_distance(moments(a, shift), moments(b, shift))


def test_against_scipy_matrix_root():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6)) + 1.0
    b = generator.normal(size=(400, 6)) @ generator.normal(size=(6, 6))
    cov_a, cov_b = np.cov(a.T, ddof=0), np.cov(b.T, ddof=0)
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    expected += np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_one_dimension_has_a_closed_form():
    """(mean difference)^2 + (difference of standard deviations)^2."""
    a, b = np.array([[0.0], [2.0]]), np.array([[7.0], [13.0]])
    assert distance(a, b) == pytest.approx((10 - 1) ** 2 + (3 - 1) ** 2)


def test_equal_sets_and_single_points():
    target = np.random.default_rng(1).normal(size=(200, 3, 5))
    assert relative_frechet(target, target).value == pytest.approx(0.0, abs=1e-7)
    point = np.broadcast_to(target.mean(axis=(0, 1)), target.shape)
    assert relative_frechet(point, target).value == pytest.approx(1.0)


def test_scale_does_not_matter_and_a_large_mean_costs_no_precision():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 300, 4))
    plain = relative_frechet(a, b).value
    assert relative_frechet(10 * a, 10 * b).value == pytest.approx(plain)
    assert relative_frechet(a + 1e5, b + 1e5).value == pytest.approx(plain, rel=1e-5)


def test_singular_covariance():
    """Fewer vectors than channels: still finite, and zero for equal sets."""
    few = np.random.default_rng(3).normal(size=(20, 40))
    assert relative_frechet(few, few).value == pytest.approx(0.0, abs=1e-6)
    assert 0 < relative_frechet(few, few + 1.0).value < np.inf


def test_moments_add_and_subtract():
    data, shift = np.random.default_rng(4).normal(size=(30, 2, 3)), np.ones(3)
    both, rest = moments(data, shift), moments(data[10:], shift)
    assert (both - rest).count == 20
    assert (both - rest).covariance() == pytest.approx(moments(data[:10], shift).covariance())
    assert (moments(data[:10], shift) + rest).mean() == pytest.approx(both.mean())


def test_jackknife_width_is_the_spread_over_fresh_samples():
    """400 images drawn again and again: half an interval is about two standard deviations of the value."""
    generator = np.random.default_rng(5)

    def draw():
        target = generator.normal(size=(400, 4))
        return relative_frechet(0.6 * target + 0.2 * generator.normal(size=(400, 4)), target)

    estimates = [draw() for _ in range(60)]
    spread = np.std([e.value for e in estimates])
    half_width = np.median([e.high - e.value for e in estimates])
    assert 1.5 < half_width / spread < 2.8


def test_what_cannot_be_measured_is_nan():
    target = np.random.default_rng(6).normal(size=(50, 3))
    broken = target.copy()
    broken[4] = np.inf
    assert np.isnan(relative_frechet(broken, target).value)
    assert np.isnan(relative_frechet(target, np.zeros((50, 3))).value)


def test_tenths_filled_by_chunks_are_those_of_the_whole():
    data, shift = np.random.default_rng(7).normal(size=(57, 3, 4)), np.full(4, 0.5)
    chunked = TenthsOfMoments(shift)
    for first in range(0, 57, 8):
        chunked.add(data[first : first + 8], first)
    for ours, whole, tenth in zip(chunked.moments(), moments_of_tenths(data, shift), range(10), strict=True):
        assert ours.count == whole.count == 3 * len(data[tenth::10])
        assert ours.outer_DD == pytest.approx(whole.outer_DD)
    assert total(chunked.moments()).covariance() == pytest.approx(np.cov(data.reshape(-1, 4).T, ddof=0))


def test_other_half_is_the_distance_of_two_real_sets():
    """For true tokens: what a distance between unlike images is at half their number, both ways."""
    target = np.random.default_rng(8).normal(size=(400, 6))
    shift = np.zeros(6)
    parts = moments_of_tenths(target, shift)
    tenth = np.arange(400) % 10
    even, odd = moments(target[tenth % 2 == 0], shift), moments(target[tenth % 2 == 1], shift)
    ways = [frechet_distance(a, b) / np.trace(b.covariance()) for a, b in ((even, odd), (odd, even))]
    found = disjoint_frechet(parts, parts)
    assert found.value == pytest.approx(np.mean(ways))
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("images", "vectors", "channels", "measurable"),
    [
        (5000, 5000, 1024, True),
        (2570, 2570, 1024, True),
        (2500, 2500, 1024, False),
        (1000, 1000, 1024, False),
        (1000, 257_000, 1024, True),
        (19, 5000, 4, False),
    ],
)
def test_the_smallest_half_must_span_the_channels(images, vectors, channels, measurable):
    assert halves_are_measurable(images, vectors, channels) == measurable
