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

import numpy as np

from flowkit.evaluation.bootstrap import NOT_MEASURED, Estimate, jackknife
from flowkit.evaluation.moments import TENTHS, Moments, symmetric_root, total


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with these moments; both about one shift."""
    root_b = symmetric_root(b.covariance())
    middle = root_b @ a.covariance() @ root_b
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    offset = a.mean() - b.mean()
    distance = offset @ offset + np.trace(a.covariance()) + np.trace(b.covariance()) - 2 * overlap
    return max(0.0, float(distance))


def relative_frechet(
    predicted: Sequence[Moments], target: Sequence[Moments], *, interval: bool = True
) -> Estimate:
    """FD / tr(C_B) of two sets, each as the moments of its tenths, with a jackknife interval if it is asked for.

    The interval takes ten more distances, each some tenths of a second at 1,024 channels.
    """
    return _estimate(predicted, target, lambda p, t: _relative(total(p), total(t)), interval=interval)


def disjoint_frechet(
    predicted: Sequence[Moments], target: Sequence[Moments], *, interval: bool = True
) -> Estimate:
    """Mean of FD / tr(C_B) of one half's predictions to the other half's targets, both ways round."""

    def of_halves(p: Sequence[Moments], t: Sequence[Moments]) -> float:
        ways = [(total(p[half::2]), total(t[1 - half :: 2])) for half in (0, 1)]
        return sum(_relative(*way) for way in ways) / len(ways)

    return _estimate(predicted, target, of_halves, interval=interval)


def halves_are_measurable(images: int, vectors: int, channels: int) -> bool:
    """Whether a half of the images less one tenth of all, the smallest set that is looked at, spans the channels.

    `vectors` is how many of them all images have. Fewer than two images in each tenth are too few for any half.
    """
    return images >= 2 * TENTHS and vectors * (TENTHS // 2 - 1) // TENTHS > channels


def _estimate(
    predicted: Sequence[Moments],
    target: Sequence[Moments],
    statistic: Callable[[Sequence[Moments], Sequence[Moments]], float],
    *,
    interval: bool,
) -> Estimate:
    if not np.trace(total(target).covariance()) > 0 or not np.isfinite(total(predicted).outer_DD).all():
        return NOT_MEASURED
    if not interval:
        return Estimate(statistic(predicted, target), float("nan"), float("nan"))
    empty = Moments(0, *(np.zeros_like(part) for part in (target[0].sum_D, target[0].outer_DD)))
    without = []
    for tenth in range(len(target)):
        left = [[*parts[:tenth], empty, *parts[tenth + 1 :]] for parts in (predicted, target)]
        without.append(statistic(*left))
    return jackknife(statistic(predicted, target), np.array(without), lowest=0.0)


def _relative(predicted: Moments, target: Moments) -> float:
    return frechet_distance(predicted, target) / float(np.trace(target.covariance()))
