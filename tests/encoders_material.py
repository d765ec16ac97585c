"""Tiny encoders with random weights: files in the layouts that the published ones have.

The EVA tower is EVA-CLIP-8B with other sizes: same keys, same shapes but for the numbers. Weights are large
enough that every part of a block moves the result.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flowkit.encoders.eva_names import MODELS, EvaConfig, PublishedTower
from flowkit.encoders.weight_files import SHARD_INDEX
from flowkit.encoders.weight_hub import HubWeights

TINY_EVA = EvaConfig(
    image_pixels=28, patch_pixels=7, width=32, layers=2, heads=4, mlp_ratio=5.0, pooled_width=12
)
TINY_EVA_MODEL = "EVA-CLIP-tiny"
TINY_EVA_HUB = HubWeights("flowkit/EVA-CLIP-tiny", ("tiny.pt",))
State = dict[str, torch.Tensor]


def register_tiny_eva(patch: pytest.MonkeyPatch) -> None:
    """Make `eva_clip:EVA-CLIP-tiny` a name for the time of a test."""
    patch.setitem(MODELS, TINY_EVA_MODEL, PublishedTower(TINY_EVA, TINY_EVA_HUB))


def original_eva_weights(config: EvaConfig = TINY_EVA, seed: int = 0) -> State:
    """Return random weights with the names of the published .pt, its text tower beside them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / max(shape[-1], 1) ** 0.5

    width, hidden = config.width, int(config.width * config.mlp_ratio)
    tokens = (config.image_pixels // config.patch_pixels) ** 2 + 1
    state = {
        "visual.cls_token": random(1, 1, width),
        "visual.pos_embed": random(1, tokens, width),
        "visual.patch_embed.proj.weight": random(width, 3, config.patch_pixels, config.patch_pixels),
        "visual.patch_embed.proj.bias": random(width),
        "visual.norm.weight": 1 + random(width),
        "visual.head.weight": random(config.pooled_width, width),
        "text.token_embedding.weight": random(8, 4),
        "text.text_projection": random(4, config.pooled_width),
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(config.layers):
        block = f"visual.blocks.{layer}."
        state |= {
            f"{block}norm1.weight": 1 + random(width),
            f"{block}attn.qkv.weight": random(3 * width, width),
            f"{block}attn.proj.weight": random(width, width),
            f"{block}attn.proj.bias": random(width),
            f"{block}norm2.weight": 1 + random(width),
            f"{block}mlp.fc1.weight": random(hidden, width),
            f"{block}mlp.fc1.bias": random(hidden),
            f"{block}mlp.fc2.weight": random(width, hidden),
            f"{block}mlp.fc2.bias": random(width),
        }
    return state


def hub_eva_weights(original: State) -> State:
    """Return the same weights with the names of the hub's model: q, k and v apart, no leading ones."""
    outside = {
        "visual.cls_token": "vision_model.embeddings.class_embedding",
        "visual.pos_embed": "vision_model.embeddings.position_embedding.weight",
        "visual.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
        "visual.norm.weight": "vision_model.post_layernorm.weight",
        "visual.head.weight": "visual_projection.weight",
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.text_projection": "text_projection.weight",
        "logit_scale": "logit_scale",
    }
    inside = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    state: State = {}
    for key, value in original.items():
        if key in outside:
            state[outside[key]] = value[0] if key == "visual.pos_embed" else value
            continue
        layer, name = key.removeprefix("visual.blocks.").split(".", 1)
        place = f"vision_model.encoder.layers.{layer}."
        if name == "attn.qkv.weight":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                state[f"{place}self_attn.{letter}_proj.weight"] = third.clone()
            continue
        for mine, theirs in inside.items():
            name = name.replace(mine, theirs)
        state[place + name] = value
    state["vision_model.embeddings.class_embedding"] = original["visual.cls_token"].flatten()
    return state


def save_original(folder: Path, state: State) -> Path:
    """Write the one file of the original layout."""
    file = folder / "tiny.pt"
    torch.save(state, file)
    return file


def save_shards(folder: Path, state: State, shards: int = 4) -> Path:
    """Write the folder of the hub's layout; q, k and v of one block may lie in different shards."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, weight_map = sorted(state), {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {key: state[key].clone() for key in keys[number::shards]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / SHARD_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
