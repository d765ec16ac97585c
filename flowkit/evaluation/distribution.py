"""Frechet distance between two sets of vectors, as a share of the target's own spread.

    FD = |m_P - m_B|^2 + tr(C_P + C_B - 2 (C_B^1/2 C_P C_B^1/2)^1/2),   reported as FD / tr(C_B)
So a single point at the target mean scores 1, and equal first and second moments score 0. fd_tok takes all
tokens of all images as vectors, fd_img the token means. Only sums over images enter (count, sum, sum of
outer products), kept per group of images: their total gives the value, the totals less one group give the
jackknife interval. The same images on both sides lie below the distance of two disjoint real sets: compare
with fd_*_disjoint of `true`. With fewer vectors than channels the covariance is singular and the distance
is biased upwards.
"""

from dataclasses import dataclass

import numpy as np

from flowkit.evaluation.bootstrap import NOT_MEASURED, Array, Estimate, jackknife
from flowkit.evaluation.metrics import Floats, mean_over_images

GROUPS = 32


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


def moments(vectors: Floats, shift_D: Array) -> Moments:
    """Sums over all leading axes of [..., D] about `shift_D`, so that a large mean costs no precision."""
    flat = np.asarray(vectors, np.float64).reshape(-1, vectors.shape[-1]) - shift_D
    return Moments(len(flat), flat.sum(axis=0), flat.T @ flat)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with these moments; both about one shift."""
    root_b = symmetric_root(b.covariance())
    middle = root_b @ a.covariance() @ root_b
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    offset = a.mean() - b.mean()
    distance = offset @ offset + np.trace(a.covariance()) + np.trace(b.covariance()) - 2 * overlap
    return max(0.0, float(distance))


def relative_frechet(predicted: Floats, target: Floats) -> Estimate:
    """FD(predicted, target) / tr(cov target) with a jackknife interval; first axis = images, last = channels.

    The two sets may hold different images and different numbers of them; groups are cut from each in turn.
    """
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        return NOT_MEASURED
    groups = min(GROUPS, len(predicted), len(target))
    if groups < 2:
        return NOT_MEASURED
    shift = mean_over_images(target).reshape(-1, target.shape[-1]).mean(axis=0)
    predicted_groups = [moments(predicted[g::groups], shift) for g in range(groups)]
    target_groups = [moments(target[g::groups], shift) for g in range(groups)]
    all_predicted, all_target = _total(predicted_groups), _total(target_groups)
    if np.trace(all_target.covariance()) <= 0:
        return NOT_MEASURED
    without = [
        _relative(all_predicted - p, all_target - t)
        for p, t in zip(predicted_groups, target_groups, strict=True)
    ]
    return jackknife(_relative(all_predicted, all_target), np.array(without), lowest=0.0)


def symmetric_root(matrix_DD: Array) -> Array:
    """Square root of a symmetric positive semi-definite matrix; rounding below zero is cut."""
    values, vectors = np.linalg.eigh(matrix_DD)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _relative(predicted: Moments, target: Moments) -> float:
    return frechet_distance(predicted, target) / float(np.trace(target.covariance()))


def _total(parts: list[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
