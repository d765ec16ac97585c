"""How sure a figure is: bootstrap over images for ratios of sums, a grouped jackknife for anything else.

Most metrics are a ratio of two sums over images, value = sum_n a_n / sum_n b_n. They are bootstrapped
exactly by drawing how often each image counts: value_r = (W a)_r / (W b)_r with multinomial counts W
[draws, N]. Whatever the image is compared with (retrieval gallery, class prompts, means) stays fixed, so
only the choice of images varies. A Frechet distance is no such ratio, and resampling with repeats biases it
upwards; it gets the delete-a-group jackknife instead: se^2 = (G - 1)/G sum_g (value_without_g - mean)^2. A
value that is not finite has no interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; NaN where it could not be computed."""

    value: float
    low: float
    high: float
    without_G: tuple[float, ...] = ()
    """The value without each group of images, where the interval is a jackknife's."""


NOT_MEASURED = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Ratio:
    """A metric as sum(numerator) / sum(denominator), one entry of each per image."""

    numerator_N: Array
    denominator_N: Array


def mean_of(values_N: Array) -> Ratio:
    """The plain mean over images, as a ratio."""
    return Ratio(np.asarray(values_N, np.float64), np.ones(len(values_N)))


def draw_counts(images: int, *, draws: int, seed: int) -> Array:
    """How often each image counts in each draw [draws, images]; every row sums to `images`."""
    generator = np.random.default_rng(seed)
    counts = np.empty((draws, images))
    for row in counts:
        row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
    return counts


def bootstrap(ratios: Mapping[str, Ratio], counts_RN: Array) -> dict[str, Estimate]:
    """Value on all images and percentile interval over the draws, for all ratios with the same draws."""
    if not ratios:
        return {}
    numerators = np.stack([ratio.numerator_N for ratio in ratios.values()], axis=1)
    denominators = np.stack([ratio.denominator_N for ratio in ratios.values()], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = numerators.sum(axis=0) / denominators.sum(axis=0)
        drawn = (counts_RN @ numerators) / (counts_RN @ denominators)
    tail = (1 - LEVEL) / 2
    # A draw may hold no image that the metric can judge (denominator 0): it says nothing and is left out.
    low, high = np.nanquantile(_finite_or_nan(drawn), [tail, 1 - tail], axis=0)
    columns = zip(ratios, values, low, high, strict=True)
    return {name: _estimate(float(v), float(lo), float(hi)) for name, v, lo, hi in columns}


def jackknife(value: float, without_group_G: Array, *, lowest: float) -> Estimate:
    """Interval of `value` from the same statistic recomputed without each of G groups of images.

    Symmetric, by Student's t with G - 1 degrees of freedom, cut at `lowest` (0 for a distance).
    """
    groups = len(without_group_G)
    if groups < 2 or not np.isfinite(value):
        return _estimate(value, float("nan"), float("nan"))
    deviations = without_group_G - without_group_G.mean()
    error = np.sqrt((groups - 1) / groups * np.sum(deviations**2))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, groups - 1) * error)
    found = _estimate(value, max(lowest, value - reach), value + reach)
    return replace(found, without_G=tuple(without_group_G.tolist()))


def with_noise(estimate: Estimate, values: Array, *, lowest: float, groups: int) -> Estimate:
    """Widen a jackknife interval by the spread of the same statistic over noise seeds.

    Both variances are added, and Student's t has the degrees of freedom of their sum by Welch and Satterthwaite
    (Biometrics Bulletin 2, 1946): two seeds alone, one degree of freedom, make a wide interval. Noise differs between
    images, so leaving images out has seen part of it already. `values` are those of all seeds, the estimate's own
    among them; `groups` is that of the jackknife.
    """
    if len(values) < 2 or not np.isfinite([*values, estimate.high]).all():
        return estimate
    half = max(
        estimate.high - estimate.value, estimate.value - estimate.low
    )  # the other end may have been cut
    of_images = (half / stats.t.ppf((1 + LEVEL) / 2, groups - 1)) ** 2
    of_noise = float(np.var(values, ddof=1))
    if not of_noise > 0:
        return estimate
    total = of_images + of_noise
    freedom = total**2 / (of_images**2 / (groups - 1) + of_noise**2 / (len(values) - 1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(total))
    return replace(estimate, low=max(lowest, estimate.value - reach), high=estimate.value + reach)


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high) if np.isfinite(value) else NOT_MEASURED


def _finite_or_nan(values: Array) -> Array:
    """Infinities become NaN; a column without one finite value keeps a harmless zero to avoid a warning."""
    finite = np.isfinite(values)
    return np.where(finite, values, np.where(finite.any(axis=0), np.nan, 0.0))
