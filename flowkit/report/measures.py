"""What each metric is called on a page, what it means, which direction is better, and how it is printed.

One entry per metric id of `summary.json`; an id without an entry is shown under its own name, never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measure:
    """How one metric is shown."""

    metric: str
    label: str
    meaning: str
    better: Literal["higher", "lower", "nearer 1", "neither"]
    decimals: int = 3

    def text(self, value: float | None) -> str:
        """Return the value with this metric's decimals, or the words for a missing one."""
        return NOT_MEASURED if value is None else plain(value, self.decimals)

    def interval(self, low: float | None, high: float | None) -> str:
        """Return `low to high`, or nothing when an end is missing."""
        if low is None or high is None:
            return ""
        return f"{plain(low, self.decimals)} to {plain(high, self.decimals)}"

    @property
    def of_differences(self) -> Measure:
        """The same with one decimal more: paired differences are known more exactly than what they are between."""
        return replace(self, decimals=self.decimals + 1)

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` beats `than` in this metric's direction."""
        if self.better == "nearer 1":
            return abs(value - 1) < abs(than - 1)
        return {"higher": value > than, "lower": value < than}.get(self.better, False)


_SHOWN = (
    Measure(
        "r2",
        "R²",
        "Share of the target tokens' variance that is explained. The mean of each position scores 0.",
        "higher",
    ),
    Measure(
        "skill_r2",
        "gap closed",
        "Share of the R² gap between ridge and a perfect prediction that is closed.",
        "higher",
    ),
    Measure(
        "tok_cos",
        "token cosine",
        "Mean cosine over all tokens. Compare with the constant prediction.",
        "higher",
    ),
    Measure(
        "tok_ccos",
        "token cosine, centred",
        "The same after subtracting the mean of each position: the constant prediction scores 0.",
        "higher",
    ),
    Measure(
        "skill_tok_ccos",
        "gap closed, centred cosine",
        "Share of the gap between ridge and 1 that is closed in the centred token cosine.",
        "higher",
    ),
    Measure("img_cos", "image cosine", "Cosine of token means. It hides errors of single tokens.", "higher"),
    Measure(
        "img_ccos",
        "image cosine, centred",
        "Cosine of token means after subtracting the mean of each position.",
        "higher",
    ),
    Measure(
        "fd_img",
        "Fréchet, images",
        "Fréchet distance of token means over the trace of the target covariance. Constant scores 1.",
        "lower",
        4,
    ),
    Measure(
        "fd_tok",
        "Fréchet, tokens",
        "Fréchet distance of single tokens over the trace of the target covariance.",
        "lower",
        4,
    ),
    Measure(
        "fd_img_disjoint",
        "Fréchet, other images",
        "One half's predictions against the other half's true token means. The true features give the floor.",
        "lower",
        4,
    ),
    Measure(
        "fd_tok_disjoint",
        "Fréchet, tokens of other images",
        "One half's predictions against the other half's true tokens.",
        "lower",
        4,
    ),
    Measure(
        "mmd",
        "MMD",
        "Squared maximum mean discrepancy of pooled vectors, unbiased: holds for any number of images.",
        "lower",
        4,
    ),
    Measure(
        "emb_cos",
        "embedding cosine",
        "Cosine after the target tower's own final norm and projection.",
        "higher",
    ),
    Measure(
        "var_ratio",
        "variance ratio",
        "Variance of the prediction over that of the target: below 1 it shrinks, above 1 noise is left.",
        "nearer 1",
    ),
    Measure(
        "norm_ratio",
        "norm ratio",
        "Mean token norm of the prediction over that of the target.",
        "nearer 1",
    ),
    Measure(
        "self_r1",
        "own image at 1",
        "Share of predictions whose own true embedding is the nearest of all.",
        "higher",
    ),
    Measure(
        "self_r5",
        "own image in 5",
        "Share of predictions whose own true embedding is among the nearest 5.",
        "higher",
    ),
    Measure(
        "self_r10",
        "own image in 10",
        "Share of predictions whose own true embedding is among the nearest 10.",
        "higher",
    ),
    Measure("t2i_r1", "text to image at 1", "Share of captions whose image is found first.", "higher"),
    Measure("t2i_r5", "text to image in 5", "Share of captions whose image is among the first 5.", "higher"),
    Measure(
        "t2i_r10",
        "text to image in 10",
        "Share of captions whose image is among the first 10.",
        "higher",
    ),
    Measure("i2t_r1", "image to text at 1", "Share of images whose caption is found first.", "higher"),
    Measure("i2t_r5", "image to text in 5", "Share of images whose caption is among the first 5.", "higher"),
    Measure(
        "i2t_r10",
        "image to text in 10",
        "Share of images whose caption is among the first 10.",
        "higher",
    ),
    Measure("zero_shot_top1", "zero-shot", "Share of images whose class prompt is the nearest.", "higher"),
    Measure(
        "knn_agreement",
        "kNN agreement",
        "Mean overlap of the 10 nearest neighbours in both spaces.",
        "higher",
    ),
    Measure("cka", "CKA", "Linear alignment of pooled vectors. Saturates: no headline.", "higher"),
    Measure(
        "seed_spread",
        "seed variance",
        "Variance over noise seeds as a share of the data variance.",
        "neither",
        4,
    ),
    Measure(
        "dispersion",
        "dispersion ratio",
        "Variance over noise seeds beside the error of their mean: 1 is calibrated, 0 is no uncertainty at all.",
        "nearer 1",
    ),
    Measure("r2_of_mean", "R² of the mean", "R² of the mean of all samples of an image.", "higher"),
    Measure(
        "auc",
        "two-sample AUC",
        "How well a classifier tells predictions from true tokens: 0.5 is indistinguishable.",
        "lower",
    ),
    *(
        Measure(
            f"over_{level}{answer}",
            f"cosine over .{level // 10}{words}",
            f"Share of images whose image cosine exceeds .{level // 10}{words}.",
            "higher" if not answer else "neither",
        )
        for answer, words in (("", ""), ("_constant", ", constant"), ("_shuffled", ", shuffled pairs"))
        for level in (70, 80, 90)
    ),
    Measure(
        "downstream",
        "3-D model's change",
        "How far a 3-D model's one-step clean estimate, without guidance, moves from that under true features at the "
        "same noisy latents, over how far it lies from another image's: 0 is no change, 1 another image, more is worse "
        "than that. Blind to the order and the lengths of patches.",
        "lower",
    ),
    Measure("nfe", "evaluations", "Network evaluations per image.", "lower", 0),
    Measure("images_per_s", "images / s", "Images sampled per second.", "higher", 1),
)

MEASURES = {measure.metric: measure for measure in _SHOWN}
KEY_METRICS = ("r2", "skill_r2", "tok_cos", "fd_img", "self_r1", "t2i_r1", "nfe")
"""Columns of the first table; all others are one click away."""


def measure(metric: str) -> Measure:
    """Return how `metric` is shown; an unknown id is shown as itself."""
    return MEASURES.get(metric, Measure(metric, metric, "", "neither", 4))


def in_order(metrics: set[str]) -> list[str]:
    """Return metric ids in the order of this file, unknown ones last by name."""
    return [metric for metric in MEASURES if metric in metrics] + sorted(metrics - MEASURES.keys())


def plain(value: float, decimals: int = 3) -> str:
    """Return a number with a fixed count of decimals, a true minus sign, and no minus before zero."""
    text = f"{value:.{decimals}f}"
    if not text.strip("-0."):
        text = text.lstrip("-")
    return text.replace("-", "−")


def short(value: float | str | None) -> str:
    """Return a number of unknown scale with four significant digits, text as it is, None as such."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return a time span in the unit that people would say it in: `4.2 s`, `52 s`, `3 min 10 s`, `4.2 h`."""
    if 0 < seconds < 0.05:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{plain(seconds, 1)} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
