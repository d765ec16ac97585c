"""What a learned translator is measured against: maps with a closed form, fitted on the training pairs.

    constant    the training mean of each target position
    nearest     the target of the training image with the closest source (squared distance over all tokens)
    procrustes  one orthogonal matrix for all tokens, after centring each position: rotation without scale
    ridge       linear in all source tokens of the image at once, penalty by leave-one-image-out
    ridge_ot    ridge, then the Gaussian optimal transport map of single tokens onto the true tokens' moments,
                fitted on ridge's left-out predictions (its training predictions are better than it will be)
The baseline `true` needs no fit: the target stands in for the prediction. `regression` is a trained run,
not a baseline here. Shapes: N images, T tokens, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import linalg

from flowkit.errors import ConfigError
from flowkit.evaluation.bootstrap import Array
from flowkit.evaluation.distribution import Moments, moments, symmetric_root
from flowkit.evaluation.ridge import RidgeMap, ridge_problem
from flowkit.evaluation.tokens import Floats, chunks, mean_over_images

BASELINES = ("constant", "nearest", "procrustes", "ridge", "ridge_ot")


class Baseline(Protocol):
    """A fitted map from source tokens to target tokens."""

    def predict(self, source_NTD: Floats) -> Floats:
        """Target-shaped prediction [N, T, D] in float32."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same tokens for every image."""

    mean_TD: Array

    def predict(self, source_NTD: Floats) -> Floats:
        """The mean, once per image."""
        return np.repeat(self.mean_TD[None].astype(np.float32), len(source_NTD), axis=0)


@dataclass(frozen=True)
class Nearest:
    """Looks the answer up among the training images."""

    source_NI: Array  # flattened, less offset_I
    offset_I: Array
    target_NTD: Floats

    def predict(self, source_NTD: Floats) -> Floats:
        """Target tokens of the nearest training image."""
        return np.asarray(self.target_NTD[self.nearest_rows(source_NTD)], np.float32)

    def nearest_rows(self, source_NTD: Floats) -> np.ndarray:
        """Row of the nearest training image for each image; the first of equals."""
        flat = source_NTD.reshape(len(source_NTD), -1)
        squares = np.einsum("ni,ni->n", self.source_NI, self.source_NI)
        rows = [
            np.argmin(squares - 2 * ((flat[part] - self.offset_I) @ self.source_NI.T), axis=1)
            for part in chunks(len(flat))
        ]
        return np.concatenate(rows)


@dataclass(frozen=True)
class Procrustes:
    """An orthogonal map of single tokens between centred positions; a projection where widths differ."""

    rotation_SD: Array
    source_mean_TS: Array
    target_mean_TD: Array

    def predict(self, source_NTD: Floats) -> Floats:
        """Rotated tokens."""
        rotated = (source_NTD - self.source_mean_TS) @ self.rotation_SD + self.target_mean_TD
        return rotated.astype(np.float32)


@dataclass(frozen=True)
class Transported:
    """Ridge followed by an affine map of single tokens."""

    ridge: RidgeMap
    predicted_mean_D: Array
    true_mean_D: Array
    transport_DD: Array

    def predict(self, source_NTD: Floats) -> Floats:
        """Ridge's tokens moved to the true tokens' mean and covariance."""
        moved = (
            self.ridge.predict(source_NTD) - self.predicted_mean_D
        ) @ self.transport_DD + self.true_mean_D
        return moved.astype(np.float32)


def fit_baselines(
    source_NTD: Floats, target_NTD: Floats, names: Sequence[str] = BASELINES
) -> dict[str, Baseline]:
    """Fit the named baselines on training pairs; ridge is decomposed once for both that need it."""
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise ConfigError(f"unknown baselines {unknown}: choose from {list(BASELINES)}")
    fitted: dict[str, Baseline] = {}
    if "constant" in names:
        fitted["constant"] = fit_constant(source_NTD, target_NTD)
    if "nearest" in names:
        fitted["nearest"] = fit_nearest(source_NTD, target_NTD)
    if "procrustes" in names:
        fitted["procrustes"] = fit_procrustes(source_NTD, target_NTD)
    if "ridge" in names or "ridge_ot" in names:
        both = _fit_ridge_pair(source_NTD, target_NTD)
        fitted |= {name: both[name] for name in ("ridge", "ridge_ot") if name in names}
    return {name: fitted[name] for name in names}


def fit_constant(source_NTD: Floats, target_NTD: Floats) -> Constant:
    """The training mean; the source is not looked at."""
    return Constant(mean_over_images(target_NTD))


def fit_nearest(source_NTD: Floats, target_NTD: Floats) -> Nearest:
    """Remember the training pairs."""
    flat = np.asarray(source_NTD, np.float32).reshape(len(source_NTD), -1)
    # Distances do not change with the origin; their rounding does.
    offset = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Nearest(flat - offset, offset, target_NTD)


def fit_procrustes(source_NTD: Floats, target_NTD: Floats) -> Procrustes:
    """argmin over orthogonal R of sum |(S - mean) R - (B - mean)|^2, from the SVD of the cross-covariance."""
    if source_NTD.shape[:2] != target_NTD.shape[:2]:
        raise ConfigError(
            f"procrustes maps token to token: source has {source_NTD.shape[1]} tokens, target "
            f"{target_NTD.shape[1]}; leave it out for layouts whose token counts differ"
        )
    source_mean, target_mean = mean_over_images(source_NTD), mean_over_images(target_NTD)
    cross = np.zeros((source_NTD.shape[2], target_NTD.shape[2]))
    for rows in chunks(len(source_NTD)):
        centred_source, centred_target = source_NTD[rows] - source_mean, target_NTD[rows] - target_mean
        cross += np.tensordot(centred_source, centred_target, axes=((0, 1), (0, 1)))
    left, _, right = linalg.svd(cross, full_matrices=False)
    return Procrustes(left @ right, source_mean, target_mean)


def fit_ridge(source_NTD: Floats, target_NTD: Floats) -> RidgeMap:
    """Ridge on all tokens flattened."""
    problem = ridge_problem(source_NTD, target_NTD)
    return problem.solve(problem.best_penalty())


def gaussian_transport(start: Moments, end: Moments) -> Array:
    """Symmetric matrix A of the optimal map x -> m_end + A (x - m_start) between two Gaussians [D, D].

    A = R^-1 (R C_end R)^1/2 R^-1 with R = C_start^1/2; directions without spread at the start map to zero.
    """
    values, vectors = np.linalg.eigh(start.covariance())
    has_spread = values > values.max() * len(values) * np.finfo(np.float64).eps
    roots = np.sqrt(np.where(has_spread, values, 0.0))
    inverse_roots = np.where(has_spread, 1.0 / np.where(has_spread, roots, 1.0), 0.0)
    root = (vectors * roots) @ vectors.T
    inverse_root = (vectors * inverse_roots) @ vectors.T
    middle = root @ end.covariance() @ root
    return inverse_root @ symmetric_root((middle + middle.T) / 2) @ inverse_root


def _fit_ridge_pair(source_NTD: Floats, target_NTD: Floats) -> dict[str, Baseline]:
    problem = ridge_problem(source_NTD, target_NTD)
    penalty = problem.best_penalty()
    ridge = problem.solve(penalty)
    shift = mean_over_images(target_NTD).mean(axis=0)
    predicted, true = moments(problem.left_out(penalty), shift), moments(target_NTD, shift)
    transported = Transported(
        ridge, predicted.mean() + shift, true.mean() + shift, gaussian_transport(predicted, true)
    )
    return {"ridge": ridge, "ridge_ot": transported}
