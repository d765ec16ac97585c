"""What features look like before anything is trained on them: channels, norms, and images that two sets share.

    spread     standard deviation of a channel over tokens (divisor: their number)
    kurtosis   E (x - mean)^4 / spread^4: 3 for a normal distribution, large where few tokens carry a channel
    share      variance of a channel over the variance of all channels
    massive    root mean square over `MASSIVE` times that of the median channel
    constant   spread below the rounding of float16 at the channel's mean
    match      the largest cosine between a vector and those of another set

Tokens and vectors come chunk by chunk, so memory does not grow with their number. Shapes: D channels, Q vectors whose
matches are looked for, n vectors of a chunk, P their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.tokens import Array, Floats, Integers
from flowkit.features.quantisation import HALF_PRECISION

MASSIVE = 10.0
TIE = 1e-6
"""Cosines closer than this are equal: products differ in their last bits."""
SIMILARITIES = 2**24
"""Cosines in memory at once: 64 MiB in float32."""
FEWEST_BINS, MOST_BINS = 12, 60
PRECISION = 1e-12
"""Relative error of sums in double precision."""
NO_COSINE = -2.0
"""Below every cosine: nothing was compared yet, or a vector is not finite."""


@dataclass(frozen=True)
class ChannelFigures:
    """Figures of every channel [D] over `tokens` tokens; `not_finite` values, and their tokens, are left out."""

    tokens: int
    not_finite: int
    mean_D: Array
    spread_D: Array
    kurtosis_D: Array

    @property
    def offset_D(self) -> Array:
        """|mean| over spread; NaN for a constant channel."""
        return np.where(self.is_constant_D, np.nan, np.abs(self.mean_D) / _nonzero(self.spread_D))

    @property
    def share_D(self) -> Array:
        """Share of the variance of all channels."""
        variance_D = np.square(self.spread_D)
        return variance_D / _nonzero(variance_D.sum())

    @property
    def is_constant_D(self) -> NDArray[np.bool_]:
        """Whether a channel varies less than float16 can tell."""
        return self.spread_D <= HALF_PRECISION * np.abs(self.mean_D)

    @property
    def is_massive_D(self) -> NDArray[np.bool_]:
        """Whether a channel's root mean square is over `MASSIVE` times that of the median channel."""
        size_D = np.sqrt(np.square(self.mean_D) + np.square(self.spread_D))
        return size_D > MASSIVE * np.median(size_D)

    def top_share(self, channels: int) -> float:
        """Share of the variance that the `channels` channels of the largest variance hold together."""
        return float(np.sort(self.share_D)[::-1][:channels].sum())


class ChannelSums:
    """Sums over tokens, filled chunk by chunk, from which the figures of channels follow."""

    def __init__(self) -> None:
        self._tokens = self._not_finite = 0
        self._shift_D: Array | None = None
        self._powers_4D = np.zeros((4, 0))

    def add(self, tokens: Floats) -> None:
        """Count in the tokens [..., D]."""
        flat_nD = np.asarray(tokens, np.float64).reshape(-1, tokens.shape[-1])
        is_finite_nD = np.isfinite(flat_nD)
        if not is_finite_nD.all():
            self._not_finite += int(is_finite_nD.size - is_finite_nD.sum())
            flat_nD = flat_nD[is_finite_nD.all(axis=1)]
        if not len(flat_nD):
            return
        if self._shift_D is None:  # powers of distances from near the mean keep their precision
            self._shift_D = flat_nD.mean(axis=0)
            self._powers_4D = np.zeros((4, flat_nD.shape[1]))
        self._tokens += len(flat_nD)
        distance_nD = flat_nD - self._shift_D
        power_nD = distance_nD.copy()
        for order in range(4):
            self._powers_4D[order] += power_nD.sum(axis=0)
            power_nD *= distance_nD

    def figures(self) -> ChannelFigures:
        """Return the figures of all tokens so far; raises `ValueError` if none of them was finite."""
        if self._shift_D is None:
            raise ValueError(f"no finite token was added ({self._not_finite} values are not finite)")
        one_D, two_D, three_D, four_D = self._powers_4D / self._tokens
        mean_D, variance_D = self._shift_D + one_D, np.maximum(two_D - one_D**2, 0)
        variance_D[variance_D <= (PRECISION * mean_D) ** 2] = (
            0  # all values are equal but for their sums' rounding
        )
        fourth_D = four_D - 4 * one_D * three_D + 6 * one_D**2 * two_D - 3 * one_D**4
        kurtosis_D = np.where(variance_D > 0, fourth_D / _nonzero(variance_D**2), np.nan)
        return ChannelFigures(self._tokens, self._not_finite, mean_D, np.sqrt(variance_D), kurtosis_D)


def token_norms(tokens: Floats) -> Array:
    """Length of each token [...] of [..., D]."""
    return np.sqrt(np.einsum("...d,...d->...", tokens, tokens, dtype=np.float64))


