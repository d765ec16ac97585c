"""Paired differences: against theory, and where single intervals overlap."""

import numpy as np
import pytest

from flowkit.evaluation.bootstrap import draw_counts, jackknife
from flowkit.evaluation.differences import differences

IMAGES = 400
COUNTS = draw_counts(IMAGES, draws=2000, seed=0)


def judged(error_N, **without):
    arrays = {"error_image": error_N, "spread_image": np.ones(len(error_N))}
    return arrays | {f"without_{metric}": values for metric, values in without.items()}


def test_r2_of_paired_errors_has_the_interval_of_their_difference():
    generator = np.random.default_rng(0)
    shared = generator.gamma(4, 0.1, IMAGES)
    ours, theirs = shared, shared + generator.normal(0.01, 0.02, IMAGES)
    found = differences({}, judged(ours), {}, judged(theirs), COUNTS)["r2"]
    assert found.value == pytest.approx(np.mean(theirs - ours))
    half = 1.96 * np.std(theirs - ours) / np.sqrt(IMAGES)
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)
    alone = 1.96 * np.std(ours) / np.sqrt(IMAGES)
    assert found.low > 0  # though either R2 alone is known to
    assert alone > 5 * half


def test_spread_of_the_target_weighs_images():
    arrays = [judged(np.array([0.0, 1.0])), judged(np.array([1.0, 1.0]))]
    for one in arrays:
        one["spread_image"] = np.array([0.5, 1.5])
    found = differences({}, arrays[0], {}, arrays[1], draw_counts(2, draws=50, seed=0))
    assert found["r2"].value == 0.5


def test_figures_of_distributions_are_compared_tenth_by_tenth():
    generator = np.random.default_rng(0)
    shared = generator.normal(1, 0.1, 10)
    ours, theirs = shared, shared + generator.normal(0.05, 0.001, 10)
    found = differences(
        {"fd_img": 1.0, "auc": 0.7}, judged(np.ones(IMAGES), fd_img=ours, auc=ours),
        {"fd_img": 1.05, "auc": None}, judged(np.ones(IMAGES), fd_img=theirs, auc=theirs),
        COUNTS,
    )  # fmt: skip
    assert set(found) == {"r2", "fd_img"}
    assert found["fd_img"].value == pytest.approx(-0.05)
    expected = jackknife(-0.05, ours - theirs, lowest=-np.inf)
    assert (found["fd_img"].low, found["fd_img"].high) == pytest.approx((expected.low, expected.high))
    assert found["fd_img"].high < 0


def test_what_only_one_has_is_left_out_and_other_images_are_refused():
    ours = judged(np.ones(IMAGES), fd_img=np.ones(10))
    assert set(differences({"fd_img": 1.0}, ours, {"fd_img": 1.0}, judged(np.ones(IMAGES)), COUNTS)) == {"r2"}
    with pytest.raises(ValueError, match="400 and 3 images cannot be paired"):
        differences({}, ours, {}, judged(np.ones(3)), COUNTS)
