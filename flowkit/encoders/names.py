"""What an encoder's name is made of; reads the text alone: no file, no list of models, no torch.

demo-eva, demo-vit             towers that come with the package
open_clip:MODEL/TAG            an open_clip model with CLS pooling, its weights fetched by tag
open_clip:MODEL/TAG=FILE       the same with the bytes of a file; the tag tells how they were trained
open_clip:MODEL/FILE           where all tags of the model say the same; has a / or ends as weights do
eva_clip:EVA-CLIP-8B[/PATH]    the published .pt, or that file or a folder of the hub's shards
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowkit.errors import EncoderError

FAMILIES = {"demo-eva": False, "demo-vit": False, "open_clip": True, "eva_clip": True}
"""Whether a model follows the family's name."""
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class EncoderName:
    """A name in its parts; `path` is what the user brings, as it was written."""

    family: str
    model: str = ""
    tag: str | None = None
    path: Path | None = None


def split_name(name: str) -> EncoderName:
    """Return the parts of an encoder's name; raises `EncoderError` for an unknown family or `TAG=` without a file."""
    family, colon, rest = name.partition(":")
    if family not in FAMILIES or bool(colon) != FAMILIES[family]:
        raise EncoderError(
            f"encoder {name!r} is unknown; expected demo-eva, demo-vit, open_clip:MODEL/TAG, "
            "open_clip:MODEL/TAG=FILE or eva_clip:EVA-CLIP-8B"
        )
    model, _, weights = rest.partition("/")
    if family == "eva_clip":
        return EncoderName(family, model, path=Path(weights) if weights else None)
    tag, equals, file = weights.partition("=")
    if equals and tag and "/" not in tag:
        if not file:
            raise EncoderError(
                f"encoder {name!r} names no file after the tag; expected {form_with_file(name)}"
            )
        return EncoderName(family, model, tag, Path(file))
    if "/" in weights or Path(weights).suffix in WEIGHTS_SUFFIXES:
        return EncoderName(family, model, path=Path(weights))
    return EncoderName(family, model, weights or None)


def encoder_family(name: str) -> str:
    """Return the family of an encoder's name; raises `EncoderError` for an unknown one."""
    return split_name(name).family


def brought_weights(name: str) -> Path | None:
    """Return the file or folder that the user named, there or not; None for a tag and for what is published."""
    return split_name(name).path


def form_with_file(name: str) -> str:
    """Return the name that means the same encoder with a file of the user's; `FILE` stands for it."""
    model, slash, tag = name.partition("/")
    return f"{model}/{tag.partition('=')[0]}=FILE" if slash else f"{model}/FILE"