def bin_edges(values: Sequence[Floats]) -> Array:
    """Edges of bins around everything in `values`: in equal ratios where it spans over a factor of ten, else equal.

    The smallest set decides how many, between `FEWEST_BINS` and `MOST_BINS`: few values in many bins are a comb. What
    is not finite is left out; without anything finite the edges are those of 0 to 1.
    """
    finite = [part[np.isfinite(part)] for part in map(np.ravel, values)]
    bins = int(np.clip(2 * np.sqrt(min(part.size for part in finite)), FEWEST_BINS, MOST_BINS))
    low = min((float(part.min()) for part in finite if part.size), default=0.0)
    high = max((float(part.max()) for part in finite if part.size), default=1.0)
    if low == high:
        low, high = low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0)
    if low > 0 and high > 10 * low:
        return np.geomspace(low, high, bins + 1)
    return np.linspace(low, high, bins + 1)


class BestMatches:
    """The best match of each of some vectors [Q, P] among others that come chunk by chunk.

    Of vectors that are equally near, to within `TIE`, the first counts: the last bits of a product decide nothing. What
    is not finite is near to nothing.
    """

    def __init__(self, vectors_QP: Floats) -> None:
        self._query_QP, self._is_finite_Q = _unit(vectors_QP)
        self._best_Q = np.full(len(vectors_QP), NO_COSINE)

    @property
    def cosine_Q(self) -> Array:
        """Cosine of each best match so far; NaN where there was nothing to compare with."""
        return np.where(self._best_Q > NO_COSINE, self._best_Q, np.nan)

    def add(self, vectors_nP: Floats) -> tuple[Integers, Integers]:
        """Compare with more vectors; returns which of the Q found a better match, and its row among the n."""
        row_Q = np.full(len(self._query_QP), -1, np.int64)
        step = max(1, SIMILARITIES // max(1, len(self._query_QP)))
        for start in range(0, len(vectors_nP), step):
            self._compare(vectors_nP[start : start + step], start, row_Q)
        found = np.flatnonzero(row_Q >= 0)
        return found, row_Q[found]

    def _compare(self, vectors_nP: Floats, start: int, row_Q: Integers) -> None:
        unit_nP, is_finite_n = _unit(vectors_nP)
        cosine_nQ = unit_nP @ self._query_QP.T
        cosine_nQ[~is_finite_n] = NO_COSINE
        largest_Q = np.where(self._is_finite_Q, cosine_nQ.max(axis=0, initial=NO_COSINE), NO_COSINE)
        better = np.flatnonzero(largest_Q > self._best_Q + TIE)  # few of them, once some vectors were seen
        if len(better):
            is_near = cosine_nQ[:, better] >= largest_Q[better] - np.float32(TIE)
            row_Q[better] = start + is_near.argmax(axis=0)
            self._best_Q[better] = largest_Q[better]


def best_within(vectors_QP: Floats) -> Array:
    """Cosine of each vector's best match among the others [Q]; NaN where there is no other that is finite."""
    unit_QP, is_finite_Q = _unit(vectors_QP)
    count = len(unit_QP)
    if count < 2:
        return np.full(count, np.nan)
    best_Q = np.full(count, NO_COSINE)
    step = max(1, SIMILARITIES // count)
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        cosine_nQ = unit_QP[rows] @ unit_QP.T
        cosine_nQ[:, ~is_finite_Q] = NO_COSINE
        cosine_nQ[rows - start, rows] = NO_COSINE
        best_Q[rows] = cosine_nQ.max(axis=1)
    return np.where(is_finite_Q & (best_Q > NO_COSINE), best_Q, np.nan)


def _unit(vectors: Floats) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of length 1 in single precision, twice as fast and 1e-7 off; and which rows are finite.

    A zero row stays zero, and one that is not finite becomes zero.
    """
    values = np.asarray(vectors, np.float32)
    lengths: NDArray[np.float32] = np.linalg.norm(values, axis=1, keepdims=True)
    is_finite = np.isfinite(lengths[:, 0])
    lengths[lengths == 0] = 1
    if not is_finite.all():
        values, lengths = np.where(is_finite[:, None], values, 0), np.where(is_finite[:, None], lengths, 1)
    return values / lengths, is_finite


def _nonzero(values: Array | float) -> Array:
    """What may be divided by."""
    return np.where(np.asarray(values) > 0, values, 1.0)


def rounded(values: Floats | float) -> Array:
    """Six digits of each value: the last ones differ between machines, and the digest of a result must not."""
    flat = [float(f"{value:.6g}") for value in np.ravel(values)]
    return np.array(flat).reshape(np.shape(values))


def known(value: float) -> float | None:
    """Six digits of a value, None if it is not finite."""
    return float(rounded(value)) if np.isfinite(value) else None
