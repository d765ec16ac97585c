"""What the report draws of one set of predictions: figures per image, per position and for a small gallery.

    cos_image        cosine of token means, per image             (its mean is img_cos)
    cos_token_mean   mean over tokens of cos(P, B), per image     (its mean is tok_cos)
    cos_constant     cos_image of the constant prediction mu
    cos_shuffled     cos_image of the prediction for another image
    cos_position     mean over images of cos(P, B), per position
    r2_position      R2 of each token position
    norm_ratio_position   sum |P| / sum |B| per position
    spread_image     |B - mu|^2 per image, in units of its mean
    error_image      |P - B|^2 per image, in units of the mean of |B - mu|^2 over images: its mean is 1 - R2
    error_map        the same per token of the gallery images, in units of the mean over images and tokens
    self_rank        rank, from 1, of the true embedding for the predicted one; NaN = not measured
    t2i_rank         rank, from 1, of the image for its first caption; NaN = not measured
    gallery_index    rows of the images with the smallest, then the largest errors, then random others
    component_*      share, ratio and r2 along the target's principal components (spectrum.py)
    neighbours_*, query_*   rows of images to look at (examples.py)
Shapes: N images, T tokens, D channels, P embedding width.
"""

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.bootstrap import Array
from flowkit.evaluation.collected import Collected, TrueSide
from flowkit.evaluation.examples import neighbours, queries
from flowkit.evaluation.metrics import TokenStatistics
from flowkit.evaluation.retrieval import Captions, caption_to_image_ranks, self_ranks
from flowkit.evaluation.spectrum import spectrum
from flowkit.evaluation.thresholds import image_cosines
from flowkit.evaluation.tokens import Floats, Integers, Tokens


def per_image(
    predicted: Tokens,
    collected: Collected,
    true: TrueSide,
    *,
    captions: Captions | None = None,
    gallery_each: int = 8,
    seed: int = 0,
) -> dict[str, NDArray]:
    """Arrays for one details file, rows of images as int64 and all others as float32.

    `seed` chooses the shuffled partners, the random third of the gallery and the captions, alike in all runs.
    """
    statistics = collected.statistics
    cosines = image_cosines(collected, true, seed)
    floats = {
        "cos_image": cosines[""],
        "cos_token_mean": statistics.cosine_NT.mean(axis=1),
        "cos_constant": cosines["_constant"],
        "cos_shuffled": cosines["_shuffled"],
        **_positions(statistics),
    }
    error_image = statistics.error_NT.sum(axis=1) / statistics.spread_NT.sum(axis=1).mean()
    gallery = gallery_rows(error_image, gallery_each, np.random.default_rng(seed))
    floats["error_image"] = error_image
    spread_image = statistics.spread_NT.sum(axis=1)
    floats["spread_image"] = spread_image / spread_image.mean()
    floats["error_map"] = statistics.error_NT[gallery] / statistics.spread_NT.mean()
    floats |= _ranks(len(error_image), collected.side.embeddings_NP, true.side.embeddings_NP, captions)
    along = spectrum(predicted, true.tokens, true.mean_TD)
    floats |= {"component_share": along.share_D, "component_ratio": along.ratio_D, "component_r2": along.r2_D}
    arrays: dict[str, NDArray] = {name: values.astype(np.float32) for name, values in floats.items()}
    side, true_side = collected.side, true.side
    asked = queries(side, true_side, captions, np.random.default_rng([seed, 1]))
    return arrays | {"gallery_index": gallery} | neighbours(side, true_side, gallery) | asked


def gallery_rows(error_N: Array, each: int, generator: np.random.Generator) -> Integers:
    """Rows of the `each` best, then the worst, then random others; no row twice, fewer in a small set."""
    order = np.argsort(error_N, kind="stable")
    best, rest = order[:each], order[each:]
    worst = rest[::-1][:each]
    shuffled = generator.permutation(len(error_N))
    random = shuffled[~np.isin(shuffled, np.concatenate([best, worst]))][:each]
    return np.concatenate([best, worst, random]).astype(np.int64)


def _positions(statistics: TokenStatistics) -> dict[str, Array]:
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = 1 - statistics.error_NT.sum(axis=0) / statistics.spread_NT.sum(axis=0)
        norm_ratio = statistics.predicted_norm_NT.sum(axis=0) / statistics.target_norm_NT.sum(axis=0)
    cosine = statistics.cosine_NT.mean(axis=0)
    return {"cos_position": cosine, "r2_position": r2, "norm_ratio_position": norm_ratio}


def _ranks(
    images: int, predicted_NP: Floats | None, target_NP: Floats | None, captions: Captions | None
) -> dict[str, Array]:
    found = {"self_rank": np.full(images, np.nan), "t2i_rank": np.full(images, np.nan)}
    if predicted_NP is None or target_NP is None:
        return found
    found["self_rank"][:] = self_ranks(predicted_NP, target_NP)
    if captions is not None and len(captions) > 0:
        rank_M = caption_to_image_ranks(predicted_NP, captions)
        captioned, first_caption = np.unique(captions.image_M, return_index=True)
        found["t2i_rank"][captioned] = rank_M[first_caption]
    return found
