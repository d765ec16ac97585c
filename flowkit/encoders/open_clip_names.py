"""What a name of the open_clip family means: model, settings of its weights, and the file on the hub.

A tag tells preprocessing and activation. A tag that was trained with another GELU than the model's is an error, where
open_clip only warns; a file without a tag is accepted where all tags of the model say the same. No forward code is
reached from here, so that an edit there makes nobody fetch weights again.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from flowkit.encoders.names import WEIGHTS_SUFFIXES, split_name
from flowkit.encoders.weight_hub import Download, HubWeights, find_on_hub
from flowkit.errors import EncoderError

DEFAULT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
ACTIVATIONS = {True: "QuickGELU", False: "GELU"}


@dataclass(frozen=True)
class OpenClipWeights:
    """A model, the settings that its weights were trained with, and the file that the user brings."""

    model: str
    settings: dict[str, Any]
    tag: str | None
    path: Path | None


def named_weights(name: str) -> OpenClipWeights:
    """Return what a name means; raises `EncoderError` for an unknown model or tag, for another GELU than the
    model's, and for a file without a tag where that leaves the settings open.
    """
    parts = split_name(name)
    config = open_clip.get_model_config(parts.model)
    if config is None:
        near = get_close_matches(parts.model, open_clip.list_models(), n=3, cutoff=0.5)
        raise EncoderError(
            f"open_clip has no model {parts.model!r} (encoder {name!r}); near: {', '.join(near)}"
        )
    tags = open_clip.list_pretrained_tags_by_model(parts.model)
    if parts.path is not None and parts.tag is None:
        settings = _settings_of_all(name, parts.model, tags, parts.path)
    else:
        settings = open_clip.get_pretrained_cfg(parts.model, parts.tag or "")
        if not settings:
            raise EncoderError(
                f"{parts.tag!r} is neither a tag of {parts.model} ({', '.join(tags) or 'none'}) nor a file "
                f"(with a / or {', '.join(WEIGHTS_SUFFIXES)}) (encoder {name!r})"
            )
    model_gelu, weights_gelu = (bool(one.get("quick_gelu")) for one in (config, settings or config))
    if model_gelu != weights_gelu:
        raise EncoderError(
            f"encoder {name!r}: the weights were trained with {ACTIVATIONS[weights_gelu]}, the model has "
            f"{ACTIVATIONS[model_gelu]}; name the twin model (QuickGELU models end in -quickgelu)"
        )
    return OpenClipWeights(parts.model, settings, parts.tag, parts.path)


def find_weights(name: str, download_to: Path | None, download: Download | None) -> Path:
    """Return the file in the name, or that of a tag from the cache, else downloaded.

    Raises `EncoderError` for what `named_weights` refuses, and if the file is neither there nor to be had.
    """
    weights = named_weights(name)
    if weights.path is not None:
        if not weights.path.is_file():
            raise EncoderError(
                f"weights file {weights.path} of encoder {name!r} does not exist; correct the path"
            )
        return weights.path
    repository, _, file_name = weights.settings.get("hf_hub", "").rpartition("/")
    if not repository:
        raise EncoderError(
            f"open_clip names no hub repository for {weights.tag!r} of {weights.model}; fetch "
            f"{weights.settings.get('url')} and name the file: open_clip:{weights.model}/{weights.tag}=FILE"
        )
    names = (file_name,) if file_name else DEFAULT_FILES
    return find_on_hub(HubWeights(repository, names), name, download_to, download)


def _settings_of_all(name: str, model: str, tags: list[str], path: Path) -> dict[str, Any]:
    """Return the settings that all tags of a model share, empty for a model without tags."""
    found: list[dict[str, Any]] = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    told = [_what_counts(one) for one in found]
    differing = [key for key in (told[0] if told else {}) if any(one[key] != told[0][key] for one in told)]
    if differing:
        raise EncoderError(
            f"encoder {name!r}: the tags of {model} differ in {', '.join(differing)}, so the file alone does not "
            f"tell how it was trained; name its tag: open_clip:{model}/TAG={path} (TAG: {', '.join(tags)})"
        )
    return found[0] if found else {}


def _what_counts(settings: dict[str, Any]) -> dict[str, Any]:
    preprocessing = merge_preprocess_dict(PreprocessCfg(), settings)
    pixels = {key: preprocessing[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    return {**pixels, "quick_gelu": bool(settings.get("quick_gelu"))}
