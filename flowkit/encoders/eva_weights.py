"""Weights of an EVA-CLIP vision tower from both public layouts, read tensor by tensor into timm's Eva class.

original   one .pt: `visual.` + the names of timm's Eva; the text tower beside it as `text.`, `logit_scale`
hub        shards of a Hugging Face model: `vision_model.`, `visual_projection.`, with q, k and v apart; the
           text tower as `text_model.`, `text_projection.`, `logit_scale`

Files are mapped, opened as plain tensors only, and copied one tensor at a time into the wanted type on the
wanted device, so memory holds the model once. Every tensor must be known and of its shape: text towers are
known and left out, anything else is an error. No code from outside is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from flowkit.errors import EncoderError

TEXT_TOWERS = ("text.", "text_model.", "text_projection.", "logit_scale")
ABSENT_BIASES = ("visual.head.bias", "visual_projection.bias")
POSITION_IDS = "vision_model.embeddings.position_ids"
LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
OUTSIDE_LAYERS = {
    "vision_model.embeddings.class_embedding": "cls_token",
    "vision_model.embeddings.position_embedding.weight": "pos_embed",
    "vision_model.embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "vision_model.post_layernorm.weight": "norm.weight",
    "visual_projection.weight": "head.weight",
}
INSIDE_LAYERS = {
    "layer_norm1.weight": "norm1.weight",
    "layer_norm2.weight": "norm2.weight",
    "self_attn.out_proj.weight": "attn.proj.weight",
    "self_attn.out_proj.bias": "attn.proj.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
THIRDS = {"self_attn.q_proj.weight": 0, "self_attn.k_proj.weight": 1, "self_attn.v_proj.weight": 2}


@dataclass(frozen=True)
class _Place:
    """A tensor of the tower, or one of its thirds: q, k or v of the joint projection."""

    key: str
    third: int | None = None


def load_eva_weights(tower: nn.Module, files: list[Path], *, dtype: torch.dtype, device: str) -> int:
    """Give `tower`, built on the meta device, the weights in `files`, as `dtype` on `device`.

    Returns how many tensors were left out because no vision tower has them. Raises `EncoderError` that names
    the file for damage, foreign content, unknown or missing tensors, other shapes, and for files that hold a
    text tower only.
    """
    shapes = {key: value.shape for key, value in tower.state_dict().items()}
    loaded: dict[str, torch.Tensor] = {}
    filled: set[_Place] = set()
    left_out = 0
    for file in files:
        for key, value in _tensors(file):
            if _is_left_out(file, key, value):
                left_out += 1
                continue
            place = _place_of(key)
            if place is None or place.key not in shapes:
                raise EncoderError(
                    f"{file} has the unknown tensor {key}; expected the names of the published .pt (visual.*) "
                    "or of the hub's shards (vision_model.*)"
                )
            is_whole = place.third is None
            if place in filled or _Place(place.key) in filled or (is_whole and place.key in loaded):
                raise EncoderError(f"{file}: {key} is there twice; expected one layout and every tensor once")
            filled.add(place)
            if place.key not in loaded:
                loaded[place.key] = torch.empty(shapes[place.key], dtype=dtype, device=device)
            _write(file, key, value, loaded[place.key], place)
    _demand_all(files, shapes.keys(), filled, left_out)
    tower.load_state_dict(loaded, strict=True, assign=True)
    return left_out


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and tensors; they are pages of the mapped file until somebody copies them."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise EncoderError(f"weights file {file} does not exist; fetch it first") from None
    except UnpicklingError:
        raise EncoderError(
            f"{file} holds more than tensors; it is not opened, because that would run its code"
        ) from None
    except (RuntimeError, OSError, ValueError, EOFError) as fault:
        reason = str(fault).partition("\n")[0]
        raise EncoderError(f"weights file {file} is damaged ({reason}); fetch it again") from None
    if not isinstance(content, dict) or not all(isinstance(one, torch.Tensor) for one in content.values()):
        raise EncoderError(
            f"{file} is not a flat table of tensors; expected the published weights as they are"
        )
    for key in list(content):
        yield str(key), content.pop(key)


def _is_left_out(file: Path, key: str, value: torch.Tensor) -> bool:
    """Tell whether a tensor is known and not needed; what must hold for that is checked."""
    if key in ABSENT_BIASES and value.count_nonzero():
        raise EncoderError(
            f"{file}: {key} is not zero, but the projection of this tower has no bias; other weights?"
        )
    if key == POSITION_IDS and not torch.equal(value.flatten(), torch.arange(value.numel())):
        raise EncoderError(f"{file}: {key} are not 0, 1, 2, ...; other weights?")
    return key.startswith(TEXT_TOWERS) or key in ABSENT_BIASES or key == POSITION_IDS


def _place_of(key: str) -> _Place | None:
    """Return where a tensor of either layout goes, or None if its name is unknown."""
    if key.startswith("visual."):
        return _Place(key.removeprefix("visual."))
    if key in OUTSIDE_LAYERS:
        return _Place(OUTSIDE_LAYERS[key])
    match = LAYER.fullmatch(key)
    if match and match[2] in THIRDS:
        return _Place(f"blocks.{match[1]}.attn.qkv.weight", THIRDS[match[2]])
    if match and match[2] in INSIDE_LAYERS:
        return _Place(f"blocks.{match[1]}.{INSIDE_LAYERS[match[2]]}")
    return None


def _write(file: Path, key: str, value: torch.Tensor, target: torch.Tensor, place: _Place) -> None:
    part = target if place.third is None else target.chunk(3)[place.third]
    if not value.is_floating_point() or _without_ones(value.shape) != _without_ones(part.shape):
        raise EncoderError(
            f"{file}: {key} is {value.dtype} {tuple(value.shape)}, expected floats {tuple(part.shape)}; "
            "weights of another tower?"
        )
    part.copy_(value.reshape(part.shape))


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    """The hub's layout leaves out the leading ones of the class token and the positions."""
    first = next((place for place, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])


def _demand_all(files: list[Path], expected: Any, filled: set[_Place], left_out: int) -> None:
    where = files[0] if len(files) == 1 else files[0].parent
    if not filled:
        raise EncoderError(
            f"{where} holds no vision tower ({left_out} tensors of a text tower); name the weights of both"
        )
    missing = [
        f"{key} (q, k or v)" if thirds else key
        for key in expected
        if _Place(key) not in filled
        and (thirds := sum(_Place(key, third) in filled for third in range(3))) < 3
    ]
    if missing:
        raise EncoderError(f"{where} lacks {missing[0]} ({len(missing)} tensors); fetch the weights again")
