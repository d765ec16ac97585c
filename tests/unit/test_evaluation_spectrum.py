"""Figures along principal components: against scikit-learn, and against what they must sum to."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from flowkit.evaluation import spectrum as module
from flowkit.evaluation.spectrum import spectrum

IMAGES, TOKENS, CHANNELS = 60, 5, 8


@pytest.fixture
def tokens():
    generator = np.random.default_rng(0)
    scale = np.array([4, 3, 2, 1, 0.5, 0.3, 0.2, 0.1])
    mean = generator.normal(size=(TOKENS, CHANNELS))
    turn = np.linalg.qr(generator.normal(size=(CHANNELS, CHANNELS)))[0]
    deviations = generator.normal(size=(IMAGES, TOKENS, CHANNELS)) * scale @ turn
    deviations -= deviations.mean(axis=0)
    return deviations + mean, mean, turn


def test_shares_are_those_of_principal_component_analysis(tokens):
    target, mean, _ = tokens
    flat = (target - mean).reshape(-1, CHANNELS)
    expected = PCA().fit(flat).explained_variance_ratio_
    assert spectrum(target, target, mean).share_D == pytest.approx(expected, rel=1e-4)


def test_the_shares_times_r2_sum_to_r2(tokens):
    target, mean, _ = tokens
    predicted = target + np.random.default_rng(1).normal(size=target.shape)
    found = spectrum(predicted, target, mean)
    r2 = 1 - np.sum((predicted - target) ** 2) / np.sum((target - mean) ** 2)
    assert np.sum(found.share_D * found.r2_D) == pytest.approx(r2, abs=1e-4)
    ratio = np.sum((predicted - mean) ** 2) / np.sum((target - mean) ** 2)
    assert np.sum(found.share_D * found.ratio_D) == pytest.approx(ratio, rel=1e-4)


def test_a_component_that_is_not_reproduced_is_seen_at_its_place(tokens):
    target, mean, turn = tokens
    predicted = target - (target - mean) @ turn.T[:, 2:3] @ turn[2:3]
    found = spectrum(predicted, target, mean)
    assert found.r2_D[[0, 1]] == pytest.approx([1, 1], abs=0.02)
    assert found.r2_D[2] < 0.05
    assert found.ratio_D[2] < 0.05
    assert found.r2_D[3] == pytest.approx(1, abs=0.05)


def test_components_without_variance_are_not_judged(tokens):
    target, mean, turn = tokens
    flat = mean + (target - mean) @ turn.T[:, :3] @ turn[:3]
    found = spectrum(flat + 0.1, flat, mean)
    assert np.isfinite(found.r2_D).tolist() == [True] * 3 + [False] * 5
    assert found.share_D.sum() == pytest.approx(1)
    same = np.broadcast_to(mean, target.shape)
    assert not np.isfinite(spectrum(same, same, mean).r2_D).any()


def test_only_some_images_are_read(tokens, monkeypatch):
    target, mean, _ = tokens
    monkeypatch.setattr(module, "IMAGES", 20)
    predicted = target.copy()
    predicted[1::3] = np.nan  # every third image is read, from the first on
    assert np.isfinite(spectrum(predicted, target, mean).r2_D).all()
