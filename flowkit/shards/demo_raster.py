"""Integer rasteriser of the demo shapes: objects on a 64 px canvas, averaged down to 32 px.

Only numpy integer arithmetic, so the pixels are the same with every library version. A shape is a boolean
mask around its centre; `radius` is half its extent. What is drawn where is decided in `demo_shapes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

CANVAS_PIXELS = 64
IMAGE_PIXELS = 32
STRIPE_PIXELS = 4  # on the canvas: two pixels of colour, two of shade in the final image
SHADE_PERCENT = 35  # brightness of the dark stripes


@dataclass(frozen=True)
class Mark:
    """One object as pixels: its outline, where it sits on the canvas and its two tones."""

    shape: str
    radius: int
    center_yx: tuple[int, int]
    colour: tuple[int, int, int]
    striped: bool


@cache
def shape_mask(shape: str, radius: int) -> np.ndarray:
    """Return the mask [2 radius + 1, 2 radius + 1] of a shape; raises `ValueError` for an unknown one."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    if shape == "circle":
        return x * x + y * y <= radius * radius
    if shape == "square":
        half = radius * 7 // 8
        return (abs(x) <= half) & (abs(y) <= half)
    if shape == "triangle":
        return 2 * abs(x) <= y + radius
    if shape == "cross":
        return np.minimum(abs(x), abs(y)) <= radius // 3
    raise ValueError(f"shape {shape!r} is unknown; expected circle, square, triangle or cross")


def paint(background: tuple[int, int, int], marks: tuple[Mark, ...]) -> np.ndarray:
    """Return the image uint8 [32, 32, 3] of the marks, later ones on top."""
    canvas = np.empty((CANVAS_PIXELS, CANVAS_PIXELS, 3), dtype=np.uint8)
    canvas[:] = background
    for mark in marks:
        top, left = (center - mark.radius for center in mark.center_yx)
        mask = shape_mask(mark.shape, mark.radius)
        window = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
        window[mask] = mark.colour
        if mark.striped:
            dark_rows = (np.arange(mask.shape[0]) // STRIPE_PIXELS) % 2 == 1
            window[mask & dark_rows[:, None]] = [channel * SHADE_PERCENT // 100 for channel in mark.colour]
    return box_average(canvas)


def box_average(canvas: np.ndarray) -> np.ndarray:
    """Return a canvas uint8 [64, 64, 3] at half its size, every pixel the rounded mean of four."""
    sums = canvas[0::2].astype(np.uint16)
    sums += canvas[1::2]
    return ((sums[:, 0::2] + sums[:, 1::2] + 2) // 4).astype(np.uint8)
