"""Ridge regression from the principal scores of all source tokens to all target tokens of an image; leave-one-out.

Z [N, K] are the scores (projection.py) with Z'Z = S diagonal, Y [N, O] the target tokens flattened, columns centred.
With C = Z'Y and a penalty p
    map          scores z  ->  z (S + p)^-1 C
    fitted       F = Z (S + p)^-1 C,      leverage  h_n = 1/N + sum_k Z_nk^2 / (S_k + p)
    left out     Y_n - (Y_n - F_n) / (1 - h_n)    exactly what a fit without image n would predict for image n
so one decomposition serves the choice of the penalty, the map and honest training predictions. The projection itself
is not refitted without image n; it never looks at Y. The penalty is chosen for whole images, never for tokens: tokens
of one image err alike, and one image's tokens on both sides of a split would reward too small a penalty.

Y is read in chunks and C made by blocks of positions, which beyond one block lie in files: 257 x 1024 outputs of 4,096
inputs are 4.3 GB. Shapes: N images, K inputs, T positions, D channels, O = T D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowkit.evaluation.projection import PrincipalInputs
from flowkit.evaluation.tokens import Array, Floats, Integers, Tokens, chunks, evenly_spaced, token_chunks
from flowkit.progress import Progress

HALF_DECADES = (-8, 1)
"""Penalties that are tried first: 10^(k/2) for k from and to, as shares of the mean of S."""
WIDEST_HALF_DECADES = (-12, 8)
"""How far the search goes on while the best one is the last one tried."""
JUDGED_IMAGES = 1500
"""Images that the choice of the penalty judges, evenly spaced, each by the fit on all others."""
JUDGED_OUTPUTS = 4096
"""Target values of an image that the choice of the penalty judges, evenly spaced."""
BLOCK_VALUES = 2**28
"""Values of C in a block: 1 GiB in float32."""
PASS_VALUES = 2**28
"""Predicted values in memory while the blocks are read once: 1 GiB in float32."""
COLUMNS = 4096


@dataclass(frozen=True)
class Products:
    """C by blocks of positions: arrays [K, t D], or the files that hold them."""

    blocks: list[tuple[slice, Floats | Path]]
    target_shape: tuple[int, int]

    def times(self, scores_NK: Floats) -> Floats:
        """Scores times C, as tokens [n, T, D] in float32."""
        positions, channels = self.target_shape
        tokens = np.empty((len(scores_NK), positions, channels), np.float32)
        for block, values in self.arrays():
            tokens[:, block] = (scores_NK @ values).reshape(len(scores_NK), -1, channels)
            del values  # or two blocks would be in memory while the next one is read
        return tokens

    def passes(self, images: int) -> Iterator[slice]:
        """Yield ranges of images that are multiplied at once: each range reads all blocks from their files."""
        step = max(1, PASS_VALUES // (self.target_shape[0] * self.target_shape[1]))
        for start in range(0, images, step):
            yield slice(start, min(start + step, images))

    def columns(self, outputs: Integers) -> Floats:
        """Columns of C, `outputs` ascending."""
        found = []
        for block, values in self.arrays():
            first = block.start * self.target_shape[1]
            mine = outputs[(outputs >= first) & (outputs < first + values.shape[1])] - first
            found.append(values[:, mine])
        return np.concatenate(found, axis=1)

    def arrays(self) -> Iterator[tuple[slice, Floats]]:
        """Yield the positions and values of one block after the other."""
        for block, values in self.blocks:
            yield block, np.load(values) if isinstance(values, Path) else values


@dataclass(frozen=True)
class RidgeMap:
    """A fitted linear map with offset."""

    inputs: PrincipalInputs
    shrinkage_K: Array
    products: Products
    target_mean_TD: Array
    penalty: float
    """Share of the mean of S."""

    def predict(self, source: Tokens) -> Iterator[Floats]:
        """Yield the predictions [n, T, D] in float32, chunk by chunk."""
        for images in self.products.passes(len(source)):
            scores = np.concatenate(
                [
                    self.inputs.scores(source, slice(images.start + rows.start, images.start + rows.stop))
                    for rows in chunks(images.stop - images.start)
                ]
            )
            predicted = self.products.times((scores * self.shrinkage_K).astype(scores.dtype))
            predicted += self.target_mean_TD.astype(np.float32)
            for part in token_chunks(predicted):
                yield predicted[part]


@dataclass(frozen=True)
class RidgeProblem:
    """The training set in the basis where every penalty is cheap."""

    inputs: PrincipalInputs
    target: Tokens
    target_mean_TD: Array
    products: Products

    def solve(self, penalty: float) -> RidgeMap:
        """The map for a penalty given as a share of the mean of S."""
        return RidgeMap(self.inputs, self._shrinkage(penalty), self.products, self.target_mean_TD, penalty)

    def left_out(self, penalty: float, images: Integers) -> Iterator[tuple[Floats, Floats]]:
        """Yield, chunk by chunk, for some training images the prediction of the fit without each, and the truth."""
        for rows in self.products.passes(len(images)):
            scores = self.inputs.training_NK[images[rows]]
            fitted = self.products.times((scores * self._shrinkage(penalty)).astype(scores.dtype))
            share = 1.0 / (1.0 - self._leverage(penalty, scores))
            for part in token_chunks(fitted):
                true = self.target[images[rows][part]]
                centred = true - self.target_mean_TD
                residual = (centred - fitted[part]) * share[part, None, None]
                yield (true - residual).astype(np.float32), true

    def best_penalty(self) -> float:
        """The penalty with the smallest left-out error, on a grid of half decades."""
        judged = self.judged()
        first, last = HALF_DECADES
        errors = {step: self.left_out_error(10 ** (step / 2), judged) for step in range(first, last + 1)}
        while True:
            best = min(errors, key=lambda step: errors[step])
            further = best - 1 if best == min(errors) else best + 1
            if further in errors or not WIDEST_HALF_DECADES[0] <= further <= WIDEST_HALF_DECADES[1]:
                return float(10 ** (best / 2))
            errors[further] = self.left_out_error(10 ** (further / 2), judged)

    def judged(self) -> Judged:
        """The images and target values by which penalties are compared."""
        images = evenly_spaced(len(self.target), JUDGED_IMAGES)
        outputs = evenly_spaced(self.target_mean_TD.size, JUDGED_OUTPUTS)
        values = np.empty((len(images), len(outputs)), self.inputs.training_NK.dtype)
        for rows in chunks(len(images), self.target_mean_TD.size):
            centred = self.target[images[rows]] - self.target_mean_TD
            values[rows] = centred.reshape(len(centred), -1)[:, outputs]
        return Judged(self.inputs.training_NK[images], values, self.products.columns(outputs))

    def left_out_error(self, penalty: float, judged: Judged) -> float:
        """Mean squared error per image of the left-out predictions."""
        shrunk = (judged.scores_JK * self._shrinkage(penalty)).astype(judged.scores_JK.dtype)
        residual = judged.values_JP - shrunk @ judged.products_KP
        squares = np.einsum("jp,jp->j", residual, residual, dtype=np.float64)
        return float(np.mean(squares / (1.0 - self._leverage(penalty, judged.scores_JK)) ** 2))

    def _shrinkage(self, penalty: float) -> Array:
        return 1.0 / (self.inputs.values_K + penalty * self.inputs.values_K.mean())

    def _leverage(self, penalty: float, scores: Floats) -> Array:
        squares = np.square(scores, dtype=np.float64)
        return 1.0 / len(self.target) + squares @ self._shrinkage(penalty)


@dataclass(frozen=True)
class Judged:
    """J training images and P of their target values, centred, with the columns of C that predict them."""

    scores_JK: Floats
    values_JP: Floats
    products_KP: Floats


def ridge_problem(
    inputs: PrincipalInputs, target: Tokens, target_mean_TD: Array, scratch: Path | None = None
) -> RidgeProblem:
    """Read the training targets, `target_mean_TD` their mean, once for all penalties; large blocks go to `scratch`."""
    positions, channels = target_mean_TD.shape
    per_block = min(positions, max(1, BLOCK_VALUES // (inputs.count * channels)))
    starts = range(0, positions, per_block)
    progress = Progress("target tokens of training images", len(target) * len(starts), "image")
    blocks: list[tuple[slice, Floats | Path]] = []
    for start in starts:
        block = slice(start, min(start + per_block, positions))
        values = _products_of(inputs.training_NK, target, target_mean_TD, block, progress)
        blocks.append((block, values))
        if len(starts) > 1 and scratch is not None:
            path = scratch / f"products-{start}.npy"
            np.save(path, values)
            blocks[-1] = (block, path)
    progress.close()
    return RidgeProblem(inputs, target, target_mean_TD, Products(blocks, (positions, channels)))


def _products_of(
    scores_NK: Floats, target: Tokens, target_mean_TD: Array, block: slice, progress: Progress
) -> Floats:
    """C [K, t D] for the positions of a block."""
    mean = target_mean_TD[block]
    products = np.zeros((scores_NK.shape[1], mean.size), scores_NK.dtype)
    for rows in chunks(len(target)):
        scores = scores_NK[rows]
        centred = np.empty((len(scores), mean.size), scores_NK.dtype)
        for part in chunks(len(scores), target_mean_TD.size):
            tokens = target[slice(rows.start + part.start, rows.start + part.stop)]
            centred[part] = (tokens[:, block] - mean).reshape(len(tokens), -1)
        for first in range(0, mean.size, COLUMNS):
            columns = slice(first, first + COLUMNS)
            products[:, columns] += scores.T @ centred[:, columns]
        progress.advance(len(scores))
    return products
