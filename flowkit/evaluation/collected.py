"""One pass over predicted and true tokens, after which no metric needs the tokens again.

Both sets are read side by side in chunks (tokens.py). What is kept grows with N T and N D, never with N T D:
statistics per image and token, token means, image embeddings, and the moments of all tokens by tenth of the images.
What belongs to the true tokens alone is collected once (`TrueSide`) and serves all predictions.
Shapes: N images, T tokens, D channels, P embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.bootstrap import Array
from flowkit.evaluation.metrics import TokenStatistics, token_statistics
from flowkit.evaluation.moments import Moments, TenthsOfMoments, moments_of_tenths
from flowkit.evaluation.similarity import nearest_neighbours
from flowkit.evaluation.tokens import Floats, Integers, Tokens, token_chunks

Embed = Callable[[Floats], Floats]
"""Tokens [n, T, D] -> image embeddings [n, P] by the target tower's own head."""


@dataclass(frozen=True)
class OneSide:
    """What is kept of one set of tokens."""

    means_ND: Array
    """Means over the tokens of each image."""
    embeddings_NP: Floats | None
    """None where the layout has no class token."""
    token_moments: list[Moments]
    shift_D: Array
    """What moments are taken about."""

    @property
    def pooled(self) -> Floats:
        """One vector per image: its embedding, or its token mean where there is none."""
        return self.means_ND if self.embeddings_NP is None else self.embeddings_NP

    @cached_property
    def mean_moments(self) -> list[Moments]:
        """Moments of the token means, by tenth."""
        return moments_of_tenths(self.means_ND, self.shift_D)


@dataclass(frozen=True)
class TrueSide:
    """The true tokens, the training mean that figures are centred on, and what was collected of them."""

    tokens: Tokens
    mean_TD: Array
    embed: Embed | None
    side: OneSide

    @cached_property
    def neighbours_NK(self) -> Integers:
        """Nearest neighbours of each image among the true ones."""
        return nearest_neighbours(self.side.pooled)


@dataclass(frozen=True)
class Collected:
    """What is kept of predictions, and of how they compare with the true tokens."""

    side: OneSide
    statistics: TokenStatistics
    predicted_offset: float
    """|mean over images of P - mu|^2, summed over positions."""
    target_offset: float
    finite_N: NDArray[np.bool_]
    """Whether all values of an image are finite."""


def collect_true(tokens: Tokens, mean_TD: Array, embed: Embed | None) -> TrueSide:
    """Read the true tokens once; `mean_TD` is the mean of the training targets."""
    gathered = _Gathered(mean_TD, embed)
    for rows in token_chunks(tokens):
        gathered.add(tokens[rows], rows.start)
    return TrueSide(tokens, mean_TD, embed, gathered.side())


def collect(predicted: Tokens, true: TrueSide) -> Collected:
    """Read predictions and true tokens side by side; row n of both belongs to image n."""
    if predicted.shape != true.tokens.shape:
        raise ValueError(
            f"predicted tokens {predicted.shape} and true ones {true.tokens.shape} differ in shape"
        )
    gathered, true_sum = _Gathered(true.mean_TD, true.embed), np.zeros_like(true.mean_TD)
    parts = []
    for rows in token_chunks(predicted):
        guess, target = predicted[rows], true.tokens[rows]
        gathered.add(guess, rows.start)
        true_sum += target.sum(axis=0, dtype=np.float64)
        parts.append(token_statistics(guess, target, true.mean_TD))
    return Collected(
        gathered.side(),
        TokenStatistics.joined(parts),
        gathered.offset(),
        float(np.sum((true_sum / len(predicted) - true.mean_TD) ** 2)),
        np.concatenate(gathered.finite),
    )


class _Gathered:
    """One set of tokens while it is read chunk by chunk."""

    def __init__(self, mean_TD: Array, embed: Embed | None) -> None:
        self._mean_TD, self._embed = mean_TD, embed
        self._shift_D = mean_TD.mean(axis=0)
        self._moments = TenthsOfMoments(self._shift_D)
        self._sum_TD = np.zeros_like(mean_TD)
        self._means: list[Array] = []
        self._embeddings: list[Floats] = []
        self.finite: list[NDArray[np.bool_]] = []

    def add(self, tokens_NTD: Floats, first: int) -> None:
        """Count in the tokens of the images from number `first` on."""
        self._moments.add(tokens_NTD, first)
        self._sum_TD += tokens_NTD.sum(axis=0, dtype=np.float64)
        self._means.append(tokens_NTD.mean(axis=1, dtype=np.float64))
        self.finite.append(np.asarray(np.isfinite(tokens_NTD).all(axis=(1, 2))))
        if self._embed is not None:
            self._embeddings.append(self._embed(tokens_NTD))

    def side(self) -> OneSide:
        """What is kept."""
        embeddings = np.concatenate(self._embeddings) if self._embeddings else None
        return OneSide(np.concatenate(self._means), embeddings, self._moments.moments(), self._shift_D)

    def offset(self) -> float:
        """|mean over images - mu|^2, summed over positions."""
        images = sum(map(len, self._means))
        return float(np.sum((self._sum_TD / images - self._mean_TD) ** 2))
