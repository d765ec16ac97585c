"""Demo drawings in bulk, as arrays: what the demo towers are trained and measured on.

The series `TOWER_TRAINING_SEED` and `TOWER_MEASURING_SEED` are reserved: `write_shards` refuses them, so no
data set of the workflow repeats an image by seed that a tower was trained on or its model card was measured
on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flowkit.shards.demo_shapes import (
    RESERVED_SEEDS_FROM,
    Drawing,
    draw,
    hard_negatives,
    image_classes,
)

TOWER_TRAINING_SEED = RESERVED_SEEDS_FROM + 1
TOWER_HARD_NEGATIVE_SEED = RESERVED_SEEDS_FROM + 2
TOWER_MEASURING_SEED = RESERVED_SEEDS_FROM + 3


@dataclass(frozen=True)
class Pictures:
    """Drawings as pixels uint8 [N, 32, 32, 3], with their captions and the class names of their objects."""

    pixels_NHWC: np.ndarray
    captions: list[str]
    classes: list[tuple[str, ...]]


def draw_pictures(seed: int, count: int) -> Pictures:
    """Return the first `count` images of the series `seed`."""
    return _stack([draw(seed, index) for index in range(count)])


def draw_hard_negatives(seed: int, groups: int) -> Pictures:
    """Return `groups` groups of four images in a row, equal within a group in all but one shape."""
    drawings = [drawing for index in range(groups) for drawing in hard_negatives(seed, index)]
    return _stack(drawings)


def shorten_captions(pictures: Pictures, *, every: int) -> Pictures:
    """Return the pictures with each `every`-th caption cut down to one object: `a red circle`.

    Teaches a tower to find one object of two, which is what class prompts ask for.
    """
    captions = list(pictures.captions)
    for turn, index in enumerate(range(0, len(captions), every)):
        classes = pictures.classes[index]
        captions[index] = f"a {classes[turn % len(classes)]}"
    return replace(pictures, captions=captions)


def _stack(drawings: list[Drawing]) -> Pictures:
    return Pictures(
        pixels_NHWC=np.stack([np.asarray(drawing.image) for drawing in drawings]),
        captions=[drawing.caption for drawing in drawings],
        classes=[image_classes(drawing.attributes) for drawing in drawings],
    )
