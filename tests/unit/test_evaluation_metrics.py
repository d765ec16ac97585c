"""Token metrics against closed forms, hand examples and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import paired_cosine_distances

from flowkit.evaluation import tokens as tokens_module
from flowkit.evaluation.bootstrap import bootstrap, draw_counts
from flowkit.evaluation.collected import collect, collect_true
from flowkit.evaluation.metrics import token_ratios, token_statistics
from flowkit.evaluation.tokens import chunks, mean_over_images

NAMES = ("tok_cos", "tok_ccos", "img_cos", "img_ccos", "r2", "var_ratio", "norm_ratio")


def values_of(predicted, target, mean):
    found = collect(predicted, collect_true(target, mean, None))
    ratios = token_ratios(found.statistics, found.predicted_offset, found.target_offset)
    estimates = bootstrap(ratios, draw_counts(len(target), draws=20, seed=0))
    return {name: estimate.value for name, estimate in estimates.items()}


@pytest.fixture
def tokens():
    generator = np.random.default_rng(0)
    target = generator.normal(size=(300, 5, 8)) + np.linspace(-1, 2, 8)  # more than one chunk of images
    predicted = target + 0.5 * generator.normal(size=target.shape)
    return predicted.astype(np.float32), target.astype(np.float32), target.mean(axis=0)


def test_perfect_prediction(tokens):
    _, target, mean = tokens
    assert values_of(target, target, mean) == pytest.approx(dict.fromkeys(NAMES, 1.0))


def test_against_scikit_learn(tokens):
    predicted, target, mean = tokens
    found = values_of(predicted, target, mean)
    flat = [a.reshape(len(target), -1) for a in (target, predicted)]
    assert found["r2"] == pytest.approx(r2_score(*flat, multioutput="variance_weighted"), abs=1e-6)
    cosines = 1 - paired_cosine_distances(predicted.reshape(-1, 8), target.reshape(-1, 8))
    assert found["tok_cos"] == pytest.approx(cosines.mean(), abs=1e-6)
    centred = 1 - paired_cosine_distances((predicted - mean).reshape(-1, 8), (target - mean).reshape(-1, 8))
    assert found["tok_ccos"] == pytest.approx(centred.mean(), abs=1e-6)
    means = 1 - paired_cosine_distances(predicted.mean(axis=1), target.mean(axis=1))
    assert found["img_cos"] == pytest.approx(means.mean(), abs=1e-6)


def test_constant_prediction_is_worth_nothing_once_centred(tokens):
    """Also after a trip through float16, where rounding leaves a deviation with a direction."""
    _, target, mean = tokens
    constant = np.repeat(mean[None].astype(np.float16), len(target), axis=0)
    found = values_of(constant, target, mean)
    assert found["r2"] == pytest.approx(0.0, abs=1e-5)
    assert found["tok_ccos"] == 0.0
    assert found["img_ccos"] == 0.0
    assert found["var_ratio"] == pytest.approx(0.0, abs=1e-12)
    assert found["img_cos"] > 0.8  # the reason why the centred cosine exists


def test_unbiased_noise_halves_r2_and_inflates_variance():
    """P = B + e with the energy of B's deviations: R2 = 0, variance ratio 2."""
    generator = np.random.default_rng(1)
    target, noise = generator.normal(size=(2, 4000, 2, 3))
    found = values_of(target + noise, target, np.zeros((2, 3)))
    assert found["r2"] == pytest.approx(0.0, abs=0.05)
    assert found["var_ratio"] == pytest.approx(2.0, abs=0.05)
    assert found["norm_ratio"] == pytest.approx(np.sqrt(2), abs=0.03)


def test_shrunk_prediction():
    target = np.random.default_rng(2).normal(size=(100, 3, 4))
    mean = target.mean(axis=0)
    found = values_of(mean + 0.5 * (target - mean), target, mean)
    assert found["r2"] == pytest.approx(0.75)
    assert found["var_ratio"] == pytest.approx(0.25)
    assert found["tok_ccos"] == pytest.approx(1.0)


def test_by_hand():
    """Two images of one token in the plane, mean at the origin."""
    target = np.array([[[3.0, 4.0]], [[-3.0, -4.0]]])
    predicted = np.array([[[4.0, 3.0]], [[-4.0, 3.0]]])
    found = values_of(predicted, target, np.zeros((1, 2)))
    assert found["tok_cos"] == pytest.approx((24 / 25 + 0 / 25) / 2)
    assert found["r2"] == pytest.approx(1 - (2 + 50) / 50)
    assert found["var_ratio"] == pytest.approx((16 + 16) / 50)  # deviations from the mean (0, 3)
    assert found["norm_ratio"] == pytest.approx(1.0)


def test_token_means_hide_wrong_tokens():
    """Tokens of an image swapped: cosine of means is perfect, per token it is not."""
    target = np.random.default_rng(3).normal(size=(50, 6, 16))
    found = values_of(target[:, ::-1], target, target.mean(axis=0))
    assert found["img_cos"] == pytest.approx(1.0)
    assert found["tok_cos"] < 0.2


def test_chunk_size_does_not_matter(tokens, monkeypatch):
    whole = values_of(*tokens)
    monkeypatch.setattr(tokens_module, "MOST_ROWS", 7)
    assert values_of(*tokens) == pytest.approx(whole, rel=1e-12)
    assert mean_over_images(tokens[1]) == pytest.approx(tokens[1].mean(axis=0), abs=1e-6)


def test_chunks_cover_all_images_and_hold_a_bounded_number_of_values():
    for images, values in ((1, 1), (256, 10), (257, 10), (5000, 257 * 1024), (3, 2**30)):
        ranges = list(chunks(images, values))
        assert [row for rows in ranges for row in range(rows.start, rows.stop)] == list(range(images))
        assert all((rows.stop - rows.start - 1) * values <= 2**23 for rows in ranges)


def test_not_finite_prediction_is_not_hidden(tokens):
    predicted, target, mean = tokens
    broken = predicted.copy()
    broken[17, 2, 3] = np.nan
    assert all(np.isnan(value) for value in values_of(broken, target, mean).values())


def test_shapes_are_checked(tokens):
    predicted, target, mean = tokens
    with pytest.raises(ValueError, match=r"predicted \(300, 4, 8\)"):
        token_statistics(predicted[:, :4], target, mean)
