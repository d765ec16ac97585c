"""All metrics of one set of predicted tokens against the true ones, as rows {metric, value, low, high}.

The rows are always the same METRICS in the same order; with a consumer to try predictions on, `downstream` comes last.
What the inputs do not allow - embedding metrics without a class token, retrieval without captions, a Frechet distance
of fewer images than channels, anything of values that are not finite - is a row of None, which reads "not measured",
with a note that says why.
fd_tok_disjoint and fd_img_disjoint compare with true tokens of other images; for the true tokens they are the
noise floor that every other Frechet distance should be read against. Sums over images have bootstrap
intervals; Frechet distances, mmd, cka and auc have jackknife intervals over ten tenths of the images, widened
by their spread over noise seeds where there are several. Shapes: N images, T tokens, D channels, P embedding
width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation import dispersion, thresholds
from flowkit.evaluation.bootstrap import (
    NOT_MEASURED,
    Estimate,
    Ratio,
    bootstrap,
    draw_counts,
    mean_of,
    with_noise,
)
from flowkit.evaluation.collected import Collected, TrueSide, collect
from flowkit.evaluation.distribution import disjoint_frechet, halves_are_measurable, relative_frechet
from flowkit.evaluation.downstream import DOWNSTREAM, Downstream
from flowkit.evaluation.metrics import cosine, token_ratios
from flowkit.evaluation.moments import TENTHS
from flowkit.evaluation.notes import EMBEDDING_METRICS, Note, Notes
from flowkit.evaluation.retrieval import (
    Captions,
    caption_to_image_ranks,
    image_to_caption_ranks,
    recall_ratios,
    self_ranks,
)
from flowkit.evaluation.similarity import alignment, discrepancy, nearest_neighbours, shared_neighbours
from flowkit.evaluation.tokens import Floats, Tokens
from flowkit.evaluation.two_sample import two_sample_auc
from flowkit.evaluation.zero_shot import zero_shot_ratio

METRICS = (
    *("tok_cos", "tok_ccos", "img_cos", "img_ccos", "r2"),
    *("fd_tok", "fd_img", "fd_tok_disjoint", "fd_img_disjoint", "mmd", "auc", "cka", "knn_agreement"),
    *("var_ratio", "norm_ratio", *EMBEDDING_METRICS, *dispersion.MEASURES, *thresholds.MEASURES),
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


@dataclass(frozen=True)
class Texts:
    """What predictions are asked to find; None where the data set has none."""

    captions: Captions | None = None
    classes: Classes | None = None


@dataclass(frozen=True)
class Scored:
    """The rows of one set of predictions, the notes on them, and what was collected on the way."""

    rows: list[MetricRow]
    notes: list[Note]
    collected: Collected
    without: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Figures with jackknife intervals, without each tenth of the images [G]."""


