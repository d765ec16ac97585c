"""Does the spread over noise seeds say how wrong a sample is?

K samples P_k of an image, each from noise of its own, have the mean M and the variance S = sum_k |P_k - M|^2 / (K - 1):
    seed_spread   sum S / sum |B - mu|^2                the spread as a share of the data's variance
    r2_of_mean    1 - sum |M - B|^2 / sum |B - mu|^2    what averaging K samples gives
    dispersion    sum S (K + 1) / K  /  sum |M - B|^2   1 for exact samples of p(target | source)
For exact samples, target and samples are alike distributed given the source with variance V: E S = V and
E |M - B|^2 = V (1 + 1/K), hence the factor. Far below 1 the sampler is practically deterministic, and its spread must
not be sold as uncertainty. Shapes: K seeds, N images, T tokens, D channels.
"""

from collections.abc import Sequence

import numpy as np

from flowkit.evaluation.bootstrap import Ratio
from flowkit.evaluation.metrics import squared_norm
from flowkit.evaluation.tokens import Floats, Tokens, token_chunks

MEASURES = ("seed_spread", "r2_of_mean", "dispersion")


def dispersion_ratios(samples: Sequence[Tokens], target: Tokens, mean_TD: Floats) -> dict[str, Ratio]:
    """The three measures over the images of the smallest set; `samples` are K >= 2 sets of the same first images."""
    images, seeds = min(len(one) for one in samples), len(samples)
    parts = []
    for rows in token_chunks(target):
        if rows.start >= images:
            break
        rows = slice(rows.start, min(rows.stop, images))
        drawn = np.stack([np.asarray(one[rows], np.float64) for one in samples])
        true, mean = np.asarray(target[rows], np.float64), drawn.mean(axis=0)
        spread = squared_norm(drawn - mean).sum(axis=(0, 2)) / (seeds - 1)
        error, variance = squared_norm(mean - true).sum(axis=1), squared_norm(true - mean_TD).sum(axis=1)
        parts.append((spread, error, variance))
    spread_N, error_N, variance_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {
        "seed_spread": Ratio(spread_N, variance_N),
        "r2_of_mean": Ratio(variance_N - error_N, variance_N),
        "dispersion": Ratio(spread_N * (seeds + 1) / seeds, error_N),
    }
