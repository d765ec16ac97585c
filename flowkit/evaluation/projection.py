"""The source tokens of an image as at most K numbers, its principal scores, found without looking at the target.

One row per image: X [N, I] with I = T E, columns centred. The scores are Z = X V with V'V = 1 and Z'Z diagonal over
the training images, so that ridge, its left-out predictions and distances all come from one decomposition.

    T E <= K    V holds all eigenvectors of X'X with spread: a rotation, nothing is lost, float64
    T E > K     1. fewer positions and channels: X_n [T, E] becomes P' X_n C, P and C the leading eigenvectors of
                   sum X_n X_n' [T, T] and sum X_n' X_n [E, E] over some images, sizes chosen so that P C <= 16 K and
                   least is discarded (a class token in the place of all tokens needs one position)
                2. the K leading principal directions of the flattened P C values, from the Gram matrix of 2 K images
                3. the rotation that makes Z'Z diagonal over all images
                float32 products, float64 decompositions

What it costs, in R2 of ridge on the demo (6,000 images, 17 x 128 values): all 2,176 scores .947; K = 1,024 .940, 512
.920, 256 .885. Nearly all of that is the truncation itself: the best 512 directions, of all images and not of 1,024,
give .922, and step 1 takes nothing at K = 64 (P C = 1,020) and .003 at K = 8 (P C = 128, the sixteenth that it keeps at
full size). Left-out predictions are by .001 (512 of 6,000) to .003 (512 of 1,200) of R2 too good, because the
directions know the image that is left out; the penalty that they choose is the best one all the same.

Memory: the scores [N, K], and in step 2 [2K, P C] in float16, [2K, 2K] in float64 and [P C, K] in float32: 3 GB for
K = 4096, whatever N. Shapes: N images, T positions, E channels of the source, F = P C values after step 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from flowkit.errors import ConfigError
from flowkit.evaluation.tokens import (
    Array,
    Chosen,
    Floats,
    Tokens,
    chunks,
    evenly_spaced,
    token_chunks,
)
from flowkit.progress import Progress

REDUCED_PER_INPUT = 16
"""F / K, at most."""
REDUCTION_IMAGES = 512
"""Images that step 1 looks at, evenly spaced."""
DIRECTION_IMAGES_PER_INPUT = 2
"""Images that step 2 looks at, evenly spaced, for each of K; fewer than K images give fewer directions."""
ROUNDING = 1e-6
"""Share of the variance that step 1 does not take more positions or channels for."""
FLAT = 1e-5
"""Directions whose eigenvalue in step 2 is below this share of the mean eigenvalue are rounding."""
COLUMNS = 4096


@dataclass(frozen=True)
class Reduction:
    """Tokens less the training mean, on fewer positions and channels, flattened; None keeps them as they are."""

    mean_TE: Floats
    positions_TP: Floats | None = None
    channels_EC: Floats | None = None

    @property
    def width(self) -> int:
        """Values per image, F."""
        positions, channels = self.mean_TE.shape
        if self.positions_TP is not None:
            positions = self.positions_TP.shape[1]
        if self.channels_EC is not None:
            channels = self.channels_EC.shape[1]
        return positions * channels

    def rows(self, source: Tokens, rows: slice) -> Floats:
        """Reduced tokens [n, F] of some images, in the precision of the mean."""
        chosen = range(len(source))[rows]
        reduced = np.empty((len(chosen), self.width), self.mean_TE.dtype)
        for part in chunks(len(chosen), self.mean_TE.size):
            reduced[part] = self._reduced(source[slice(chosen[part].start, chosen[part].stop)])
        return reduced

    def _reduced(self, tokens_NTE: Floats) -> Floats:
        deviations = tokens_NTE - self.mean_TE
        if self.positions_TP is not None:
            deviations = np.matmul(self.positions_TP.T, deviations)
        if self.channels_EC is not None:
            deviations = deviations.reshape(-1, deviations.shape[2]) @ self.channels_EC
        return deviations.reshape(len(tokens_NTE), -1)


@dataclass(frozen=True)
class PrincipalInputs:
    """The training images' scores, and how to find those of other images."""

    reduction: Reduction
    basis_FK: Floats
    values_K: Array
    """Sum over the training images of each squared score, descending."""
    training_NK: Floats

    @property
    def count(self) -> int:
        """Number of inputs, K."""
        return len(self.values_K)

    def scores(self, source: Tokens, rows: slice) -> Floats:
        """Scores [n, K] of some images."""
        return self.reduction.rows(source, rows) @ self.basis_FK


def fit_principal_inputs(source: Tokens, mean_TE: Array, *, inputs: int) -> PrincipalInputs:
    """Decompose the training source tokens, `mean_TE` their mean, into at most `inputs` principal scores.

    Raises `ConfigError` if all images are alike.
    """
    is_projected = mean_TE.size > inputs
    reduction = (
        fit_reduction(source, mean_TE, REDUCED_PER_INPUT * inputs) if is_projected else Reduction(mean_TE)
    )
    start_FK = _leading_directions(source, reduction, inputs) if is_projected else None
    if start_FK is not None and not start_FK.shape[1]:
        raise _all_alike(len(source))
    unrotated = _unrotated_scores(source, reduction, start_FK)
    values, rotation = linalg.eigh(_squares(unrotated), driver="evd", overwrite_a=True)
    resolution = max(np.finfo(np.float64).eps, np.finfo(unrotated.dtype).eps ** 2)
    has_spread = np.flatnonzero(values > values.max() * len(values) * resolution)[::-1]
    if not len(has_spread):
        raise _all_alike(len(source))
    rotation = rotation[:, has_spread].astype(unrotated.dtype)
    scores = np.empty((len(source), len(has_spread)), unrotated.dtype)
    for rows in chunks(len(source)):
        scores[rows] = unrotated[rows] @ rotation
    basis = rotation if start_FK is None else _rotated(start_FK, rotation)
    return PrincipalInputs(reduction, basis, values[has_spread], scores)


