"""Closed-form baselines against scikit-learn, scipy and maps whose answer is known, in memory and streamed."""

import time

import numpy as np
import pytest
from baselines_material import (
    Stored,
    fitted,
    flat,
    left_out_of,
    pairs,
    predicted,
    principal,
    problem_of,
    steep_pairs,
)
from sklearn.neighbors import NearestNeighbors

from flowkit.errors import ConfigError
from flowkit.evaluation import baselines, projection, ridge, token_ridge, tokens, transport
from flowkit.evaluation.baselines import BASELINES, Nearest, fit_baselines
from flowkit.evaluation.moments import moments
from flowkit.evaluation.tokens import Chosen, evenly_spaced, mean_over_images
from flowkit.evaluation.transport import FLAT_LIMIT, gaussian_transport


@pytest.mark.parametrize("inputs", [4096, 9])
def test_streamed_equals_in_memory(monkeypatch, tmp_path, inputs):
    """Five images at a time and C in three files, or everything at once."""
    source, target = pairs(80)
    fresh = pairs(33, seed=1)[0]
    at_once = fit_baselines(source, target, inputs=inputs)
    expected = {name: predicted(baseline, fresh) for name, baseline in at_once.items()}
    for module in (tokens, projection, ridge, token_ridge, baselines):
        if hasattr(module, "chunks"):
            monkeypatch.setattr(module, "chunks", five_at_a_time)
    for module in (tokens, projection, ridge, token_ridge, baselines):
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
def test_baselines_share_one_decomposition():
    """6,000 images, 17 x 128 to 17 x 96: all that need it take less together than ridge and nearest by themselves."""
    source, target = pairs(6000, tokens=17, source_width=128, target_width=96)

    def cpu_seconds(*names):
        started = time.process_time()
        fit_baselines(source, target, names)
        return time.process_time() - started

    together = cpu_seconds("nearest", "ridge", "ridge_ot")
    assert together < cpu_seconds("ridge") + cpu_seconds("nearest")
