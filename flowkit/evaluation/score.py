"""All metrics of one set of predicted tokens against the true ones, as rows {metric, value, low, high}.

The rows are always the same METRICS in the same order. What the inputs do not allow - embedding metrics
without a CLS token, retrieval without captions, a value that is not finite - is a row of None, which reads
"not measured". fd_tok_disjoint and fd_img_disjoint compare with real images other than those predicted; for
the true tokens they are the noise floor that every other Frechet distance should be read against. Shapes: N
images, T tokens, D channels, P embedding width, C classes.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.bootstrap import NOT_MEASURED, Estimate, Ratio, bootstrap, draw_counts, mean_of
from flowkit.evaluation.distribution import relative_frechet
from flowkit.evaluation.metrics import Floats, cosine, token_ratios, token_statistics
from flowkit.evaluation.retrieval import (
    Captions,
    caption_to_image_ranks,
    image_to_caption_ranks,
    recall_ratios,
    self_ranks,
)
from flowkit.evaluation.zero_shot import zero_shot_ratio

METRICS = (
    *("tok_cos", "tok_ccos", "img_cos", "img_ccos", "r2"),
    *("fd_tok", "fd_img", "fd_tok_disjoint", "fd_img_disjoint", "var_ratio", "norm_ratio", "emb_cos"),
    *("self_r1", "self_r5", "self_r10", "t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10"),
    "zero_shot_top1",
)


class MetricRow(TypedDict):
    """One figure; None = not measured or not finite."""

    metric: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Classes:
    """Class prompts embedded by the target's text tower, and which of them are right for each image."""

    embeddings_CP: Floats
    labels_NC: NDArray[np.bool_]


def score(
    predicted_NTD: Floats,
    target_NTD: Floats,
    mean_TD: Floats,
    *,
    predicted_pooled_NP: Floats | None = None,
    target_pooled_NP: Floats | None = None,
    captions: Captions | None = None,
    classes: Classes | None = None,
    disjoint_target_NTD: Floats | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[MetricRow]:
    """Score predicted tokens on the target's raw scale.

    `mean_TD` is the mean of the training targets; `*_pooled_NP` are the embeddings that the target tower's
    head makes of the tokens; `disjoint_target_NTD` are true tokens of other images.
    """
    ratios = token_ratios(token_statistics(predicted_NTD, target_NTD, mean_TD))
    if predicted_pooled_NP is not None and target_pooled_NP is not None:
        ratios |= embedding_ratios(predicted_pooled_NP, target_pooled_NP, captions, classes)
    estimates = bootstrap(ratios, draw_counts(len(target_NTD), draws=draws, seed=seed))
    estimates |= distances(predicted_NTD, target_NTD, disjoint_target_NTD)
    return [_row(metric, estimates.get(metric, NOT_MEASURED)) for metric in METRICS]


def embedding_ratios(
    predicted_NP: Floats, target_NP: Floats, captions: Captions | None, classes: Classes | None
) -> dict[str, Ratio]:
    """Metrics of projected image embeddings."""
    images = len(predicted_NP)
    every = np.arange(images)
    cosine_N = cosine(np.asarray(predicted_NP, np.float64), np.asarray(target_NP, np.float64))
    ratios = {"emb_cos": mean_of(cosine_N)}
    ratios |= recall_ratios("self", self_ranks(predicted_NP, target_NP), every, images)
    if captions is not None and len(captions) > 0:
        found_images = caption_to_image_ranks(predicted_NP, captions)
        found_captions = image_to_caption_ranks(predicted_NP, captions)
        ratios |= recall_ratios("t2i", found_images, captions.image_M, images)
        ratios |= recall_ratios("i2t", found_captions, every, images)
    if classes is not None:
        ratios["zero_shot_top1"] = zero_shot_ratio(predicted_NP, classes.embeddings_CP, classes.labels_NC)
    return ratios


def distances(predicted_NTD: Floats, target_NTD: Floats, disjoint_NTD: Floats | None) -> dict[str, Estimate]:
    """Frechet distances of tokens and of token means, to the same images and to other ones."""
    predicted_mean_ND = predicted_NTD.mean(axis=1, dtype=np.float64)
    found = {
        "fd_tok": relative_frechet(predicted_NTD, target_NTD),
        "fd_img": relative_frechet(predicted_mean_ND, target_NTD.mean(axis=1, dtype=np.float64)),
    }
    if disjoint_NTD is not None:
        disjoint_mean_ND = disjoint_NTD.mean(axis=1, dtype=np.float64)
        found["fd_tok_disjoint"] = relative_frechet(predicted_NTD, disjoint_NTD)
        found["fd_img_disjoint"] = relative_frechet(predicted_mean_ND, disjoint_mean_ND)
    return found


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: what is not finite is not known."""
    return float(value) if np.isfinite(value) else None


def _row(metric: str, estimate: Estimate) -> MetricRow:
    return MetricRow(
        metric=metric,
        value=finite_or_none(estimate.value),
        low=finite_or_none(estimate.low),
        high=finite_or_none(estimate.high),
    )