def fit_reduction(source: Tokens, mean_TE: Array, values: int) -> Reduction:
    """Step 1: positions and channels that hold most of the variance, at most `values` of both multiplied."""
    mean = mean_TE.astype(np.float32)
    positions, channels = mean.shape
    if positions * channels <= values:
        return Reduction(mean)
    between_positions, between_channels = np.zeros((positions, positions)), np.zeros((channels, channels))
    some = Chosen(source, evenly_spaced(len(source), REDUCTION_IMAGES))
    for rows in token_chunks(some):
        deviations = some[rows] - mean
        by_position = deviations.transpose(1, 0, 2).reshape(positions, -1)
        by_token = deviations.reshape(-1, channels)
        between_positions += by_position @ by_position.T
        between_channels += by_token.T @ by_token
    position_values, position_vectors = linalg.eigh(between_positions, driver="evd", overwrite_a=True)
    channel_values, channel_vectors = linalg.eigh(between_channels, driver="evd", overwrite_a=True)
    kept_positions = np.arange(1, positions + 1)
    kept_channels = np.clip(values // kept_positions, 1, channels)
    lost = _discarded(position_values)[kept_positions] + _discarded(channel_values)[kept_channels]
    sizes = np.where(kept_positions * kept_channels <= values, kept_positions * kept_channels, np.inf)
    as_good = lost <= lost[np.isfinite(sizes)].min() + ROUNDING * channel_values.sum()
    best = int(np.argmin(np.where(as_good, sizes, np.inf)))
    return Reduction(
        mean,
        _leading(position_vectors, int(kept_positions[best])),
        _leading(channel_vectors, int(kept_channels[best])),
    )


def _discarded(ascending_values: Array) -> Array:
    """Sum of all but the k largest eigenvalues, for k = 0 ... their number."""
    return np.concatenate([[0.0], np.cumsum(np.clip(ascending_values, 0, None))])[::-1]


def _leading(ascending_vectors: Array, count: int) -> Floats | None:
    """The last `count` columns, largest first; None if these are all."""
    if count == ascending_vectors.shape[1]:
        return None
    return ascending_vectors[:, : -count - 1 : -1].astype(np.float32)


def _leading_directions(source: Tokens, reduction: Reduction, inputs: int) -> Floats:
    """Step 2: orthonormal directions [F, K] of reduced tokens from the eigenvectors U of their Gram matrix G = H H'.

    Direction k is H' U_k / sqrt(eigenvalue). Each row of H is kept as float16 numbers in [-1, 1] and its largest value.
    """
    some = Chosen(source, evenly_spaced(len(source), DIRECTION_IMAGES_PER_INPUT * inputs))
    halves = np.empty((len(some), reduction.width), np.float16)
    largest = np.ones((len(some), 1), np.float32)
    for rows in chunks(len(some)):
        reduced = reduction.rows(some, rows)
        largest[rows] = np.maximum(np.abs(reduced).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        halves[rows] = reduced / largest[rows]
    gram = np.zeros((len(some), len(some)))
    for columns in _column_parts(reduction.width):
        part = halves[:, columns].astype(np.float32)
        gram += part @ part.T
    gram *= largest
    gram *= largest.T
    mean_value = np.trace(gram) / len(gram)
    first = max(0, len(gram) - inputs)
    values, vectors = linalg.eigh(gram, subset_by_index=(first, len(gram) - 1), overwrite_a=True)
    del gram
    has_spread = values > FLAT * mean_value
    weights = (largest * vectors[:, has_spread] / np.sqrt(values[has_spread])).astype(np.float32)
    directions = np.empty((reduction.width, weights.shape[1]), np.float32)
    for columns in _column_parts(reduction.width):
        directions[columns] = halves[:, columns].astype(np.float32).T @ weights
    return directions


def _unrotated_scores(source: Tokens, reduction: Reduction, start_FK: Floats | None) -> Floats:
    width = reduction.width if start_FK is None else start_FK.shape[1]
    scores = np.empty((len(source), width), reduction.mean_TE.dtype)
    progress = Progress("source tokens of training images", len(source), "image")
    for rows in chunks(len(source)):
        reduced = reduction.rows(source, rows)
        scores[rows] = reduced if start_FK is None else reduced @ start_FK
        progress.advance(len(reduced))
    progress.close()
    return scores


def _squares(scores_NK: Floats) -> Array:
    total = np.zeros((scores_NK.shape[1], scores_NK.shape[1]))
    for rows in chunks(len(scores_NK)):
        part = scores_NK[rows].astype(np.float64)
        total += part.T @ part
    return total


def _rotated(basis_FK: Floats, rotation_KK: Floats) -> Floats:
    for rows in _column_parts(len(basis_FK)):
        basis_FK[rows, : rotation_KK.shape[1]] = basis_FK[rows] @ rotation_KK
    return basis_FK[:, : rotation_KK.shape[1]]


def _column_parts(width: int) -> list[slice]:
    return [slice(start, min(start + COLUMNS, width)) for start in range(0, width, COLUMNS)]


def _all_alike(images: int) -> ConfigError:
    return ConfigError(
        f"the source tokens of all {images} training images are alike, so ridge and nearest have nothing to go by; "
        "look at data.train and encoders.source, or leave them out of baselines"
    )
