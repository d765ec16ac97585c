"""Maps of single tokens against scipy, scikit-learn and maps whose answer is known."""

import numpy as np
import pytest
from baselines_material import Stored, fitted, pairs, predicted
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge

from flowkit.errors import ConfigError
from flowkit.evaluation import token_ridge
from flowkit.evaluation.baselines import fit_baselines
from flowkit.evaluation.token_ridge import fit_procrustes, fit_token_ridge
from flowkit.evaluation.tokens import mean_over_images


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
    assert found.matrix_ED == pytest.approx(orthogonal_procrustes(*centred)[0], abs=1e-5)
    assert found.matrix_ED @ found.matrix_ED.T == pytest.approx(np.eye(4), abs=1e-10)


@pytest.mark.parametrize("name", ["procrustes", "ridge_token"])
def test_unequal_token_counts_are_refused_before_anything_is_read(name):
    source, target = pairs()
    refused = Stored(source)
    with pytest.raises(ConfigError, match=f"{name} maps token to token: source has 3 tokens, target 2"):
        fit_baselines(refused, target[:, :2], [name])
    assert refused.rows_read == 0


def mapped(source, *, noise, seed=3):
    """Targets that are linear in the token at the same position, with an offset for each position."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(source.shape[2], 5))
    offset = generator.normal(size=(source.shape[1], 5))
    target = source @ matrix + offset
    return matrix, target + noise * generator.normal(size=target.shape)


def test_a_linear_map_of_tokens_is_found():
    source = np.random.default_rng(0).normal(size=(100, 3, 6)) * [1, 1, 1, 0.1, 0.1, 0.1]
    matrix, target = mapped(source, noise=0)
    found = fitted("ridge_token", source, target)
    assert found.matrix_ED == pytest.approx(matrix, abs=1e-3)
    assert found.penalty == pytest.approx(10 ** (token_ridge.HALF_DECADES[1] / 2))
    assert predicted(found, source[:9]) == pytest.approx(target[:9], abs=1e-2)


def test_equals_scikit_learn_at_the_penalty_with_the_best_error_on_images_held_out():
    source = np.random.default_rng(0).normal(size=(40, 3, 8)).astype(np.float32)
    _, target = mapped(source, noise=6.0)
    target = target.astype(np.float32)
    means = mean_over_images(source), mean_over_images(target)
    found = fit_token_ridge(source, target, *means)
    centred_source, centred_target = source - means[0], target - means[1]
    held_out = np.arange(40) % token_ridge.HELD_OUT == token_ridge.HELD_OUT - 1

    def by_scikit_learn(images, penalty):
        flat = centred_source[images].reshape(-1, 8).astype(float)
        model = Ridge(alpha=penalty * np.sum(flat**2) / 8, fit_intercept=False)
        return model.fit(flat, centred_target[images].reshape(-1, 5))

    first, last = token_ridge.HALF_DECADES
    errors = {}
    for step in range(first, last - 1, -1):
        model = by_scikit_learn(~held_out, 10 ** (step / 2))
        left = centred_target[held_out] - model.predict(centred_source[held_out].reshape(-1, 8)).reshape(
            -1, 3, 5
        )
        errors[10 ** (step / 2)] = np.sum(left**2)
    best = min(errors, key=errors.get)
    assert 10 ** (last / 2) < best < 10 ** (first / 2)
    assert found.penalty == pytest.approx(best)
    assert found.matrix_ED == pytest.approx(by_scikit_learn(slice(None), best).coef_.T, abs=1e-5)


def test_a_source_that_does_not_vary_predicts_the_mean():
    source, target = pairs()
    found = fitted("ridge_token", np.ones_like(source), target)
    assert predicted(found, source[:2]) == pytest.approx(np.stack([target.mean(axis=0)] * 2), abs=1e-5)


def test_only_some_images_are_read_and_few_are_enough(monkeypatch):
    source, target = pairs(30)
    monkeypatch.setattr(token_ridge, "IMAGES", 6)
    means = mean_over_images(source), mean_over_images(target)
    stored = Stored(source)
    fit_token_ridge(stored, target, *means)
    assert stored.rows_read == 6
    few = fit_token_ridge(source[:3], target[:3], *means)
    assert few.penalty == 10 ** (token_ridge.HALF_DECADES[0] / 2)
    assert np.isfinite(few.matrix_ED).all()
