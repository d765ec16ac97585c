"""Closed-form baselines against scikit-learn, scipy and maps whose answer is known."""

import time

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from flowkit.errors import ConfigError
from flowkit.evaluation import ridge
from flowkit.evaluation.baselines import (
    BASELINES,
    fit_baselines,
    fit_constant,
    fit_nearest,
    fit_procrustes,
    fit_ridge,
    gaussian_transport,
)
from flowkit.evaluation.distribution import moments
from flowkit.evaluation.ridge import PENALTIES, ridge_problem


def pairs(images=60, *, noise=0.3, seed=0, tokens=3, source_width=4, target_width=5):
    """A linear map of all tokens at once, with offset and noise."""
    weights = np.random.default_rng(99).normal(size=(tokens * source_width, tokens * target_width))
    generator = np.random.default_rng(seed)
    source = generator.normal(size=(images, tokens, source_width))
    flat = source.reshape(images, -1) @ weights + 2.0
    flat += noise * generator.normal(size=flat.shape)
    return source.astype(np.float32), flat.reshape(images, tokens, target_width).astype(np.float32)


def test_ridge_equals_scikit_learn():
    source, target = pairs()
    problem = ridge_problem(source, target)
    alpha = 0.1 * problem.values_K.mean()
    flat_source, flat_target = (a.reshape(60, -1).astype(float) for a in (source, target))
    reference = Ridge(alpha=alpha).fit(flat_source, flat_target)
    fresh = pairs(seed=1)[0]
    expected = reference.predict(fresh.reshape(60, -1)).reshape(target.shape)
    assert problem.solve(0.1).predict(fresh) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("images", [40, 9])  # more and fewer images than source values
def test_left_out_predictions_equal_refitting_without_each_image(images):
    source, target = pairs(images)
    problem = ridge_problem(source, target)
    flat_source, flat_target = (a.reshape(images, -1).astype(float) for a in (source, target))
    alpha = 0.03 * problem.values_K.mean()
    expected = cross_val_predict(Ridge(alpha=alpha), flat_source, flat_target, cv=LeaveOneOut())
    assert problem.left_out(0.03).reshape(images, -1) == pytest.approx(expected, abs=1e-4)
    error = np.sum((expected - flat_target) ** 2) / images
    assert problem.left_out_error(0.03) == pytest.approx(error, rel=1e-5)


def test_penalty_follows_the_noise(monkeypatch):
    """Almost no noise wants the smallest penalty, mostly noise wants the largest."""
    assert ridge_problem(*pairs(noise=1e-3)).best_penalty() == min(PENALTIES)
    assert ridge_problem(*pairs(20, noise=100.0)).best_penalty() == max(PENALTIES)
    monkeypatch.setattr(ridge, "JUDGED_IMAGES", 30)  # a sample of the images suffices for the same answer
    assert ridge_problem(*pairs(noise=1e-3)).best_penalty() == min(PENALTIES)


def test_ridge_finds_a_linear_map():
    source, target = pairs(500, noise=0.0)
    fresh_source, fresh_target = pairs(50, noise=0.0, seed=1)
    assert fit_ridge(source, target).predict(fresh_source) == pytest.approx(fresh_target, abs=0.02)


def test_constant_is_the_mean_of_each_position():
    source, target = pairs()
    predicted = fit_constant(source, target).predict(source[:2])
    assert predicted == pytest.approx(np.stack([target.mean(axis=0)] * 2), abs=1e-6)


def test_nearest_equals_scikit_learn_and_returns_training_targets():
    source, target = pairs(80)
    fresh = pairs(40, seed=1)[0] + 1000.0  # far from the origin, where careless distances lose their digits
    search = NearestNeighbors(n_neighbors=1).fit(source.reshape(80, -1).astype(float) + 1000.0)
    rows = search.kneighbors(fresh.reshape(40, -1).astype(float), return_distance=False)[:, 0]
    assert len(set(rows)) > 5
    assert np.array_equal(fit_nearest(source + 1000.0, target).predict(fresh), target[rows])


def test_procrustes_recovers_a_rotation():
    source = np.random.default_rng(0).normal(size=(100, 3, 6))
    rotation = ortho_group.rvs(6, random_state=1)
    offset = np.random.default_rng(2).normal(size=(3, 6))
    fitted = fit_procrustes(source, source @ rotation + offset)
    assert fitted.predict(source[:9]) == pytest.approx(source[:9] @ rotation + offset, abs=1e-5)