def score(
    predicted: Tokens,
    true: TrueSide,
    *,
    texts: Texts | None = None,
    noise: Sequence[Tokens] = (),
    is_deterministic: bool = False,
    keys: Sequence[str] | None = None,
    downstream: Downstream | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """Score predicted tokens [N, T, D] on the target's raw scale.

    `noise` are further samples of the first images, each set from another noise seed; a deterministic map has no
    spread. `keys` name the images in notes.
    """
    texts = Texts() if texts is None else texts
    collected = collect(predicted, true)
    notes = _noted(collected, texts)
    metrics = metrics_of(downstream)
    notes.on_values(collected.finite_N, keys, metrics)
    if not collected.finite_N.all():
        return Scored([_row(metric, NOT_MEASURED) for metric in metrics], notes.found, collected)
    notes.on_noise([len(one) for one in noise], is_deterministic=is_deterministic)
    ratios = image_ratios(collected, true, texts, seed)
    if downstream is not None:
        ratios[DOWNSTREAM] = downstream.ratio(predicted)
        notes.on_downstream(len(downstream.judged))
    estimates = bootstrap(ratios, draw_counts(len(predicted), draws=draws, seed=seed))
    if is_deterministic:
        estimates |= _no_spread(collected)
    elif noise:
        estimates |= _spread(predicted, noise, true, draws, seed)
    estimates |= _distances_over_noise(predicted, collected, noise, true, seed)
    rows = [_row(metric, estimates.get(metric, NOT_MEASURED)) for metric in metrics]
    notes.on_rest([row["metric"] for row in rows if row["value"] is None])
    without = {name: np.array(one.without_G) for name, one in estimates.items() if one.without_G}
    return Scored(rows, notes.found, collected, without)


def metrics_of(downstream: Downstream | None) -> tuple[str, ...]:
    """Return the ids of all rows."""
    return METRICS if downstream is None else (*METRICS, DOWNSTREAM)


def not_scored(why: str, metrics: Sequence[str] = METRICS) -> tuple[list[MetricRow], list[Note]]:
    """Rows and note of predictions that no metric can be measured on."""
    return [_row(metric, NOT_MEASURED) for metric in metrics], [Note(metrics=list(metrics), note=why)]


def _noted(collected: Collected, texts: Texts) -> Notes:
    """What is to be said of the set itself."""
    captions, classes = texts.captions, texts.classes
    images, channels = collected.side.means_ND.shape
    notes = Notes((images, collected.statistics.error_NT.shape[1], channels))
    notes.on_size()
    notes.on_texts(
        has_embeddings=collected.side.embeddings_NP is not None,
        captioned=0 if captions is None else len(np.unique(captions.image_M)),
        in_classes=None if classes is None else int(classes.labels_NC.any(axis=1).sum()),
    )
    return notes


def image_ratios(collected: Collected, true: TrueSide, texts: Texts, seed: int) -> dict[str, Ratio]:
    """Every metric that is a sum over images."""
    neighbours_NK = nearest_neighbours(collected.side.pooled)
    cosines = thresholds.image_cosines(collected, true, seed)
    ratios = token_ratios(collected.statistics, collected.predicted_offset, collected.target_offset)
    ratios["knn_agreement"] = mean_of(shared_neighbours(neighbours_NK, true.neighbours_NK))
    ratios |= thresholds.threshold_ratios(cosines)
    if collected.side.embeddings_NP is not None and true.side.embeddings_NP is not None:
        ratios |= embedding_ratios(collected.side.embeddings_NP, true.side.embeddings_NP, texts)
    return ratios


def embedding_ratios(predicted_NP: Floats, target_NP: Floats, texts: Texts) -> dict[str, Ratio]:
    """Metrics of projected image embeddings."""
    images, captions, classes = len(predicted_NP), texts.captions, texts.classes
    every = np.arange(images)
    cosine_N = cosine(np.asarray(predicted_NP, np.float64), np.asarray(target_NP, np.float64))
    ratios = {"emb_cos": mean_of(cosine_N)}
    ratios |= recall_ratios("self", self_ranks(predicted_NP, target_NP), every, images)
    if captions is not None and len(captions) > 0:
        captioned = np.unique(captions.image_M)
        found_images = caption_to_image_ranks(predicted_NP, captions)
        found_captions = image_to_caption_ranks(predicted_NP, captions)[captioned]
        ratios |= recall_ratios("t2i", found_images, captions.image_M, images)
        ratios |= recall_ratios("i2t", found_captions, captioned, images)
    if classes is not None:
        ratios["zero_shot_top1"] = zero_shot_ratio(predicted_NP, classes.embeddings_CP, classes.labels_NC)
    return ratios


def distances(
    predicted: Tokens, collected: Collected, true: TrueSide, seed: int, *, intervals: bool = True
) -> dict[str, Estimate]:
    """Metrics of whole distributions; without intervals where only values are needed."""
    side, target = collected.side, true.side
    images, tokens, channels = predicted.shape
    found = {
        "mmd": discrepancy(side.pooled, target.pooled),
        "cka": alignment(side.pooled, target.pooled),
        "auc": two_sample_auc(predicted, true.tokens, seed=seed),
    }
    for name, count, ours, theirs in (
        ("fd_tok", images * tokens, side.token_moments, target.token_moments),
        ("fd_img", images, side.mean_moments, target.mean_moments),
    ):
        if halves_are_measurable(images, count, channels):
            found[name] = relative_frechet(ours, theirs, interval=intervals)
            found[f"{name}_disjoint"] = disjoint_frechet(ours, theirs, interval=intervals)
    return found


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: what is not finite is not known."""
    return float(value) if np.isfinite(value) else None


def _no_spread(collected: Collected) -> dict[str, Estimate]:
    """A deterministic map has none; where it makes no error either, their ratio means nothing."""
    nothing = Estimate(0.0, 0.0, 0.0)
    errs = collected.statistics.error_NT.sum() > 0
    return {"seed_spread": nothing, "dispersion": nothing if errs else NOT_MEASURED}


def _spread(
    predicted: Tokens, noise: Sequence[Tokens], true: TrueSide, draws: int, seed: int
) -> dict[str, Estimate]:
    ratios = dispersion.dispersion_ratios([predicted, *noise], true.tokens, true.mean_TD)
    images = len(ratios["seed_spread"].numerator_N)
    return bootstrap(ratios, draw_counts(images, draws=draws, seed=seed))


def _distances_over_noise(
    predicted: Tokens, collected: Collected, noise: Sequence[Tokens], true: TrueSide, seed: int
) -> dict[str, Estimate]:
    """The distances of the first sample, with the spread over the noise seeds that hold all images."""
    found = distances(predicted, collected, true, seed)
    others = [
        distances(one, collect(one, true), true, seed, intervals=False)
        for one in noise
        if len(one) == len(predicted)
    ]
    for name, estimate in found.items():
        values = np.array([estimate.value, *(other[name].value for other in others)])
        lowest = -np.inf if name == "mmd" else 0.0
        found[name] = with_noise(estimate, values, lowest=lowest, groups=TENTHS)
    return found


def _row(metric: str, estimate: Estimate) -> MetricRow:
    return MetricRow(
        metric=metric,
        value=finite_or_none(estimate.value),
        low=finite_or_none(estimate.low),
        high=finite_or_none(estimate.high),
    )
