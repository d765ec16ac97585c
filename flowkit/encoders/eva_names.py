"""What a name of the eva_clip family means: the sizes of a tower and where its published weights are.

No forward code is reached from here, so that an edit there makes nobody fetch 33 GB again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowkit.encoders.names import split_name
from flowkit.encoders.weight_files import weight_files
from flowkit.encoders.weight_hub import Download, HubWeights, find_on_hub
from flowkit.errors import EncoderError


@dataclass(frozen=True)
class EvaConfig:
    """Sizes of a tower; the MLP is `mlp_ratio` times as wide as the tokens."""

    image_pixels: int
    patch_pixels: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    pooled_width: int


@dataclass(frozen=True)
class PublishedTower:
    """A tower by its name: sizes, and where its weights are."""

    config: EvaConfig
    weights: HubWeights


MODELS = {
    "EVA-CLIP-8B": PublishedTower(
        EvaConfig(
            image_pixels=224,
            patch_pixels=14,
            width=4096,
            layers=32,
            heads=32,
            mlp_ratio=5.0,
            pooled_width=1280,
        ),
        HubWeights(
            "BAAI/EVA-CLIP-8B",
            ("EVA_CLIP_8B_psz14_s9B.pt",),
            sha256="98ecbfc99d1f0fc872f662c0692f0d992c21c9910bfc3148174d5a050d46ff3e",
        ),
    )
}


def named_tower(name: str) -> tuple[PublishedTower, Path | None]:
    """Return the tower that a name means, and the path in it; raises `EncoderError` for an unknown model."""
    parts = split_name(name)
    if parts.model not in MODELS:
        raise EncoderError(
            f"eva_clip has no model {parts.model!r} (encoder {name!r}); expected {', '.join(MODELS)}"
        )
    return MODELS[parts.model], parts.path


def find_weights(name: str, download_to: Path | None, download: Download | None) -> Path:
    """Return the path in the name, or the published .pt from the cache, else downloaded."""
    published, path = named_tower(name)
    if path is None:
        return find_on_hub(published.weights, name, download_to, download)
    weight_files(path)
    return path
