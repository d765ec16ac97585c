"""The open_clip family, `open_clip:<model>/<tag or file>`: which weights a name means, and their loading.

The tag tells preprocessing and activation; a tag that was trained with another GELU than the model's is an
error, where open_clip only warns. The encoder itself is in `open_clip_encoder`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors import SafetensorError

from flowkit.encoders.open_clip_encoder import OpenClipEncoder
from flowkit.encoders.weight_hub import Download, HubWeights, find_on_hub
from flowkit.errors import EncoderError

FAMILY = "open_clip"
DEFAULT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def load_open_clip(
    name: str, weights: Path | None, *, precision: str, device: str, compile: bool = False
) -> OpenClipEncoder:
    """Return the encoder `open_clip:<model>/<tag or file>` with the weights of a file.

    The tag tells preprocessing and activation; instead of a tag a file may be named, then the model's
    defaults hold. Nothing is downloaded here. Raises `EncoderError` for an unknown model or tag, a missing
    file, or a tag that was trained with another GELU than the model's.
    """
    model_name, tag, tag_settings = _parsed(name)
    file = weights or Path(tag)
    if not file.is_file():
        raise EncoderError(f"weights file {file} of encoder {name!r} does not exist; fetch it first")
    try:
        model = open_clip.create_model(model_name, pretrained=str(file), precision="fp32", device="cpu")
    except (RuntimeError, ValueError, OSError, SafetensorError) as fault:
        raise EncoderError(f"{file} does not fit encoder {name!r}: {str(fault).splitlines()[0]}") from fault
    base = PreprocessCfg(size=model.visual.image_size)
    return OpenClipEncoder(
        name,
        model,
        preprocessing=PreprocessCfg(**merge_preprocess_dict(base, tag_settings)),
        tokenizer=lambda: open_clip.get_tokenizer(model_name),
        precision=precision,
        device=device,
        compile=compile,
    )


def find_weights(name: str, download_to: Path | None, download: Download | None) -> Path:
    """Return the file in the name, or that of a tag from the cache, else downloaded.

    Raises `EncoderError` for an unknown model or tag, and if the file is neither there nor to be had.
    """
    model_name, tag, tag_settings = _parsed(name)
    if not tag_settings:
        if not Path(tag).is_file():
            raise EncoderError(f"weights file {tag} of encoder {name!r} does not exist; correct the path")
        return Path(tag)
    repository, _, file_name = tag_settings.get("hf_hub", "").rpartition("/")
    if not repository:
        raise EncoderError(
            f"open_clip names no hub repository for {tag!r} of {model_name}; fetch {tag_settings.get('url')} "
            f"and name the file: open_clip:{model_name}/FILE"
        )
    names = (file_name,) if file_name else DEFAULT_FILES
    return find_on_hub(HubWeights(repository, names), name, download_to, download)


def _parsed(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return model, tag or file, and the tag's settings (empty for a file) after checking that they match."""
    model_name, _, tag = name.removeprefix(f"{FAMILY}:").partition("/")
    config = open_clip.get_model_config(model_name)
    if config is None:
        near = get_close_matches(model_name, open_clip.list_models(), n=3, cutoff=0.5)
        raise EncoderError(
            f"open_clip has no model {model_name!r} (encoder {name!r}); near: {', '.join(near)}"
        )
    tag_settings = open_clip.get_pretrained_cfg(model_name, tag) or {}
    if not tag_settings and Path(tag).suffix not in WEIGHTS_SUFFIXES:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
        raise EncoderError(
            f"{tag!r} is neither a tag of {model_name} ({known}) nor a file "
            f"({', '.join(WEIGHTS_SUFFIXES)}) (encoder {name!r})"
        )
    activation = {True: "QuickGELU", False: "GELU"}
    model_gelu, tag_gelu = (bool(one.get("quick_gelu")) for one in (config, tag_settings or config))
    if model_gelu != tag_gelu:
        raise EncoderError(
            f"encoder {name!r}: the weights were trained with {activation[tag_gelu]}, the model has "
            f"{activation[model_gelu]}; name the twin model (QuickGELU models end in -quickgelu)"
        )
    return model_name, tag, tag_settings
