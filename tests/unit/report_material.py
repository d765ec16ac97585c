"""Small standings, details and pictures for tests of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from flowkit.report.data import Measurement, Picture, Results
from flowkit.report.details import Details


def row(run: str, sampler: str, value: float | None, half: float = 0.01, metric: str = "r2") -> Measurement:
    low, high = (None, None) if value is None else (value - half, value + half)
    return Measurement(run, sampler, "evaluation", metric, value, low, high, None)


def details(images: int = 12, tokens: int = 5) -> Details:
    """Details whose image i has error i, all of them in the gallery."""
    error = np.arange(images, dtype=float)
    return Details(
        cos_image=np.linspace(0.65, 0.95, images),
        cos_token_mean=np.ones(images),
        cos_constant=np.full(images, 0.5),
        cos_shuffled=np.full(images, np.nan),
        error_image=error,
        self_rank=np.ones(images),
        t2i_rank=np.zeros(images),
        cos_position=np.linspace(0.5, 1, tokens),
        r2_position=np.linspace(0, 1, tokens),
        norm_ratio_position=np.ones(tokens),
        error_map=np.repeat(error[:, None], tokens, axis=1),
        component_share=np.array([0.7, 0.3]),
        component_ratio=np.array([1.0, 0.5]),
        component_r2=np.array([0.9, 0.1]),
        gallery_index=np.arange(images),
        neighbours_true=np.tile(np.arange(5), (images, 1)),
        neighbours_predicted=np.tile(np.arange(1, 6), (images, 1)),
        query_index=np.array([0]),
        query_true=np.arange(5)[None],
        query_predicted=np.arange(5)[None],
    )


STANDINGS = Results(
    "small",
    [
        row("flow", "heun-50", 0.90),
        row("flow", "euler-1", 0.93),
        row("regression", "direct-1", 0.94),
        row("ridge", "-", 0.99),
        row("constant", "-", 0.0),
        row("true", "-", 1.0),
        row("lost", "euler-1", None),
    ],
    [],
    {},
)


def pictures_of(indices: Sequence[int]) -> list[Picture]:
    return [Picture(Image.new("RGB", (8, 8)), f"image {index}") for index in indices]
