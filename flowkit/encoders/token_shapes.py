"""How many tokens an encoder makes of an image and how wide they are, known before its weights are here.

The towers that are fixed stand in tables; an open_clip model is built without memory ("meta"), which loads torch and
takes some seconds, and needs no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.encoders.eva_names import named_tower
from flowkit.encoders.names import split_name
from flowkit.encoders.weight_registry import find_weights
from flowkit.errors import EncoderError

FLOAT32_BYTES = 4
PUBLISHED_BYTES = {"EVA-CLIP-8B": 32_883_305_721}
"""Sizes of the published files of the family eva_clip."""


@dataclass(frozen=True)
class EncoderShape:
    """Tokens per image with the class token, channels of a token and of the pooled embedding, rows and columns.

    `weight_bytes` is the most that fetching the weights takes; the demo's are copied, those that the user brings stay.
    """

    tokens: int
    width: int
    pooled_width: int
    grid: tuple[int, int]
    weight_bytes: int


DEMO_SHAPES = {"demo-eva": (17, 128, 64, (4, 4)), "demo-vit": (17, 96, 64, (4, 4))}


def encoder_shape(name: str) -> EncoderShape:
    """Return the shape of the encoder `name`; raises `EncoderError` if it is unknown or cannot be built."""
    parts = split_name(name)
    if parts.family in DEMO_SHAPES:
        return EncoderShape(*DEMO_SHAPES[parts.family], weight_bytes=find_weights(name).stat().st_size)
    if parts.family == "eva_clip":
        tower = named_tower(name)[0].config
        side = tower.image_pixels // tower.patch_pixels
        published = 0 if parts.path else PUBLISHED_BYTES[parts.model]
        return EncoderShape(side**2 + 1, tower.width, tower.pooled_width, (side, side), published)
    return _open_clip_shape(name, parts.path)


def model_without_memory(name: str) -> Any:
    """Return the open_clip model that `name` means, on no device; raises `EncoderError` if it cannot be built."""
    import open_clip
    import torch

    try:
        with torch.device("meta"), _quiet():
            return open_clip.create_model(split_name(name).model, device="meta")
    except (RuntimeError, ValueError, OSError) as fault:
        raise EncoderError(
            f"encoder {name!r}: its shape is not to be had ({str(fault).splitlines()[0]}); "
            "take a model that open_clip brings along"
        ) from fault


def _open_clip_shape(name: str, brought: Path | None) -> EncoderShape:
    import open_clip
    from open_clip.transform import PreprocessCfg

    from flowkit.encoders.open_clip_encoder import OpenClipEncoder
    from flowkit.encoders.open_clip_names import named_weights

    named_weights(name)
    model = model_without_memory(name)
    encoder = OpenClipEncoder(
        name, model, preprocessing=PreprocessCfg(), tokenizer=open_clip.SimpleTokenizer, device="meta"
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return EncoderShape(
        encoder.token_count,
        encoder.token_width,
        encoder.pooled_width,
        encoder.grid,
        0 if brought else FLOAT32_BYTES * parameters,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning that a model has no weights, which is meant."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