def test_procrustes_equals_scipy_and_keeps_lengths():
    source, target = pairs(target_width=4)
    fitted = fit_procrustes(source, target)
    centred = [(a - a.mean(axis=0)).reshape(-1, 4).astype(float) for a in (source, target)]
    assert fitted.rotation_SD == pytest.approx(orthogonal_procrustes(*centred)[0], abs=1e-5)
    assert fitted.rotation_SD @ fitted.rotation_SD.T == pytest.approx(np.eye(4), abs=1e-10)


def test_procrustes_refuses_unequal_token_counts():
    source, target = pairs()
    with pytest.raises(ConfigError, match="3 tokens"):
        fit_procrustes(source, target[:, :2])


def test_transport_matches_moments_and_is_the_optimal_map():
    generator = np.random.default_rng(3)
    start = generator.normal(size=(400, 5)) @ generator.normal(size=(5, 5))
    end = generator.normal(size=(300, 5)) @ generator.normal(size=(5, 5)) + 4.0
    shift = np.zeros(5)
    matrix = gaussian_transport(moments(start, shift), moments(end, shift))
    moved = (start - start.mean(axis=0)) @ matrix + end.mean(axis=0)
    assert np.cov(moved.T, ddof=0) == pytest.approx(np.cov(end.T, ddof=0))
    # Symmetric and positive: the gradient of a convex function, which makes it the optimal map.
    assert matrix == pytest.approx(matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_transport_from_a_flat_start():
    """A direction without spread cannot be stretched; it stays where it is instead of blowing up."""
    start = np.random.default_rng(4).normal(size=(100, 3)) * [1.0, 2.0, 0.0]
    end = np.random.default_rng(5).normal(size=(100, 3))
    matrix = gaussian_transport(moments(start, np.zeros(3)), moments(end, np.zeros(3)))
    assert np.abs(matrix).max() < 10
    assert matrix[2] == pytest.approx(np.zeros(3), abs=1e-9)


def test_ridge_ot_restores_the_spread_that_ridge_loses_on_fresh_images():
    source, target = pairs(400, noise=4.0)
    fresh_source, fresh_target = pairs(4000, noise=4.0, seed=1)
    fitted = fit_baselines(source, target, ["ridge", "ridge_ot"])
    flat = {name: baseline.predict(fresh_source).reshape(-1, 5) for name, baseline in fitted.items()}
    true = fresh_target.reshape(-1, 5)
    error = {name: np.linalg.norm(np.cov(tokens.T) - np.cov(true.T)) for name, tokens in flat.items()}
    assert error["ridge"] > 0.5 * np.linalg.norm(np.cov(true.T))
    assert error["ridge_ot"] < 0.15 * np.linalg.norm(np.cov(true.T))
    assert flat["ridge_ot"].mean(axis=0) == pytest.approx(true.mean(axis=0), abs=0.3)


def test_ridge_ot_is_fitted_on_left_out_predictions():
    """20 images, 12 source values: fitted on ridge's training predictions the spread on fresh ones is .85."""
    fresh_source, fresh_target = pairs(2000, noise=2.0, seed=50)
    ratios = []
    for seed in range(6):
        predicted = fit_baselines(*pairs(20, noise=2.0, seed=seed), ["ridge_ot"])["ridge_ot"].predict(
            fresh_source
        )
        spread = [np.trace(np.cov(tokens.reshape(-1, 5).T)) for tokens in (predicted, fresh_target)]
        ratios.append(spread[0] / spread[1])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.08)


def test_all_baselines_share_one_interface():
    source, target = pairs()
    fitted = fit_baselines(source.astype(np.float16), target.astype(np.float16))
    assert tuple(fitted) == BASELINES
    for baseline in fitted.values():
        predicted = baseline.predict(source[:7].astype(np.float16))
        assert predicted.shape == (7, 3, 5)
        assert predicted.dtype == np.float32
        assert np.isfinite(predicted).all()


def test_unknown_baseline_is_named():
    with pytest.raises(ConfigError, match="'rigde'"):
        fit_baselines(*pairs(), ["rigde"])


@pytest.mark.slow
def test_demo_size_fits_in_the_budget():
    """6,000 images, 17 x 128 to 17 x 96: the whole set of baselines within 25 CPU-seconds."""
    source, target = pairs(6000, tokens=17, source_width=128, target_width=96)
    started = time.process_time()
    fit_baselines(source, target)
    assert time.process_time() - started < 25
