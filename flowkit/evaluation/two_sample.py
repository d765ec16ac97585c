"""Two-sample test: how well a classifier tells predicted tokens from true tokens, on images it has not seen.

    auc = P(score of a true token > score of a predicted one)     .5 = indistinguishable, 1 = always told apart
A token is described by its log distances to the nearest true and to the nearest predicted tokens at the same
position of other images; logistic regression weighs them. That estimates a ratio of densities, so it sees more
than mean and covariance, which a linear map can match. Distances are taken on the raw scale, where large
directions count, and on the whitened one, where all do. One half of the images trains and the other is tested,
then they change places. Whether the tokens of one image belong together is not asked.
Shapes: N images, T tokens, D channels, K neighbours, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flowkit.evaluation.bootstrap import NOT_MEASURED, Array, Estimate, jackknife
from flowkit.evaluation.metrics import STORAGE_RESOLUTION
from flowkit.evaluation.tokens import Floats, Integers, Tokens

FEWEST_IMAGES = 100
MOST_IMAGES, MOST_POSITIONS, MOST_CHANNELS = 2048, 8, 1024
NEIGHBOURS = (1, 2, 4, 8)
GROUPS = 10
IMAGES_PER_READ = 32
PENALTY = 10.0
# Added to the variance of each direction before whitening, as a share of their mean: what lies below is no more
# than the rounding of tokens that were stored in 8 bits.
WHITENING_FLOOR = 1e-2


def two_sample_auc(predicted: Tokens, target: Tokens, *, seed: int) -> Estimate:
    """AUC between predicted and true tokens of the same images in the same order, with its interval.

    Beyond 2,048 images, 8 positions or 1,024 channels a random choice by `seed` is judged, the first position always:
    it is the class token where there is one. The interval is a
    jackknife over tenths of the images, classifiers held fixed. Not measured with fewer than 100 images, or when an
    image that was read holds a value that is not finite. Raises ValueError when the shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted tokens are {predicted.shape}, true ones {target.shape}: they must pair up"
        )
    images, positions, channels = target.shape
    if images < FEWEST_IMAGES:
        return NOT_MEASURED
    generator = np.random.default_rng(seed)
    rows = generator.permutation(images)[:MOST_IMAGES]
    position_T = _positions(generator, positions)
    channel_D = np.sort(generator.permutation(channels)[:MOST_CHANNELS])
    pairs = _Pairs(*(_read(tokens, rows, position_T, channel_D) for tokens in (predicted, target)))
    if not (np.isfinite(pairs.predicted_NTD).all() and np.isfinite(pairs.target_NTD).all()):
        return NOT_MEASURED
    halves = pairs.part(slice(None, len(rows) // 2)), pairs.part(slice(len(rows) // 2, None))
    tested = [_scores(train, test) for train, test in (halves, halves[::-1])]
    value = float(np.mean([_auc(scores) for scores in tested]))
    without_G = np.array([np.mean([_auc(_without(scores, g)) for scores in tested]) for g in range(GROUPS)])
    estimate = jackknife(value, without_G, lowest=0.0)
    return replace(estimate, high=min(1.0, estimate.high))


@dataclass(frozen=True)
class _Pairs:
    """Predicted and true tokens of the same images."""

    predicted_NTD: Floats
    target_NTD: Floats

    def part(self, rows: slice) -> _Pairs:
        return _Pairs(self.predicted_NTD[rows], self.target_NTD[rows])

    def mapped(self, mean_TD: Floats, map_DD: Floats) -> _Pairs:
        return _Pairs((self.predicted_NTD - mean_TD) @ map_DD, (self.target_NTD - mean_TD) @ map_DD)


def _positions(generator: np.random.Generator, positions: int) -> Integers:
    others = 1 + generator.permutation(positions - 1)[: MOST_POSITIONS - 1]
    return np.sort(np.append(others, 0))


def _read(tokens: Tokens, rows: Integers, position_T: Integers, channel_D: Integers) -> Floats:
    """The chosen part of the chosen images in float32; an image with a value that is not finite becomes NaN."""
    chosen = np.empty((len(rows), len(position_T), len(channel_D)), np.float32)
    for start in range(0, len(rows), IMAGES_PER_READ):
        here = slice(start, start + IMAGES_PER_READ)
        read = tokens[rows[here]]
        chosen[here] = read[:, position_T][:, :, channel_D]
        chosen[here][~np.isfinite(read).all(axis=(1, 2))] = np.nan
    return chosen


def _scores(train: _Pairs, test: _Pairs) -> Array:
    """Log odds of being true for the predicted, then the true tokens of the test images [2, N, T]."""
    mean_TD = train.target_NTD.mean(axis=0)
    train_features, test_features = [], []
    for map_DD in (np.eye(mean_TD.shape[1], dtype=np.float32), _whitening(train.target_NTD)):
        reference = train.mapped(mean_TD, map_DD)
        train_features.append(_log_distances(reference, reference, is_own=True))
        test_features.append(_log_distances(test.mapped(mean_TD, map_DD), reference, is_own=False))
    train_2NTF, test_2NTF = np.concatenate(train_features, axis=-1), np.concatenate(test_features, axis=-1)
    is_true = np.repeat([False, True], train_2NTF[0, ..., 0].size)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=200))
    classifier.fit(train_2NTF.reshape(len(is_true), -1), is_true)
    scores: Array = classifier.decision_function(test_2NTF.reshape(-1, test_2NTF.shape[-1]))
    return scores.reshape(test_2NTF.shape[:-1])


