"""The CLIP towers are those of Hugging Face transformers on the same random weights, and the real ones load."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.head import apply_head
from flowkit.encoders.registry import load_encoder

State = dict[str, torch.Tensor]
TINY = CLIPVisionConfig(
    hidden_size=48,
    intermediate_size=192,
    projection_dim=20,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=28,
    patch_size=7,
)
LARGE = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    projection_dim=768,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
)
BAR = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _reference(config: CLIPVisionConfig, activation: str) -> CLIPVisionModelWithProjection:
    """A model whose every parameter is random; the library itself starts norms and biases as ones and zeros."""
    config.hidden_act = activation
    model = CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator) / max(value.shape[-1], 1) ** 0.5
            value.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return model


def _renamed(theirs: State) -> State:
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


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _tiny(folder: Path, reference: CLIPVisionModelWithProjection, *, quick_gelu: bool) -> FrozenEncoder:
    name = f"flowkit-reference-{quick_gelu}".lower()
    config = {
        "embed_dim": TINY.projection_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 28, "layers": 3, "width": 48, "head_width": 16, "patch_size": 7},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    weights = folder / "weights.safetensors"
    with_text = open_clip.create_model(name).state_dict()
    save_file({**with_text, **_renamed(reference.state_dict())}, weights)
    return load_encoder(f"open_clip:{name}/{weights}")


@pytest.mark.parametrize(("activation", "quick_gelu"), [("quick_gelu", True), ("gelu", False)])
def test_tokens_and_pooled_are_those_of_transformers(
    tmp_path: Path, activation: str, quick_gelu: bool
) -> None:
    reference = _reference(TINY, activation)
    pixels_NCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(pixel_values=pixels_NCHW)
    tokens_NTD, pooled_NP = _tiny(tmp_path, reference, quick_gelu=quick_gelu).encode(pixels_NCHW)
    assert _relative(tokens_NTD, expected.last_hidden_state) <= BAR
    assert _relative(pooled_NP, expected.image_embeds) <= BAR


def test_the_other_gelu_would_be_seen(tmp_path: Path) -> None:
    reference = _reference(TINY, "quick_gelu")
    pixels_NCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(pixel_values=pixels_NCHW)
    tokens_NTD, _ = _tiny(tmp_path, reference, quick_gelu=False).encode(pixels_NCHW)
    assert _relative(tokens_NTD, expected.last_hidden_state) > 100 * BAR


def _images() -> list[Image.Image]:
    return [Image.effect_noise((300, 260), sigma).convert("RGB") for sigma in (40, 120)]


def _check_large(encoder: FrozenEncoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels_NCHW = torch.stack([encoder.preprocess(image) for image in _images()])
    assert pixels_NCHW.shape == (2, 3, 224, 224)
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    assert tokens_NTD.shape == (2, 257, 1024)
    assert pooled_NP.shape == (2, 768)
    assert _relative(apply_head(tokens_NTD, encoder.head()), pooled_NP) <= BAR
    return pixels_NCHW, tokens_NTD, pooled_NP


@pytest.mark.slow
def test_clip_l_of_openai_loads_and_equals_transformers(tmp_path: Path) -> None:
    """The real architecture through the real loader: 428 million random parameters."""
    reference = _reference(LARGE, "quick_gelu")
    weights = tmp_path / "open_clip_model.safetensors"
    with_text = open_clip.create_model("ViT-L-14-quickgelu").state_dict()
    save_file({**with_text, **_renamed(reference.state_dict())}, weights)
    del with_text
    encoder = load_encoder("open_clip:ViT-L-14-quickgelu/openai", weights)
    pixels_NCHW, tokens_NTD, pooled_NP = _check_large(encoder)
    with torch.no_grad():
        expected = reference(pixel_values=pixels_NCHW)
    assert _relative(tokens_NTD, expected.last_hidden_state) <= BAR
    assert _relative(pooled_NP, expected.image_embeds) <= BAR
    assert encoder.encode_text(["a red circle"]).shape == (1, 768)


@pytest.mark.slow
def test_eva02_l_loads(tmp_path: Path) -> None:
    weights = tmp_path / "open_clip_model.safetensors"
    model = open_clip.create_model("EVA02-L-14")
    save_file(model.state_dict(), weights)
    encoder = load_encoder("open_clip:EVA02-L-14/merged2b_s4b_b131k", weights)
    pixels_NCHW, _, pooled_NP = _check_large(encoder)
    with torch.no_grad():
        assert _relative(pooled_NP, model.eval().encode_image(pixels_NCHW)) <= BAR
    assert encoder.encode_text(["a red circle"]).shape == (1, 768)
