"""How far apart a model's outputs lie under true and under translated features, measured by how far images lie apart.

    downstream = sum_n |f(true_n) - f(translated_n)| / sum_n |f(true_n) - f(true_m(n))|

f is the consumer with the noise of image n in every term, and m(n) another image: the judged ones, in an order drawn
once, each beside the next. 0: the consumer cannot tell; 1: a translation is as wrong as another image; more: worse than
another image. The same images
are judged for every run: evenly spaced ones, at most `MOST_IMAGES`; of an object with several views, the first view,
because these consumers take one picture. Knows no consumer: stages hand it one as a
function. Shapes: N images, T tokens with or without class token, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flowkit.evaluation.bootstrap import Array, Ratio
from flowkit.evaluation.tokens import Floats, Integers, Tokens, evenly_spaced
from flowkit.progress import Progress

DOWNSTREAM = "downstream"
MOST_IMAGES = 200
"""A pass of Shap-E's prior is about 0.9 TFLOP: 0.3 G weights, 1,281 tokens. An image takes two at each time,
one where what is said to its true features is remembered."""
BATCH = 4

Distances = Callable[[Floats, Floats, Sequence[str]], Array]
"""Patches of n images, other patches, keys -> how far apart the outputs are [n], with noise by key."""


@dataclass(frozen=True)
class Downstream:
    """A consumer, and the images whose translations it judges."""

    distances: Distances
    true: Tokens
    keys: Sequence[str]
    has_class_token: bool
    seed: int = 0
    views: int = 1

    @property
    def judged(self) -> Integers:
        """Rows of the judged images."""
        return evenly_spaced(len(self.keys), MOST_IMAGES)

    @cached_property
    def between_images(self) -> Array:
        """Distance of each judged image from another one; the same for every set of predictions."""
        order = np.random.default_rng(self.seed).permutation(len(self.judged))
        other = np.empty_like(self.judged)
        other[order] = self.judged[np.roll(order, -1)]
        return self._distances(self.true, other)

    def ratio(self, predicted: Tokens) -> Ratio:
        """Return the metric as a ratio over all N images; those that are not judged count nothing."""
        numerator_N, denominator_N = np.zeros((2, len(self.keys)))
        numerator_N[self.judged] = self._distances(predicted, self.judged)
        denominator_N[self.judged] = self.between_images
        return Ratio(numerator_N, denominator_N)

    def _distances(self, tokens: Tokens, rows: Integers) -> Array:
        """Distances of the judged images' true outputs from those of `rows` of `tokens`."""
        found = []
        progress = Progress("downstream", len(rows), "image")
        for first in range(0, len(rows), BATCH):
            part = slice(first, first + BATCH)
            mine, theirs = self.true[self.judged[part]], tokens[rows[part]]
            keys = [self.keys[row] for row in self.judged[part]]
            found.append(self.distances(self._patches(mine), self._patches(theirs), keys))
            progress.advance(len(keys))
        progress.close()
        return np.concatenate(found).astype(np.float64)

    def _patches(self, tokens_NTD: Floats) -> Floats:
        of_first_view = tokens_NTD[:, : tokens_NTD.shape[1] // self.views]
        return of_first_view[:, 1:] if self.has_class_token else of_first_view
