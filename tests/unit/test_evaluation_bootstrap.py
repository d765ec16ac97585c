"""Intervals: the bootstrap of ratios of sums and the grouped jackknife, against known distributions."""

import numpy as np
import pytest

from flowkit.evaluation.bootstrap import (
    Estimate,
    Ratio,
    bootstrap,
    draw_counts,
    jackknife,
    mean_of,
    with_noise,
)


def test_counts_are_draws_with_repeats_of_all_images():
    counts = draw_counts(50, draws=200, seed=3)
    assert counts.shape == (200, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.max() > 1
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.35)


def test_same_seed_same_draws():
    assert np.array_equal(draw_counts(20, draws=5, seed=1), draw_counts(20, draws=5, seed=1))
    assert not np.array_equal(draw_counts(20, draws=5, seed=1), draw_counts(20, draws=5, seed=2))


def test_interval_of_a_mean_has_the_width_of_the_normal_theory():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=2000)
    estimate = bootstrap({"m": mean_of(values)}, draw_counts(2000, draws=2000, seed=0))["m"]
    half_width = 1.96 * values.std() / np.sqrt(2000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.1)


def test_ratio_is_of_sums_and_not_a_mean_of_ratios():
    ratio = Ratio(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert bootstrap({"r": ratio}, draw_counts(2, draws=100, seed=0))["r"].value == 2.5


def test_one_set_of_draws_serves_all_ratios():
    """Equal contributions get equal intervals, so comparisons between metrics see the same images."""
    values = np.random.default_rng(0).normal(size=100)
    both = bootstrap({"a": mean_of(values), "b": mean_of(2 * values)}, draw_counts(100, draws=300, seed=0))
    assert both["b"].low == pytest.approx(2 * both["a"].low)


def test_what_is_not_finite_has_neither_value_nor_interval():
    ratios = {"nan": mean_of(np.array([1.0, np.nan])), "empty": Ratio(np.zeros(2), np.zeros(2))}
    for estimate in bootstrap(ratios, draw_counts(2, draws=50, seed=0)).values():
        assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_a_draw_without_a_judged_image_is_left_out():
    ratio = Ratio(np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    estimate = bootstrap({"r": ratio}, draw_counts(3, draws=500, seed=0))["r"]
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(size=32)
    without = (values.sum() - values) / 31
    estimate = jackknife(values.mean(), without, lowest=-np.inf)
    error = values.std(ddof=1) / np.sqrt(32)
    assert estimate.high - estimate.value == pytest.approx(2.0395 * error, rel=1e-4)
    assert estimate.value - estimate.low == pytest.approx(2.0395 * error, rel=1e-4)  # t, 31 degrees


def test_jackknife_is_cut_at_the_lowest_possible_value():
    estimate = jackknife(0.1, np.array([0.0, 0.2, 0.4]), lowest=0.0)
    assert estimate.low == 0.0
    assert estimate.high > 0.1


@pytest.mark.parametrize(("noise", "images"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_interval_with_two_noise_seeds_covers_the_true_value(noise, images):
    """Also where noise is all that varies, of which two seeds say little."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        shared = images * generator.normal()
        values = shared + noise * generator.normal(size=2)
        groups = images * generator.normal(size=10) * np.sqrt(10)
        without = values[0] + (groups.mean() - groups) / 9
        found = with_noise(jackknife(values[0], without, lowest=-np.inf), values, lowest=-np.inf, groups=10)
        covered.append(found.low <= 0 <= found.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_seeds_that_agree_leave_the_interval_as_it_is():
    alone = Estimate(0.5, 0.4, 0.6)
    assert with_noise(alone, np.array([0.5, 0.5]), lowest=0.0, groups=10) == alone
