"""The share of images whose cosine exceeds .7, .8 and .9: it says nothing without the same share for trivial answers.

The cosine is that of token means, img_cos. Beside the predictions stand the constant answer mu and shuffled pairs, in
which every image is given the prediction for another one. Shapes: N images.
"""

import numpy as np

from flowkit.evaluation.bootstrap import Array, Ratio, mean_of
from flowkit.evaluation.collected import Collected, TrueSide
from flowkit.evaluation.metrics import cosine
from flowkit.evaluation.tokens import Integers

LEVELS = (70, 80, 90)
ANSWERS = ("", "_constant", "_shuffled")
MEASURES = tuple(f"over_{level}{answer}" for answer in ANSWERS for level in LEVELS)


def image_cosines(collected: Collected, true: TrueSide, seed: int) -> dict[str, Array]:
    """Cosine of token means per image [N]: of the prediction (""), of the constant answer, of shuffled pairs."""
    target_ND = true.side.means_ND
    partners = other_image(len(target_ND), np.random.default_rng(seed))
    return {
        "": collected.statistics.mean_cosine_N,
        "_constant": cosine(np.broadcast_to(true.mean_TD.mean(axis=0), target_ND.shape), target_ND),
        "_shuffled": cosine(collected.side.means_ND[partners], target_ND),
    }


def threshold_ratios(cosines: dict[str, Array]) -> dict[str, Ratio]:
    """Shares of images above each level, for each of the answers of `image_cosines`."""
    return {
        f"over_{level}{answer}": mean_of(np.where(np.isnan(values), np.nan, values > level / 100))
        for answer, values in cosines.items()
        for level in LEVELS
    }


def other_image(images: int, generator: np.random.Generator) -> Integers:
    """A random partner for each image that is never the image itself (one random cycle through all)."""
    order = generator.permutation(images)
    partner = np.empty(images, np.int64)
    partner[order] = np.roll(order, 1)
    return partner
