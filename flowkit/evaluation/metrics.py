"""How close predicted tokens are to the true ones, as one number per image and token that later sums need.

P = prediction, B = target, mu_l = training mean of position l, all on the target's raw scale. Over images
n, tokens l:
    tok_cos     mean cos(P_nl, B_nl)                       tok_ccos   mean cos(P_nl - mu_l, B_nl - mu_l)
    img_cos     mean cos(mean_l P_nl, mean_l B_nl)         img_ccos   the same, both less mean_l mu_l
    r2          1 - sum |P - B|^2 / sum |B - mu|^2
    var_ratio   sum |P_nl - mean_n P_l|^2 / sum |B_nl - mean_n B_l|^2     (< 1 shrinkage, > 1 noise left over)
    norm_ratio  sum |P_nl| / sum |B_nl|
Every function looks at a chunk of images; only [N] and [N, T] arrays are kept. Each metric is a Ratio of sums
over images; in the bootstrap of var_ratio the two means over images stay those of the full set (an error of
relative order 1/N). Shapes: N images, T tokens, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from flowkit.evaluation.bootstrap import Array, Ratio, mean_of
from flowkit.evaluation.tokens import Floats

# Tokens travel in float16: a deviation below its resolution, relative to the whole vector, is rounding.
STORAGE_RESOLUTION = 2.0**-11


@dataclass(frozen=True)
class TokenStatistics:
    """What the token metrics and the report's details are sums of."""

    cosine_NT: Array
    centred_cosine_NT: Array
    error_NT: Array  # |P - B|^2
    spread_NT: Array  # |B - mu|^2
    predicted_spread_NT: Array  # |P - mu|^2
    predicted_norm_NT: Array
    target_norm_NT: Array
    mean_cosine_N: Array  # cosine of token means
    centred_mean_cosine_N: Array

    @classmethod
    def joined(cls, parts: Sequence["TokenStatistics"]) -> "TokenStatistics":
        """Put the statistics of consecutive chunks together."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def token_statistics(predicted_NTD: Floats, target_NTD: Floats, mean_TD: Floats) -> TokenStatistics:
    """Compare two sets of tokens of equal shape; `mean_TD` is the mean of the training targets."""
    if predicted_NTD.shape != target_NTD.shape or mean_TD.shape != target_NTD.shape[1:]:
        raise ValueError(
            f"shapes differ: predicted {predicted_NTD.shape}, target {target_NTD.shape}, "
            f"mean {mean_TD.shape}; expected [N, T, D] twice and [T, D]"
        )
    mean = np.asarray(mean_TD, np.float64)
    predicted, target = np.asarray(predicted_NTD, np.float64), np.asarray(target_NTD, np.float64)
    predicted_norm, target_norm = norms(predicted), norms(target)
    predicted_mean, target_mean = predicted.mean(axis=1), target.mean(axis=1)
    return TokenStatistics(
        cosine_NT=cosine(predicted, target),
        centred_cosine_NT=centred_cosine(predicted, target, mean, predicted_norm, target_norm),
        error_NT=squared_norm(predicted - target),
        spread_NT=squared_norm(target - mean),
        predicted_spread_NT=squared_norm(predicted - mean),
        predicted_norm_NT=predicted_norm,
        target_norm_NT=target_norm,
        mean_cosine_N=cosine(predicted_mean, target_mean),
        centred_mean_cosine_N=centred_cosine(
            predicted_mean,
            target_mean,
            mean.mean(axis=0),
            predicted_norm.mean(axis=1),
            target_norm.mean(axis=1),
        ),
    )


def token_ratios(s: TokenStatistics, predicted_offset: float, target_offset: float) -> dict[str, Ratio]:
    """The token metrics of the table above as ratios of sums over images.

    The offsets are |mean over images - mu|^2 summed over positions: sum_n |P_n - mu|^2 less N of them is the sum of
    squares about the predictions' own mean.
    """
    spread_N = s.spread_NT.sum(axis=1)
    return {
        "tok_cos": mean_of(s.cosine_NT.mean(axis=1)),
        "tok_ccos": mean_of(s.centred_cosine_NT.mean(axis=1)),
        "img_cos": mean_of(s.mean_cosine_N),
        "img_ccos": mean_of(s.centred_mean_cosine_N),
        "r2": Ratio(spread_N - s.error_NT.sum(axis=1), spread_N),
        "var_ratio": Ratio(s.predicted_spread_NT.sum(axis=1) - predicted_offset, spread_N - target_offset),
        "norm_ratio": Ratio(s.predicted_norm_NT.sum(axis=1), s.target_norm_NT.sum(axis=1)),
    }


def cosine(a: Array, b: Array) -> Array:
    """Cosine along the last axis; 0 where either vector is zero, NaN where either is not finite."""
    lengths = np.sqrt(squared_norm(a) * squared_norm(b))
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return np.einsum("...d,...d->...", a, b) / np.where(lengths == 0, 1.0, lengths)


def centred_cosine(a: Array, b: Array, centre: Array, scale_a: Array, scale_b: Array) -> Array:
    """Cosine of deviations from `centre`; 0 where a deviation is no more than the rounding of stored tokens.

    The scales are the lengths that were rounded: those of the tokens, averaged where a and b are token means.
    """
    return cosine(_deviation(a, centre, scale_a), _deviation(b, centre, scale_b))


def norms(vectors: Array) -> Array:
    """Length along the last axis."""
    return np.sqrt(squared_norm(vectors))


def squared_norm(vectors: Array) -> Array:
    """Sum of squares along the last axis."""
    return np.einsum("...d,...d->...", vectors, vectors)


def _deviation(vectors: Array, centre: Array, scale: Array) -> Array:
    deviations = vectors - centre
    deviations[norms(deviations) <= STORAGE_RESOLUTION * scale] = 0.0
    return deviations
