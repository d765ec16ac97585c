"""Closed-form baselines against scikit-learn, scipy and maps whose answer is known, in memory and streamed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from flowkit.errors import ConfigError
from flowkit.evaluation import baselines, projection, ridge, tokens, transport
from flowkit.evaluation.baselines import BASELINES, Nearest, fit_baselines, fit_procrustes
from flowkit.evaluation.moments import moments
from flowkit.evaluation.projection import fit_principal_inputs, fit_reduction
from flowkit.evaluation.ridge import HALF_DECADES, WIDEST_HALF_DECADES, ridge_problem
from flowkit.evaluation.tokens import Chosen, evenly_spaced, mean_over_images
from flowkit.evaluation.transport import FLAT_LIMIT, gaussian_transport


class Stored:
    """Tokens as a store gives them: float32 copies of the rows that are asked for; remembers how many at once."""

    def __init__(self, array):
        self.array, self.most_rows, self.rows_read = array, 0, 0

    @property
    def shape(self):
        return self.array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        found = self.array[rows].astype(np.float32)
        self.most_rows, self.rows_read = max(self.most_rows, len(found)), self.rows_read + len(found)
        return found


def pairs(images=60, *, noise=0.3, seed=0, tokens=3, source_width=4, target_width=5):
    """A linear map of all tokens at once, with offset and noise."""
    weights = np.random.default_rng(99).normal(size=(tokens * source_width, tokens * target_width))
    generator = np.random.default_rng(seed)
    source = generator.normal(size=(images, tokens, source_width))
    flat = source.reshape(images, -1) @ weights + 2.0
    flat += noise * generator.normal(size=flat.shape)
    return source.astype(np.float32), flat.reshape(images, tokens, target_width).astype(np.float32)


def steep_pairs(images=300, *, seed=0, tokens=6, width=20, noise=0.1):
    """Source tokens whose variance falls steeply over 120 directions, as that of encoders does."""
    basis = ortho_group.rvs(tokens * width, random_state=5) * (0.95 ** np.arange(tokens * width))[:, None]
    weights = np.random.default_rng(6).normal(size=(tokens * width, 12))
    generator = np.random.default_rng(seed)
    flat = generator.normal(size=(images, tokens * width)) @ basis
    target = flat @ weights + noise * generator.normal(size=(images, 12)) + 1.0
    return (flat + 3.0).reshape(images, tokens, width).astype(np.float32), target.reshape(
        images, 3, 4
    ).astype(np.float32)


def principal(source, *, inputs=4096):
    return fit_principal_inputs(source, mean_over_images(source), inputs=inputs)


def problem_of(source, target, *, inputs=4096, scratch=None):
    return ridge_problem(principal(source, inputs=inputs), target, mean_over_images(target), scratch)


def fitted(name, source, target, **options):
    return fit_baselines(source, target, [name], **options)[name]


def predicted(baseline, source):
    return np.concatenate(list(baseline.predict(source)))


def flat(array):
    return array.reshape(len(array), -1).astype(float)


def explained(prediction, target):
    return 1 - np.sum((prediction - target) ** 2) / np.sum((target - target.mean(axis=0)) ** 2)


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


def left_out_of(problem, penalty, images=None):
    images = np.arange(len(problem.target)) if images is None else images
    return [np.concatenate(parts) for parts in zip(*problem.left_out(penalty, images), strict=True)]


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


def test_source_tokens_without_spread_are_refused():
    source, target = np.ones((20, 3, 4), np.float32), pairs(20)[1]
    with pytest.raises(ConfigError, match="all 20 training images are alike"):
        fitted("ridge", source, target)


@pytest.mark.parametrize(
    "per_input", [16, 2]
)  # the second step alone, and after fewer positions and channels
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


@pytest.mark.parametrize("inputs", [4096, 9])
def test_streamed_equals_in_memory(monkeypatch, tmp_path, inputs):
    """Five images at a time and C in three files, or everything at once."""
    source, target = pairs(80)
    fresh = pairs(33, seed=1)[0]
    at_once = fit_baselines(source, target, inputs=inputs)
    expected = {name: predicted(baseline, fresh) for name, baseline in at_once.items()}
    for module in (tokens, projection, ridge, baselines):
        monkeypatch.setattr(module, "chunks", five_at_a_time)
    for module in (tokens, projection, ridge, baselines):
        if hasattr(module, "token_chunks"):
            monkeypatch.setattr(module, "token_chunks", lambda set_: five_at_a_time(len(set_)))
    monkeypatch.setattr(ridge, "BLOCK_VALUES", 1)
    monkeypatch.setattr(ridge, "PASS_VALUES", 10 * 15)  # ten images at a time
    monkeypatch.setattr(ridge, "COLUMNS", 2)
    monkeypatch.setattr(projection, "COLUMNS", 2)
    sets = Stored(source), Stored(target), Stored(fresh)
    streamed = fit_baselines(*sets[:2], inputs=inputs, scratch=tmp_path)
    for name, baseline in streamed.items():
        chunks = list(baseline.predict(sets[2]))
        assert max(map(len, chunks)) == 5, name
        assert {chunk.dtype for chunk in chunks} == {np.dtype(np.float32)}
        tolerance = 1e-4 if inputs == 4096 else 3e-3
        assert np.concatenate(chunks) == pytest.approx(expected[name], abs=tolerance), name
    assert len(list(tmp_path.iterdir())) == 3
    assert {tokens_of.most_rows for tokens_of in sets} == {5}


def five_at_a_time(images, values_per_image=1):
    for start in range(0, images, 5):
        yield slice(start, min(start + 5, images))


def test_means_and_spacing():
    source = pairs(70)[0]
    assert mean_over_images(Stored(source)) == pytest.approx(source.mean(axis=0, dtype=float), abs=1e-12)
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert evenly_spaced(0, 10).tolist() == []
    chosen = Chosen(source, evenly_spaced(70, 7))
    assert chosen.shape == (7, 3, 4)
    assert np.array_equal(chosen[2:4], source[[20, 30]])
    assert np.array_equal(chosen[np.array([6, 0])], source[[60, 0]])


def test_constant_is_the_mean_of_each_position():
    source, target = pairs()
    found = predicted(fitted("constant", source, target), source[:2])
    assert found == pytest.approx(np.stack([target.mean(axis=0)] * 2), abs=1e-6)


def test_nearest_equals_scikit_learn_and_returns_training_targets():
    source, target = pairs(80)
    fresh = pairs(40, seed=1)[0] + 1000.0  # far from the origin, where careless distances lose their digits
    search = NearestNeighbors(n_neighbors=1).fit(flat(source) + 1000.0)
    rows = search.kneighbors(flat(fresh), return_distance=False)[:, 0]
    assert len(set(rows)) > 5
    nearest = fitted("nearest", source + 1000.0, Stored(target))
    assert np.array_equal(predicted(nearest, fresh), target[rows])
    assert nearest.target.rows_read == 40  # of the target only what is returned


def test_nearest_by_projected_distance():
    """The first 50 directions hold all but 1e-5 of the variance: the neighbours are those of all 120."""
    source, target = steep_pairs(200)
    fresh = steep_pairs(100, seed=1)[0]
    exact = Nearest(principal(source), target).rows(fresh)
    projected = Nearest(principal(source, inputs=60), target).rows(fresh)
    assert np.mean(exact == projected) > 0.9


def test_procrustes_recovers_a_rotation():
    source = np.random.default_rng(0).normal(size=(100, 3, 6))
    rotation = ortho_group.rvs(6, random_state=1)
    offset = np.random.default_rng(2).normal(size=(3, 6))
    found = fitted("procrustes", source, source @ rotation + offset)
    assert predicted(found, source[:9]) == pytest.approx(source[:9] @ rotation + offset, abs=1e-5)


def test_procrustes_equals_scipy_and_keeps_lengths():
    source, target = pairs(target_width=4)
    found = fit_procrustes(source, target, mean_over_images(source), mean_over_images(target))
    centred = [(a - a.mean(axis=0)).reshape(-1, 4).astype(float) for a in (source, target)]
    assert found.rotation_ED == pytest.approx(orthogonal_procrustes(*centred)[0], abs=1e-5)
    assert found.rotation_ED @ found.rotation_ED.T == pytest.approx(np.eye(4), abs=1e-10)


def test_procrustes_refuses_unequal_token_counts():
    source, target = pairs()
    refused = Stored(source)
    with pytest.raises(ConfigError, match="source has 3 tokens, target 2"):
        fit_baselines(refused, target[:, :2])
    assert refused.rows_read == 0


@pytest.mark.parametrize(("images", "width"), [(15, 5), (6000, FLAT_LIMIT // 3 + 1)])
def test_flattened_transport_refuses_too_few_images_or_too_many_values(images, width):
    """Known from the shapes alone, so nothing is read before."""
    source, target = Stored(np.empty((images, 3, 4))), Stored(np.empty((images, 3, width)))
    with pytest.raises(
        ConfigError, match=rf"3 x {width} = {3 * width} .* here {images}; leave ridge_ot_flat out"
    ):
        fit_baselines(source, target)
    assert source.rows_read == target.rows_read == 0


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


@pytest.mark.parametrize("name", ["ridge_ot", "ridge_ot_flat"])
@pytest.mark.parametrize("inputs", [4096, 18])
def test_transports_match_the_moments_of_the_images_they_were_fitted_on(name, inputs):
    """Ridge's left-out predictions, moved, have mean and covariance of the truth: of tokens, or of whole images."""
    source, target = pairs(400, noise=2.0, source_width=6, tokens=3)
    source = (
        source if inputs == 4096 else np.concatenate([source, source], axis=2)
    )  # 36 values, 18 independent
    found = fitted(name, source, target, inputs=inputs)
    problem = problem_of(source, target, inputs=inputs)
    left_out = left_out_of(problem, found.ridge.penalty)[0]
    width = 5 if name == "ridge_ot" else 15
    moved = (left_out.reshape(-1, width) - found.start_mean_V) @ found.matrix_VV + found.end_mean_V
    true = target.reshape(-1, width)
    assert moved.mean(axis=0) == pytest.approx(true.mean(axis=0), abs=1e-4)
    assert np.cov(moved.T) == pytest.approx(np.cov(true.T), abs=1e-3 * np.trace(np.cov(true.T)))


