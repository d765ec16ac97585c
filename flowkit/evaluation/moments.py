"""Sums that determine mean and covariance of vectors, for all images or for each of ten disjoint tenths of them.

They add over disjoint sets of images, so the moments without a tenth are the totals less those of that tenth.
Shapes: N images, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from flowkit.evaluation.tokens import Array, Floats, Integers

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


def total(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    return reduce(Moments.__add__, parts)


def tenths_of(images: int) -> Integers:
    """Which tenth each image belongs to [N]."""
    return np.arange(images) % TENTHS


def symmetric_root(matrix_DD: Array) -> Array:
    """Square root of a symmetric positive semi-definite matrix; rounding below zero is cut."""
    values, vectors = np.linalg.eigh(matrix_DD)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
