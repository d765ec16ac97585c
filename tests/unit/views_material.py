"""Stores of objects with several views, of which some images were refused, for tests of everything that reads them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from flowkit.features.tables import RejectRow, SampleRow
from flowkit.features.writer import TokenStoreWriter
from flowkit.view_keys import key_of_view

VIEWS, OBJECTS, TARS = 3, 5, 2
SHAPES = {"eva": (5, 6), "clip": (5, 4)}
LOST = {("eva", 0): {4}, ("clip", 0): {10, 11}, ("eva", 1): {0}}
"""Images without a record by encoder and tar: view 1 of object 1, views 1 and 2 of object 3; view 0 of object 0."""
WHOLE = [(0, 0), (0, 2), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)]
"""Tar and object of what is left."""


def values(encoder: str, tar: int) -> np.ndarray:
    shape = (OBJECTS * VIEWS, *SHAPES[encoder])
    return np.random.default_rng([tar, len(encoder)]).standard_normal(shape).astype(np.float16)


def write_store(
    folder: Path, encoder: str, tar: int, *, lost: Collection[int] = (), views: int = VIEWS
) -> Path:
    path = folder / f"{encoder}{tar}"
    attributes = {
        "encoder": encoder,
        "has_cls": True,
        "grid": [2, 2],
        "views": views,
        "source": {"name": f"{tar}.tar", "sha256": str(tar)},
    }
    tokens, (count, width) = values(encoder, tar), SHAPES[encoder]
    names = [key_of_view(f"{tar}-{index // VIEWS}", index % VIEWS) for index in range(len(tokens))]
    kept = [index for index in range(len(tokens)) if index not in lost]
    with TokenStoreWriter(
        path, token_shape=(count, width), pooled_width=width, attributes=attributes
    ) as writer:
        writer.append(
            tokens[kept],
            tokens[kept].mean(1),
            [SampleRow(index, names[index], (f"caption {names[index]}",)) for index in kept],
            rejects=[RejectRow(index, names[index], "image undecodable: torn") for index in sorted(lost)],
            next_index=len(tokens),
        )
        writer.finish()
    return path


def write_stores(folder: Path) -> list[list[Path]]:
    """The stores of both encoders, tar by tar."""
    return [
        [write_store(folder, encoder, tar, lost=LOST.get((encoder, tar), ())) for tar in range(TARS)]
        for encoder in SHAPES
    ]
