"""Ridge, its left-out predictions and the projection of its inputs against scikit-learn and explicit refits."""

import numpy as np
import pytest
from baselines_material import (
    explained,
    fitted,
    flat,
    left_out_of,
    pairs,
    predicted,
    principal,
    problem_of,
    steep_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from flowkit.errors import ConfigError
from flowkit.evaluation import projection, ridge
from flowkit.evaluation.projection import fit_reduction
from flowkit.evaluation.ridge import HALF_DECADES, WIDEST_HALF_DECADES
from flowkit.evaluation.tokens import mean_over_images


def test_ridge_equals_scikit_learn():
    source, target = pairs()
    problem = problem_of(source, target)
    alpha = 0.1 * problem.inputs.values_K.mean()
    reference = Ridge(alpha=alpha).fit(flat(source), flat(target))
    fresh = pairs(seed=1)[0]
    expected = reference.predict(flat(fresh)).reshape(target.shape)
    assert predicted(problem.solve(0.1), fresh) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("images", [40, 9])  # more and fewer images than source values
def test_left_out_predictions_equal_refitting_without_each_image(images):
    source, target = pairs(images)
    problem = problem_of(source, target)
    alpha = 0.03 * problem.inputs.values_K.mean()
    expected = cross_val_predict(Ridge(alpha=alpha), flat(source), flat(target), cv=LeaveOneOut())
    left_out, true = left_out_of(problem, 0.03)
    assert flat(left_out) == pytest.approx(expected, abs=1e-4)
    assert np.array_equal(true, target)
    error = np.sum((expected - flat(target)) ** 2) / images
    assert problem.left_out_error(0.03, problem.judged()) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("images", [150, 60])  # more and fewer images than directions are kept
def test_left_out_predictions_equal_refitting_on_the_projected_inputs(images):
    source, target = steep_pairs(images)
    problem = problem_of(source, target, inputs=70)
    scores = problem.inputs.scores(source, slice(None)).astype(float)
    assert scores.shape[1] == min(70, images - 1)
    assert scores == pytest.approx(problem.inputs.training_NK, abs=1e-4)
    alpha = 0.03 * problem.inputs.values_K.mean()
    expected = cross_val_predict(Ridge(alpha=alpha), scores, flat(target), cv=LeaveOneOut())
    assert flat(left_out_of(problem, 0.03)[0]) == pytest.approx(expected, abs=1e-3)


def test_penalty_follows_the_noise(monkeypatch):
    """Almost no noise wants a penalty below the first grid, mostly noise wants the largest of all."""
    assert problem_of(*pairs(noise=1e-4)).best_penalty() < 10 ** (HALF_DECADES[0] / 2)
    assert problem_of(*pairs(20, noise=100.0, seed=1)).best_penalty() == 10 ** (WIDEST_HALF_DECADES[1] / 2)
    monkeypatch.setattr(
        ridge, "JUDGED_IMAGES", 30
    )  # a sample of images and outputs suffices for the same answer
    monkeypatch.setattr(ridge, "JUDGED_OUTPUTS", 6)
    assert problem_of(*pairs(noise=1e-4)).best_penalty() < 10 ** (HALF_DECADES[0] / 2)


def test_penalty_is_judged_by_image_and_never_by_token():
    """All 8 tokens of an image share their noise: a fit that saw 7 of them predicts the eighth too well."""
    generator = np.random.default_rng(0)
    source = generator.normal(size=(24, 1, 20)).astype(np.float32)
    noise = np.repeat(4 * generator.normal(size=(24, 1, 3)), 8, axis=1)
    target = (np.repeat(source[:, :, :3], 8, axis=1) + noise).astype(np.float32)
    source = np.repeat(source, 8, axis=1)
    problem = problem_of(source, target)
    grid = [10 ** (step / 2) for step in range(-8, 9)]

    def best(x, y, fold_of):
        mean_value = problem.inputs.values_K.mean()
        errors = []
        for penalty in grid:
            model, rows = Ridge(alpha=penalty * mean_value), np.arange(len(x))
            folds = [(rows[fold_of != fold], rows[fold_of == fold]) for fold in range(fold_of.max() + 1)]
            errors.append(np.sum((cross_val_predict(model, x, y, cv=folds) - y) ** 2))
        return grid[int(np.argmin(errors))]

    by_image = best(flat(source), flat(target), np.arange(24))
    by_token = best(source.reshape(192, 20), target.reshape(192, 3), np.arange(192) % 5)
    assert problem.best_penalty() == pytest.approx(by_image)
    assert by_token < by_image


def test_ridge_finds_a_linear_map():
    source, target = pairs(500, noise=0.0)
    fresh_source, fresh_target = pairs(50, noise=0.0, seed=1)
    assert predicted(fitted("ridge", source, target), fresh_source) == pytest.approx(fresh_target, abs=0.02)


def test_ridge_on_a_class_token_repeated_in_every_position():
    """Most eigenvalues are 0 then: the penalty is a share of the mean of the others, and found inside the grid."""
    source, target = pairs(200, noise=1.0)
    alone, repeated = source[:, :1], np.repeat(source[:, :1], 3, axis=1)
    one, three = problem_of(alone, target), problem_of(repeated, target)
    assert one.inputs.count == three.inputs.count == 4
    assert three.inputs.values_K == pytest.approx(3 * one.inputs.values_K)
    penalty = three.best_penalty()
    assert penalty == one.best_penalty()
    assert 10 ** (WIDEST_HALF_DECADES[0] / 2) < penalty < 10 ** (WIDEST_HALF_DECADES[1] / 2)
    expected = predicted(one.solve(penalty), alone)
    assert predicted(three.solve(penalty), repeated) == pytest.approx(expected, abs=1e-4)


def test_a_repeated_class_token_loses_nothing_to_the_projection():
    source = np.repeat(steep_pairs()[0][:, :1], 40, axis=1)  # 40 x 20 values, 20 of them independent
    target = steep_pairs()[1]
    reduction = fit_reduction(source, mean_over_images(source), 400)
    assert reduction.positions_TP.shape == (40, 1)
    assert reduction.channels_EC is None
    exact, projected = (problem_of(source, target, inputs=inputs).solve(0.1) for inputs in (800, 25))
    assert projected.inputs.count == exact.inputs.count == 20
    assert predicted(projected, source) == pytest.approx(predicted(exact, source), abs=2e-3)


@pytest.mark.parametrize("inputs", [4096, 5])
def test_source_tokens_without_spread_are_refused(inputs):
    source, target = np.ones((20, 3, 4), np.float32), pairs(20)[1]
    with pytest.raises(ConfigError, match="all 20 training images are alike"):
        fitted("ridge", source, target, inputs=inputs)


@pytest.mark.parametrize("per_input", [16, 2])  # the second step alone, or after fewer positions and channels
def test_projection_is_close_to_the_exact_map(monkeypatch, per_input):
    monkeypatch.setattr(projection, "REDUCED_PER_INPUT", per_input)
    source, target = steep_pairs(600)
    fresh_source, fresh_target = steep_pairs(400, seed=1)
    exact, projected = (fitted("ridge", source, target, inputs=inputs) for inputs in (120, 50))
    assert exact.inputs.count == 120
    assert projected.inputs.count == 50
    assert projected.inputs.reduction.width == (120 if per_input == 16 else 96)
    loss = explained(predicted(exact, fresh_source), fresh_target) - explained(
        predicted(projected, fresh_source), fresh_target
    )
    assert 0 < loss < (0.01 if per_input == 16 else 0.03)


def test_with_fewer_images_than_inputs_nothing_is_lost():
    """Every map of 50 images lies in the span of their 49 differences."""
    source, target = steep_pairs(50)
    fresh = steep_pairs(20, seed=1)[0]
    exact, projected = (problem_of(source, target, inputs=inputs) for inputs in (120, 60))
    assert projected.inputs.count == exact.inputs.count == 49
    expected = predicted(exact.solve(0.03), fresh)
    assert predicted(projected.solve(0.03), fresh) == pytest.approx(
        expected, abs=0.01 * float(expected.std())
    )


@given(seed=st.integers(0, 99), tokens=st.integers(1, 5), width=st.integers(1, 9), values=st.integers(4, 30))
@settings(max_examples=40, deadline=None)
def test_reduction_keeps_to_its_size_and_never_adds_variance(seed, tokens, width, values):
    source = np.random.default_rng(seed).normal(size=(30, tokens, width)).astype(np.float32)
    reduction = fit_reduction(source, mean_over_images(source), values)
    reduced = reduction.rows(source, slice(None))
    assert reduced.shape == (30, reduction.width)
    assert reduction.width <= values
    spread = np.sum((source - source.mean(axis=0)) ** 2)
    assert np.sum(reduced**2) <= spread * (1 + 1e-5)
    if tokens * width <= values:
        assert np.sum(reduced**2) == pytest.approx(spread, rel=1e-4)


@given(seed=st.integers(0, 99), inputs=st.sampled_from([5, 8, 200]))
@settings(max_examples=15, deadline=None)
def test_scores_are_uncorrelated_and_sorted(seed, inputs):
    source = pairs(40, seed=seed)[0]
    found = principal(source, inputs=inputs)
    squares = found.training_NK.astype(float).T @ found.training_NK
    assert np.diag(squares) == pytest.approx(found.values_K, rel=1e-4)
    assert np.abs(squares - np.diag(np.diag(squares))).max() < 1e-3 * squares.max()
    assert (np.diff(found.values_K) <= 0).all()
    assert found.count == min(inputs, 12)
