"""The CLIP towers are those of Hugging Face transformers on the same random weights, and the real ones load."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from reference_material import random_reference, renamed, same_tower
from safetensors.torch import save_file
from transformers import CLIPVisionConfig

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.head import apply_head
from flowkit.encoders.registry import load_encoder

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


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("activation", "quick_gelu"), [("quick_gelu", True), ("gelu", False)])
def test_tokens_and_pooled_are_those_of_transformers(
    tmp_path: Path, activation: str, quick_gelu: bool
) -> None:
    reference = random_reference(TINY, activation)
    pixels_NCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(pixel_values=pixels_NCHW)
    tokens_NTD, pooled_NP = same_tower(tmp_path, reference, quick_gelu=quick_gelu).encode(pixels_NCHW)
    assert _relative(tokens_NTD, expected.last_hidden_state) <= BAR
    assert _relative(pooled_NP, expected.image_embeds) <= BAR


def test_the_other_gelu_would_be_seen(tmp_path: Path) -> None:
    reference = random_reference(TINY, "quick_gelu")
    pixels_NCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(pixel_values=pixels_NCHW)
    tokens_NTD, _ = same_tower(tmp_path, reference, quick_gelu=False).encode(pixels_NCHW)
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
    reference = random_reference(LARGE, "quick_gelu")
    weights = tmp_path / "open_clip_model.safetensors"
    with_text = open_clip.create_model("ViT-L-14-quickgelu").state_dict()
    save_file({**with_text, **renamed(reference.state_dict())}, weights)
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
