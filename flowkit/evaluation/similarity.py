"""How alike two sets of pooled vectors are: maximum mean discrepancy, linear CKA, and shared neighbours.

P and B are the pooled vectors of predicted and true tokens, row n of both from image n.
    mmd   mean_{i != j} k(p_i, p_j) + k(b_i, b_j) - 2 k(p_i, b_j),  k(x, y) = exp(-|x - y|^2 / median)
          on rows of length 1; median: of the squared distances between true rows. Unbiased, so it may fall below 0,
          holds for any number of images, and equal sets score exactly 0 (Gretton et al. 2012, lemma 6, for pairs)
    cka   |P'B|^2 / (|P'P| |B'B|), columns centred, Frobenius norms (Kornblith et al. 2019); saturates: no headline
    knn   mean share of the 10 nearest neighbours of an image, by cosine, that it has in both spaces
Intervals of mmd and cka come from leaving out one tenth of the images at a time. Shapes: N images, P width, G tenths.
"""

import numpy as np

from flowkit.evaluation.bootstrap import Array, Estimate, jackknife
from flowkit.evaluation.moments import TENTHS, moments_of_tenths, tenths_of, total
from flowkit.evaluation.retrieval import unit
from flowkit.evaluation.tokens import Floats, Integers, chunks

NEIGHBOURS = 10
IMAGES_FOR_MEDIAN = 1000


def discrepancy(predicted_NP: Floats, target_NP: Floats) -> Estimate:
    """Unbiased squared maximum mean discrepancy of paired sets, Gaussian kernel on vectors of length 1."""
    predicted, target = unit(predicted_NP), unit(target_NP)
    scale = _median_distance(target)
    images = len(target)
    members_GN = (tenths_of(images) == np.arange(TENTHS)[:, None]).astype(np.float64)
    sums_GG = np.zeros((TENTHS, TENTHS))
    for rows in chunks(images):
        kernel = _kernel(predicted[rows], predicted, scale) + _kernel(target[rows], target, scale)
        kernel -= _kernel(predicted[rows], target, scale) + _kernel(target[rows], predicted, scale)
        kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)] = 0.0  # i = j
        sums_GG += members_GN[:, rows] @ kernel @ members_GN.T
    counts_G = members_GN.sum(axis=1)
    pairs_GG = np.outer(counts_G, counts_G) - np.diag(counts_G)
    without = np.array([_off(sums_GG, tenth) / max(1.0, _off(pairs_GG, tenth)) for tenth in range(TENTHS)])
    return jackknife(float(sums_GG.sum() / pairs_GG.sum()), without, lowest=-np.inf)


def alignment(predicted_NP: Floats, target_NP: Floats) -> Estimate:
    """Linear centred kernel alignment of two sets of vectors, from 0 to 1."""
    both = np.concatenate([predicted_NP, target_NP], axis=1)
    parts = moments_of_tenths(both, np.asarray(both, np.float64).mean(axis=0))
    whole, width = total(parts), predicted_NP.shape[1]

    def of(covariance: Array) -> float:
        norms = [np.linalg.norm(block) for block in (covariance[:width, :width], covariance[width:, width:])]
        product = float(norms[0] * norms[1])
        return float(np.linalg.norm(covariance[:width, width:]) ** 2 / product) if product > 0 else 0.0

    without = np.array([of((whole - part).covariance()) for part in parts])
    return jackknife(of(whole.covariance()), without, lowest=0.0)


def nearest_neighbours(vectors_NP: Floats) -> Integers:
    """The images most similar to each image by cosine, itself left out, in no order [N, at most 10]."""
    rows_NP = unit(vectors_NP)
    count = min(NEIGHBOURS, len(rows_NP) - 1)
    found = []
    for rows in chunks(len(rows_NP)):
        similarity = np.nan_to_num(rows_NP[rows] @ rows_NP.T, nan=-2.0)
        similarity[np.arange(len(similarity)), np.arange(rows.start, rows.stop)] = -np.inf
        found.append(np.argpartition(-similarity, count - 1, axis=1)[:, :count])
    return np.concatenate(found)


def shared_neighbours(predicted_NK: Integers, target_NK: Integers) -> Array:
    """Share of each image's neighbours that are the same in both spaces [N]."""
    same = (predicted_NK[:, :, None] == target_NK[:, None, :]).any(axis=2)
    return same.mean(axis=1)


def _kernel(a: Array, b: Array, scale: float) -> Array:
    return np.exp(-np.clip(2 - 2 * (a @ b.T), 0, None) / scale)


def _median_distance(rows_NP: Array) -> float:
    some = rows_NP[:: -(-len(rows_NP) // IMAGES_FOR_MEDIAN)]
    distances = np.clip(2 - 2 * (some @ some.T), 0, None)[np.triu_indices(len(some), 1)]
    return max(float(np.median(distances)), np.finfo(np.float64).tiny)


def _off(sums_GG: Array, tenth: int) -> float:
    """Sum over all pairs of tenths that do not hold `tenth`."""
    return float(np.delete(np.delete(sums_GG, tenth, 0), tenth, 1).sum())