def test_flattened_transport_leaves_out_what_only_left_out_predictions_vary_in():
    """A map of 4 inputs predicts in 4 of 15 directions, for new images in no other."""
    source, target = pairs(400, noise=2.0)
    found = fitted("ridge_ot_flat", np.repeat(source[:, :1], 3, axis=1), target)
    assert np.linalg.matrix_rank(found.matrix_VV, tol=1e-8) == 4
    assert np.linalg.matrix_rank(fitted("ridge_ot_flat", source, target).matrix_VV, tol=1e-8) == 12


def test_ridge_ot_reads_evenly_spaced_images(monkeypatch):
    monkeypatch.setattr(transport, "TOKEN_TRANSPORT_IMAGES", 100)
    source, target = pairs(400, noise=2.0)
    found = fitted("ridge_ot", source, target)
    chosen = evenly_spaced(400, 100)
    assert found.end_mean_V == pytest.approx(target[chosen].mean(axis=(0, 1)), abs=1e-5)


@pytest.mark.parametrize("name", ["ridge_ot", "ridge_ot_flat"])
def test_transport_restores_the_spread_that_ridge_loses_on_fresh_images(name):
    source, target = pairs(400, noise=4.0, source_width=6)
    fresh_source, fresh_target = pairs(4000, noise=4.0, seed=1, source_width=6)
    both = fit_baselines(source, target, ["ridge", name])
    found = {name: predicted(baseline, fresh_source).reshape(-1, 5) for name, baseline in both.items()}
    true = fresh_target.reshape(-1, 5)
    error = {name: np.linalg.norm(np.cov(vectors.T) - np.cov(true.T)) for name, vectors in found.items()}
    assert error["ridge"] > 0.5 * np.linalg.norm(np.cov(true.T))
    assert error[name] < 0.15 * np.linalg.norm(np.cov(true.T))
    assert found[name].mean(axis=0) == pytest.approx(true.mean(axis=0), abs=0.3)


