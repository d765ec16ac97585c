"""Linear maps of single tokens: an image's source token to its target token at the same position.

    procrustes    argmin over orthogonal W of sum |(S - mean) W - (B - mean)|^2, from the SVD of the cross-covariance
    ridge_token   argmin over all W of the same plus penalty |W|^2; the penalty is the best for a fifth of the images
                  that the others are fitted without
One matrix serves all positions, means are those of each position. Where an image has more source values than ridge on
all tokens can take, this is the stronger linear map if token corresponds to token. Sums over tokens are all that is
kept: [E, E] and [E, D]. Shapes: N images, T tokens, E channels of the source, D of the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from flowkit.evaluation.tokens import Array, Chosen, Floats, Tokens, evenly_spaced, token_chunks

IMAGES = 2048
"""Training images that ridge_token is fitted on, evenly spaced: half a million tokens of 257 per image."""
HELD_OUT = 5
"""Each fifth image judges the penalty."""
HALF_DECADES = (4, -16)
"""Penalties that are tried: 10^(k/2) for k from and to, as shares of the mean eigenvalue."""


@dataclass(frozen=True)
class TokenMap:
    """One matrix between centred tokens, the same at each position."""

    matrix_ED: Array
    source_mean_TE: Array
    target_mean_TD: Array
    penalty: float = 0.0
    """Share of the mean eigenvalue of the source tokens' sums of products."""

    def predict(self, source: Tokens) -> Iterator[Floats]:
        """Yield mapped tokens [n, T, D] in float32, chunk by chunk."""
        source_mean, matrix = self.source_mean_TE.astype(np.float32), self.matrix_ED.astype(np.float32)
        target_mean = self.target_mean_TD.astype(np.float32)
        for rows in token_chunks(source):
            yield (source[rows] - source_mean) @ matrix + target_mean


def fit_procrustes(source: Tokens, target: Tokens, source_mean_TE: Array, target_mean_TD: Array) -> TokenMap:
    """The orthogonal map; a projection where widths differ."""
    cross = np.zeros((source.shape[2], target.shape[2]))
    for _, centred_source, centred_target in _centred(source, target, source_mean_TE, target_mean_TD):
        cross += _flat(centred_source).T @ _flat(centred_target)
    left, _, right = linalg.svd(cross, full_matrices=False)
    return TokenMap(left @ right, source_mean_TE, target_mean_TD)


def fit_token_ridge(source: Tokens, target: Tokens, source_mean_TE: Array, target_mean_TD: Array) -> TokenMap:
    """The linear map; nothing but the mean is predicted where the source does not vary."""
    chosen = evenly_spaced(len(source), IMAGES)
    some_source, some_target = Chosen(source, chosen), Chosen(target, chosen)
    fitted, held_out = (_Products.zeros(source.shape[2], target.shape[2]) for _ in range(2))
    for numbers, centred_source, centred_target in _centred(
        some_source, some_target, source_mean_TE, target_mean_TD
    ):
        is_held_out = numbers % HELD_OUT == HELD_OUT - 1
        held_out.add(centred_source[is_held_out], centred_target[is_held_out])
        fitted.add(centred_source[~is_held_out], centred_target[~is_held_out])
    penalty = _best_penalty(fitted, held_out)
    matrix = _Products(fitted.own_EE + held_out.own_EE, fitted.cross_ED + held_out.cross_ED).solve(penalty)
    return TokenMap(matrix, source_mean_TE, target_mean_TD, penalty)


@dataclass(frozen=True)
class _Products:
    """Sums over tokens: source with itself, source with target."""

    own_EE: Array
    cross_ED: Array

    @classmethod
    def zeros(cls, source_channels: int, target_channels: int) -> _Products:
        return cls(np.zeros((source_channels, source_channels)), np.zeros((source_channels, target_channels)))

    def add(self, source_NTE: Floats, target_NTD: Floats) -> None:
        flat = _flat(source_NTE)
        np.add(self.own_EE, flat.T @ flat, out=self.own_EE)
        np.add(self.cross_ED, flat.T @ _flat(target_NTD), out=self.cross_ED)

    def solve(self, penalty: float) -> Array:
        mean_value = np.trace(self.own_EE) / len(self.own_EE)
        if not mean_value > 0:
            return np.zeros_like(self.cross_ED)
        penalised = self.own_EE + penalty * mean_value * np.eye(len(self.own_EE))
        solved: Array = linalg.solve(penalised, self.cross_ED, assume_a="pos", overwrite_a=True)
        return solved


def _best_penalty(fitted: _Products, held_out: _Products) -> float:
    """The penalty with the smallest error on images held out; the largest of equals."""
    values, vectors = linalg.eigh(fitted.own_EE, driver="evd")
    scale = max(float(values.mean()), np.finfo(np.float64).tiny)
    cross, own = vectors.T @ fitted.cross_ED, vectors.T @ held_out.own_EE @ vectors
    held_out_cross = vectors.T @ held_out.cross_ED
    errors = {}
    for step in range(HALF_DECADES[0], HALF_DECADES[1] - 1, -1):
        penalty = 10 ** (step / 2)
        matrix = cross / (np.clip(values, 0, None) + penalty * scale)[:, None]
        errors[penalty] = float(np.sum(matrix * (own @ matrix - 2 * held_out_cross)))
    return min(errors, key=lambda penalty: errors[penalty])


def _centred(
    source: Tokens, target: Tokens, source_mean_TE: Array, target_mean_TD: Array
) -> Iterator[tuple[Array, Floats, Floats]]:
    """Yield the numbers of some images with their centred tokens, in float32."""
    source_mean, target_mean = source_mean_TE.astype(np.float32), target_mean_TD.astype(np.float32)
    for rows in token_chunks(source):
        numbers = np.arange(rows.start, rows.stop)
        yield numbers, source[rows] - source_mean, target[rows] - target_mean


def _flat(tokens_NTC: Floats) -> Floats:
    return tokens_NTC.reshape(-1, tokens_NTC.shape[2])