def _whitening(tokens_NTD: Floats) -> Floats:
    """Symmetric map [D, D] after which tokens spread equally in all directions about the means of their positions."""
    flat = (tokens_NTD - tokens_NTD.mean(axis=0)).reshape(-1, tokens_NTD.shape[-1])
    values, vectors = np.linalg.eigh((flat.T @ flat).astype(np.float64) / len(flat))
    rounding = STORAGE_RESOLUTION**2 * float(np.mean(tokens_NTD**2, dtype=np.float64))
    spread = np.clip(values, 0, None) + WHITENING_FLOOR * (max(float(values.mean()), rounding) or 1.0)
    whitening: Floats = ((vectors / np.sqrt(spread)) @ vectors.T).astype(np.float32)
    return whitening


def _log_distances(query: _Pairs, reference: _Pairs, *, is_own: bool) -> Array:
    """Log distances of predicted and true tokens to their neighbours of both kinds [2, N, T, F].

    `is_own` says that both hold the same images: then an image is never its own neighbour, whichever the kind.
    """
    queries_2NTD = np.stack([query.predicted_NTD, query.target_NTD])
    _, images, positions, channels = queries_2NTD.shape
    own_row = np.tile(np.arange(images), 2) if is_own else np.full(2 * images, -1)
    # The logarithm of a distance stops here, so that equal tokens have one.
    root_mean_square = float(np.sqrt(np.mean(reference.target_NTD**2, dtype=np.float64)))
    closest = max(STORAGE_RESOLUTION * root_mean_square * channels**0.5, float(np.finfo(np.float32).tiny))
    columns = np.empty((2, images, positions, 2, len(NEIGHBOURS)))
    for position in range(positions):
        for kind, tokens_NTD in enumerate((reference.predicted_NTD, reference.target_NTD)):
            search = NearestNeighbors(n_neighbors=max(NEIGHBOURS) + 1, algorithm="brute")
            search.fit(tokens_NTD[:, position])
            distances, rows = search.kneighbors(queries_2NTD[:, :, position].reshape(2 * images, -1))
            distances[rows == own_row[:, None]] = np.inf
            nearest = np.sort(distances, axis=1)[:, np.array(NEIGHBOURS) - 1]
            columns[:, :, position, kind] = nearest.reshape(2, images, -1)
    logarithms: Array = np.log(np.maximum(columns, closest))
    return logarithms.reshape(2, images, positions, -1)


def _without(scores_2NT: Array, group: int) -> Array:
    """The scores less every tenth image, beginning with number `group`."""
    return np.delete(scores_2NT, slice(group, None, GROUPS), axis=1)


def _auc(scores_2NT: Array) -> float:
    is_true = np.repeat([False, True], scores_2NT[0].size)
    return float(roc_auc_score(is_true, scores_2NT.ravel()))
