"""Which directions of the target are reproduced: R2 and variance along its principal components.

With mu the training mean of each position and V the eigenvectors of S = sum (B - mu)(B - mu)' over all tokens:
    share_k   S_k / sum S                       the target's variance along component k, descending
    ratio_k   v_k' sum (P - mu)(P - mu)' v_k / S_k       below 1: predictions shrink, above 1: noise is left over
    r2_k      1 - v_k' sum (P - B)(P - B)' v_k / S_k     sum_k share_k r2_k is the R2 of these images
A mean squared error hardly sees components of small variance, and a two-sample test sees them best. Sums of products
cost more than any other metric, so only some images are read. Shapes: N images, T tokens, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowkit.evaluation.tokens import Array, Chosen, Tokens, evenly_spaced, token_chunks

IMAGES = 512
"""Images that are read, evenly spaced."""


class Spectrum(NamedTuple):
    """Figures per principal component [D]; NaN along components without variance."""

    share_D: Array
    ratio_D: Array
    r2_D: Array


def spectrum(predicted: Tokens, target: Tokens, mean_TD: Array) -> Spectrum:
    """Compare predicted and true tokens [N, T, D] along the components of the true ones."""
    rows_of_some = evenly_spaced(len(target), IMAGES)
    guesses, truths = Chosen(predicted, rows_of_some), Chosen(target, rows_of_some)
    channels = target.shape[2]
    own, guessed, error = (np.zeros((channels, channels)) for _ in range(3))
    mean = mean_TD.astype(np.float32)
    for rows in token_chunks(truths):
        guess, true = (np.asarray(tokens[rows], np.float32) for tokens in (guesses, truths))
        for total, deviations in ((own, true - mean), (guessed, guess - mean), (error, guess - true)):
            flat = deviations.reshape(-1, channels)
            total += flat.T @ flat
    values, vectors = np.linalg.eigh(own)
    values, vectors = values[::-1], vectors[:, ::-1]
    has_variance = values > values[0] * channels * np.finfo(np.float32).eps
    variance = np.where(has_variance, values, np.nan)
    along = [np.einsum("dk,de,ek->k", vectors, total, vectors, optimize=True) for total in (guessed, error)]
    share = np.clip(values, 0, None) / max(float(np.clip(values, 0, None).sum()), np.finfo(np.float64).tiny)
    return Spectrum(share, along[0] / variance, 1 - along[1] / variance)
