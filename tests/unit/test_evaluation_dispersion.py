"""The spread over noise seeds against cases in which the right answer is known."""

import numpy as np
import pytest

from flowkit.evaluation.bootstrap import bootstrap, draw_counts
from flowkit.evaluation.dispersion import MEASURES, dispersion_ratios


def measured(samples, target, mean):
    ratios = dispersion_ratios(samples, target, mean)
    assert tuple(ratios) == MEASURES
    counts = draw_counts(len(ratios["dispersion"].numerator_N), draws=50, seed=0)
    return {name: estimate.value for name, estimate in bootstrap(ratios, counts).items()}


@pytest.mark.parametrize("seeds", [2, 4, 9])
@pytest.mark.parametrize("width", [1.0, 0.5, 2.0])
def test_spread_of_samples_that_are_too_narrow_or_too_wide(seeds, width):
    """Target N(c, v) given the source, samples N(c, v width^2): calibrated at width 1, with any number of seeds."""
    generator = np.random.default_rng(seeds)
    condition = generator.normal(size=(4000, 3, 4))
    target = condition + 0.6 * generator.normal(size=condition.shape)
    samples = [condition + 0.6 * width * generator.normal(size=condition.shape) for _ in range(seeds)]
    found = measured(samples, target, np.zeros((3, 4)))
    # E|M - B|^2 = v (1 + width^2 / K) and E S = v width^2
    theory = width**2 * (1 + 1 / seeds) / (1 + width**2 / seeds)
    assert found["dispersion"] == pytest.approx(theory, rel=0.03)
    assert found["seed_spread"] == pytest.approx(0.36 * width**2 / 1.36, rel=0.03)
    assert (theory == 1) == (width == 1)
    assert found["r2_of_mean"] == pytest.approx(1 - 0.36 * (1 + width**2 / seeds) / 1.36, abs=0.01)


def test_a_deterministic_sampler_has_no_spread():
    target = np.random.default_rng(0).normal(size=(50, 2, 3))
    guess = target + 0.1
    found = measured([guess, guess, guess], target, np.zeros((2, 3)))
    assert found["seed_spread"] == pytest.approx(0.0, abs=1e-25)
    assert found["dispersion"] == pytest.approx(0.0, abs=1e-25)


def test_further_seeds_may_hold_the_first_images_alone():
    generator = np.random.default_rng(1)
    target = generator.normal(size=(60, 2, 3))
    first, second = target + 0.3 * generator.normal(size=(2, 60, 2, 3))
    few = dispersion_ratios([first, second[:20]], target, np.zeros((2, 3)))
    all_of_few = dispersion_ratios([first[:20], second[:20]], target[:20], np.zeros((2, 3)))
    for name in MEASURES:
        assert few[name].numerator_N == pytest.approx(all_of_few[name].numerator_N)
        assert len(few[name].numerator_N) == 20
