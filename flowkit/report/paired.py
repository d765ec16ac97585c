"""How two runs differ on the same images, with an interval, where the summary does not hold one against the other.

    R2        sum_n (e'_n - e_n) / sum_n s_n, e and e' the errors of image n, s its spread; percentiles of 1,000 draws
              of the images, as `evaluation.differences` has it
    others    a figure less the other, their jackknife over tenths of the images
Here and in compare.js the draws are the same: draw r of N images takes rows floor(N mix(r N + n + 1) / 2^32) for
n = 0 .. N - 1, where mix multiplies the count by 0x9e3779b9 and stirs its bits (splitmix32). Shapes: N images,
R draws, G tenths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 1000
LEVEL = 0.95
_GOLDEN = 0x9E3779B9
_AT_ONCE = 50


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a difference."""

    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether it leaves no doubt about the sign."""
        return self.low > 0 or self.high < 0

    def scaled(self, by: float) -> Interval:
        """Return the interval of `by` times the difference, `by` above 0."""
        return Interval(by * self.low, by * self.high)


def drawn_rows(images: int, first: int, last: int) -> NDArray[np.uint64]:
    """Return the images of draws `first` to `last` - 1 as rows [last - first, images]."""
    counts = np.arange(first * images + 1, last * images + 1, dtype=np.uint64)
    bits = (counts * _GOLDEN).astype(np.uint32)
    bits ^= bits >> np.uint32(16)
    bits *= np.uint32(0x21F0AAAD)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x735A2D97)
    bits ^= bits >> np.uint32(15)
    return ((bits.astype(np.uint64) * np.uint64(images)) >> np.uint64(32)).reshape(-1, images)


def r2_interval(error: Sequence[float], other: Sequence[float], spread: Sequence[float]) -> Interval | None:
    """Return the interval of R2 of `error` less that of `other`; None for fewer than two images."""
    images = len(error)
    if images < 2:
        return None
    better, weight = np.asarray(other) - np.asarray(error), np.asarray(spread, np.float64)
    drawn = []
    for first in range(0, DRAWS, _AT_ONCE):
        rows = drawn_rows(images, first, min(first + _AT_ONCE, DRAWS))
        drawn.append(better[rows].sum(axis=1) / weight[rows].sum(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def jackknife_interval(value: float, without: Sequence[float], other: Sequence[float]) -> Interval:
    """Return the interval of a difference `value` from both figures without each tenth of the images."""
    deviations = np.subtract(without, other)
    reach = jackknife_factor(len(without)) * float(np.sqrt(np.sum((deviations - deviations.mean()) ** 2)))
    return Interval(value - reach, value + reach)


def jackknife_factor(groups: int) -> float:
    """Return half the interval's width over the root of the summed squared deviations."""
    return float(stats.t.ppf((1 + LEVEL) / 2, groups - 1) * np.sqrt((groups - 1) / groups))
