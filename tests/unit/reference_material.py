"""Random CLIP towers as Hugging Face transformers has them, and the same weights as an open_clip encoder."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.registry import load_encoder

State = dict[str, torch.Tensor]


def random_reference(config: CLIPVisionConfig, activation: str) -> CLIPVisionModelWithProjection:
    """A model whose every parameter is random; the library itself starts norms and biases as ones and zeros."""
    config.hidden_act = activation
    model = CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator) / max(value.shape[-1], 1) ** 0.5
            value.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return model


def renamed(theirs: State) -> State:
    """The same weights with open_clip's names."""
    outside = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    words = {
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "encoder.layers": "transformer.resblocks",
        "self_attn": "attn",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    state: State = {}
    for key, value in theirs.items():
        name = key.removeprefix("vision_model.")
        if name == "visual_projection.weight":
            state["visual.proj"] = value.T.contiguous()
        elif name in outside:
            state[f"visual.{outside[name]}"] = value
        else:
            for mine, other in words.items():
                name = name.replace(mine, other)
            state[f"visual.{name}"] = value
    for key in [key for key in state if ".q_proj." in key]:
        thirds = [state.pop(key.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        state[key.replace(".q_proj.", ".in_proj_")] = torch.cat(thirds)
    return state


def same_tower(
    folder: Path, reference: CLIPVisionModelWithProjection, *, quick_gelu: bool = True
) -> FrozenEncoder:
    """The encoder that flowkit makes of the reference's weights."""
    vision = reference.config
    name = f"flowkit-reference-{vision.hidden_size}-{quick_gelu}".lower()
    config = {
        "embed_dim": vision.projection_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    weights = folder / "weights.safetensors"
    with_text = open_clip.create_model(name).state_dict()
    save_file({**with_text, **renamed(reference.state_dict())}, weights)
    return load_encoder(f"open_clip:{name}/{weights}")