@pytest.mark.parametrize(
    ("name", "images", "tolerance"), [("ridge_ot", 20, 0.08), ("ridge_ot_flat", 60, 0.12)]
)
def test_transports_are_fitted_on_left_out_predictions(name, images, tolerance):
    """20 images, 12 source values: fitted on ridge's training predictions the spread on fresh ones is .85."""
    fresh_source, fresh_target = pairs(2000, noise=2.0, seed=50)
    ratios = []
    for seed in range(6):
        found = predicted(fitted(name, *pairs(images, noise=2.0, seed=seed)), fresh_source)
        spread = [np.trace(np.cov(vectors.reshape(-1, 5).T)) for vectors in (found, fresh_target)]
        ratios.append(spread[0] / spread[1])
    assert np.mean(ratios) == pytest.approx(1.0, abs=tolerance)


def test_all_baselines_share_one_interface():
    source, target = pairs()
    found = fit_baselines(source.astype(np.float16), target.astype(np.float16))
    assert tuple(found) == BASELINES
    for baseline in found.values():
        tokens_of = predicted(baseline, source[:7].astype(np.float16))
        assert tokens_of.shape == (7, 3, 5)
        assert tokens_of.dtype == np.float32
        assert np.isfinite(tokens_of).all()


def test_unknown_baseline_is_named():
    with pytest.raises(ConfigError, match="'rigde'"):
        fit_baselines(*pairs(), ["rigde"])


@pytest.mark.slow
def test_demo_size_fits_in_the_budget():
    """6,000 images, 17 x 128 to 17 x 96: the whole set of baselines within 30 CPU-seconds."""
    source, target = pairs(6000, tokens=17, source_width=128, target_width=96)
    started = time.process_time()
    fit_baselines(source, target)
    assert time.process_time() - started < 30
