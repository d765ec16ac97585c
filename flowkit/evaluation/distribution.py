"""Frechet distance between two sets of vectors, as a share of the target's own spread.

    FD = |m_P - m_B|^2 + tr(C_P + C_B - 2 (C_B^1/2 C_P C_B^1/2)^1/2),   reported as FD / tr(C_B)
So a single point at the target mean scores 1, and equal first and second moments score 0. fd_tok takes all
tokens of all images as vectors, fd_img the token means. Only sums over images enter (count, sum, sum of
outer products), kept for each of ten disjoint tenths of the images: their total gives the value, the totals
less one tenth the jackknife interval, and every other tenth a half of the images. The same images on both
sides lie below the distance of two disjoint real sets, so *_disjoint compares one half's predictions with
the other half's true tokens, both ways; its value for the true tokens is the noise floor. With no more
vectors than channels the covariance is singular and the distance says nothing: it is not measured then.
Shapes: N images, D channels, G tenths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from flowkit.evaluation.bootstrap import NOT_MEASURED, Array, Estimate, jackknife
from flowkit.evaluation.tokens import Floats, Integers

TENTHS = 10


@dataclass(frozen=True)
class Moments:
    """Sums that determine mean and covariance; they add over disjoint sets of images."""

    count: int
    sum_D: Array
    outer_DD: Array

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.sum_D + other.sum_D, self.outer_DD + other.outer_DD)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.sum_D - other.sum_D, self.outer_DD - other.outer_DD)

    def mean(self) -> Array:
        """Mean vector [D]."""
        return self.sum_D / self.count

    def covariance(self) -> Array:
        """Covariance [D, D] with divisor count."""
        return self.outer_DD / self.count - np.outer(self.mean(), self.mean())


class TenthsOfMoments:
    """Moments about `shift_D` of each tenth of the images, filled chunk by chunk; image n belongs to tenth n mod 10."""

    def __init__(self, shift_D: Array) -> None:
        self._shift_D = shift_D
        channels = len(shift_D)
        self._counts = [0] * TENTHS
        self._sums = np.zeros((TENTHS, channels))
        self._outers = np.zeros((TENTHS, channels, channels))

    def add(self, vectors: Floats, first: int) -> None:
        """Count in the vectors [n, ..., D] of the images from number `first` on."""
        tenth_N = (first + np.arange(len(vectors))) % TENTHS
        for tenth in range(TENTHS):
            mine = vectors[tenth_N == tenth]
            flat = np.asarray(mine, np.float64).reshape(-1, len(self._shift_D)) - self._shift_D
            self._counts[tenth] += len(flat)
            self._sums[tenth] += flat.sum(axis=0)
            self._outers[tenth] += flat.T @ flat

    def moments(self) -> list[Moments]:
        """The moments of the ten tenths."""
        return [Moments(*parts) for parts in zip(self._counts, self._sums, self._outers, strict=True)]


def moments(vectors: Floats, shift_D: Array) -> Moments:
    """Sums over all leading axes of [..., D] about `shift_D`, so that a large mean costs no precision."""
    flat = np.asarray(vectors, np.float64).reshape(-1, vectors.shape[-1]) - shift_D
    return Moments(len(flat), flat.sum(axis=0), flat.T @ flat)


def moments_of_tenths(vectors: Floats, shift_D: Array) -> list[Moments]:
    """The moments of the tenths of images [N, ..., D] that are in memory."""
    tenths = TenthsOfMoments(shift_D)
    tenths.add(vectors, 0)
    return tenths.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with these moments; both about one shift."""
    root_b = symmetric_root(b.covariance())
    middle = root_b @ a.covariance() @ root_b
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    offset = a.mean() - b.mean()
    distance = offset @ offset + np.trace(a.covariance()) + np.trace(b.covariance()) - 2 * overlap
    return max(0.0, float(distance))


def relative_frechet(predicted: Sequence[Moments], target: Sequence[Moments]) -> Estimate:
    """FD / tr(C_B) of two sets, each as the moments of its tenths, with a jackknife interval."""
    return _estimate(predicted, target, lambda p, t: _relative(total(p), total(t)))


def disjoint_frechet(predicted: Sequence[Moments], target: Sequence[Moments]) -> Estimate:
    """Mean of FD / tr(C_B) of one half's predictions to the other half's targets, both ways round."""

    def of_halves(p: Sequence[Moments], t: Sequence[Moments]) -> float:
        ways = [(total(p[half::2]), total(t[1 - half :: 2])) for half in (0, 1)]
        return sum(_relative(*way) for way in ways) / len(ways)

    return _estimate(predicted, target, of_halves)


def symmetric_root(matrix_DD: Array) -> Array:
    """Square root of a symmetric positive semi-definite matrix; rounding below zero is cut."""
    values, vectors = np.linalg.eigh(matrix_DD)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def total(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    return reduce(Moments.__add__, parts)


def half_is_measurable(count: int, channels: int) -> bool:
    """Whether half of `count` vectors, less a tenth, still spans `channels` dimensions."""
    return count * (TENTHS - 1) // (2 * TENTHS) > channels


def _estimate(
    predicted: Sequence[Moments],
    target: Sequence[Moments],
    statistic: Callable[[Sequence[Moments], Sequence[Moments]], float],
) -> Estimate:
    if not np.trace(total(target).covariance()) > 0 or not np.isfinite(total(predicted).outer_DD).all():
        return NOT_MEASURED
    empty = Moments(0, *(np.zeros_like(part) for part in (target[0].sum_D, target[0].outer_DD)))
    without = []
    for tenth in range(len(target)):
        left = [[*parts[:tenth], empty, *parts[tenth + 1 :]] for parts in (predicted, target)]
        without.append(statistic(*left))
    return jackknife(statistic(predicted, target), np.array(without), lowest=0.0)


def _relative(predicted: Moments, target: Moments) -> float:
    return frechet_distance(predicted, target) / float(np.trace(target.covariance()))


def tenths_of(images: int) -> Integers:
    """Which tenth each image belongs to [N]."""
    return np.arange(images) % TENTHS
