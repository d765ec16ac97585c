"""Why a figure is missing, or on what it was measured: one sentence for every row of None.

A note names the metrics that it is about. What has no better reason is not defined for the predictions at hand.
"""

from collections.abc import Collection, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation import dispersion
from flowkit.evaluation.distribution import halves_are_measurable
from flowkit.evaluation.downstream import DOWNSTREAM
from flowkit.evaluation.two_sample import FEWEST_IMAGES, MOST_IMAGES, MOST_POSITIONS

TEXT_METRICS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10")
EMBEDDING_METRICS = ("emb_cos", "self_r1", "self_r5", "self_r10", *TEXT_METRICS, "zero_shot_top1")
POOLED_METRICS = ("mmd", "knn_agreement", "cka")
OVER_NOISE = ("fd_tok", "fd_img", "fd_tok_disjoint", "fd_img_disjoint", "mmd", "cka", "auc")
KEYS_IN_A_NOTE = 5


class Note(TypedDict):
    """Why some metrics were not measured, or on what."""

    metrics: list[str]
    note: str


class Notes:
    """The notes on one set of predictions [N, T, D], as they are found."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images, self.tokens, self.channels = shape
        self.found: list[Note] = []

    def say(self, metrics: Collection[str], note: str) -> None:
        """Add a note on some metrics."""
        self.found.append(Note(metrics=list(metrics), note=note))

    def on_values(
        self, finite_N: NDArray[np.bool_], keys: Sequence[str] | None, metrics: Sequence[str]
    ) -> None:
        """Count and name predictions that are not finite, which leave nothing to measure."""
        if lost := int((~finite_N).sum()):
            named = ", ".join(
                str(n) if keys is None else keys[n] for n in np.flatnonzero(~finite_N)[:KEYS_IN_A_NOTE]
            )
            self.say(
                metrics,
                f"{lost} of {self.images} predictions are not finite, first {named}: nothing is measured",
            )

    def on_size(self) -> None:
        """Say which distances this number of images is too small for."""
        counts = {"fd_tok": self.images * self.tokens, "fd_img": self.images}
        for name, count in counts.items():
            if not halves_are_measurable(self.images, count, self.channels):
                self.say(
                    [name, f"{name}_disjoint"],
                    f"{self.images} images are too few: two fifths of their {count} vectors must span {self.channels} "
                    "channels; mmd holds at any number of images",
                )
        if self.images < FEWEST_IMAGES:
            self.say(
                ["auc"], f"{self.images} images are too few for a classifier, which wants {FEWEST_IMAGES}"
            )
        elif self.images > MOST_IMAGES or self.tokens > MOST_POSITIONS:
            judged, positions = min(self.images, MOST_IMAGES), min(self.tokens, MOST_POSITIONS)
            self.say(["auc"], f"of {judged} images and {positions} positions, the first always among them")

    def on_texts(self, *, has_embeddings: bool, captioned: int, in_classes: int | None) -> None:
        """Say what could not be asked of image embeddings; `in_classes` is None where there are no classes."""
        if not has_embeddings:
            self.say(EMBEDDING_METRICS, "the layout has no class token, of which image embeddings are made")
            self.say(POOLED_METRICS, "measured on token means, because the layout has no class token")
            return
        if captioned == 0:
            self.say(TEXT_METRICS, "no image has a caption")
        elif left_out := self.images - captioned:
            self.say(TEXT_METRICS, f"{left_out} of {self.images} images have no caption and are left out")
        if in_classes is None:
            self.say(["zero_shot_top1"], "the data set has no classes")
        elif left_out := self.images - in_classes:
            self.say(
                ["zero_shot_top1"], f"{left_out} of {self.images} images count for no class and are left out"
            )

    def on_noise(self, images_of_seeds: Sequence[int], *, is_deterministic: bool) -> None:
        """Say what the noise seeds beyond the first are missing for."""
        if is_deterministic:
            self.say(["r2_of_mean"], "a deterministic map has one sample per image")
        elif not images_of_seeds:
            self.say(
                dispersion.MEASURES,
                "one sample per image: raise sampling.noise_seeds, for a sampler without -mean",
            )
        elif (fewest := min(images_of_seeds)) < self.images:
            self.say(dispersion.MEASURES, f"of the first {fewest} images, which alone have several samples")
            self.say(
                OVER_NOISE,
                f"intervals without further noise seeds, which have {fewest} of {self.images} images",
            )

    def on_downstream(self, judged: int) -> None:
        """Say how many images the consumer judged where it did not judge all."""
        if judged < self.images:
            self.say([DOWNSTREAM], f"of {judged} of {self.images} images, evenly spaced")

    def on_rest(self, missing: Sequence[str]) -> None:
        """Leave no missing figure without a reason."""
        explained = {metric for note in self.found for metric in note["metrics"]}
        if rest := [metric for metric in missing if metric not in explained]:
            self.say(
                rest,
                "not defined here: what they divide by is zero, as the error or the variance of the target",
            )
