"""Loads an encoder of the open_clip family; what its name means is read in `open_clip_names`.

The encoder itself is in `open_clip_encoder`, what texts need from the hub in `open_clip_text`.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors import SafetensorError

from flowkit.encoders.names import form_with_file
from flowkit.encoders.open_clip_encoder import OpenClipEncoder
from flowkit.encoders.open_clip_names import named_weights
from flowkit.encoders.open_clip_text import demand_text_tower, load_tokenizer
from flowkit.errors import EncoderError


def load_open_clip(
    name: str, weights: Path | None, *, precision: str, device: str, compile: bool = False
) -> OpenClipEncoder:
    """Return the encoder of a name with the weights of a file: `weights`, else the one in the name.

    The tag, or what all tags of the model share, tells preprocessing and activation. No weights are downloaded
    here. Raises `EncoderError` for what `named_weights` refuses, for a missing or foreign file, and for a text
    tower whose config is not to be had.
    """
    named = named_weights(name)
    file = weights or named.path
    if file is None:
        raise EncoderError(
            f"weights of encoder {name!r} are not named; fetch them first, or name {form_with_file(name)}"
        )
    if not file.is_file():
        raise EncoderError(f"weights file {file} of encoder {name!r} does not exist; fetch it first")
    demand_text_tower(name, named.model)
    try:
        model = open_clip.create_model(named.model, pretrained=str(file), precision="fp32", device="cpu")
    except (RuntimeError, ValueError, OSError, SafetensorError) as fault:
        raise EncoderError(f"{file} does not fit encoder {name!r}: {str(fault).splitlines()[0]}") from fault
    base = PreprocessCfg(size=model.visual.image_size)
    return OpenClipEncoder(
        name,
        model,
        preprocessing=PreprocessCfg(**merge_preprocess_dict(base, named.settings)),
        tokenizer=lambda: load_tokenizer(name, named.model),
        precision=precision,
        device=device,
        compile=compile,
    )
