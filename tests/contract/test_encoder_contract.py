"""The contract that every encoder passes: shapes, one forward pass, a head that gives the embedding.

A new encoder is one more row in `ENCODERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flowkit.encoders.contract import TOKEN_LAYER, FrozenEncoder
from flowkit.encoders.head import apply_head
from flowkit.encoders.registry import load_encoder

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def _demo(name: str) -> Callable[[Path], FrozenEncoder]:
    return lambda folder: load_encoder(name)


def _tiny_open_clip(folder: Path) -> FrozenEncoder:
    (folder / "flowkit-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**json.loads(json.dumps(TINY)))
    weights = folder / "tiny.safetensors"
    save_file(model.state_dict(), weights)
    return load_encoder(f"open_clip:flowkit-tiny/{weights}")


ENCODERS = {
    "demo-eva": _demo("demo-eva"),
    "demo-vit": _demo("demo-vit"),
    "open_clip": _tiny_open_clip,
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    torch.set_num_threads(1)
    return ENCODERS[request.param](tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def pixels_NCHW(encoder: FrozenEncoder) -> torch.Tensor:
    images = [Image.effect_noise((40, 30), sigma).convert("RGB") for sigma in (20, 60, 120)]
    return torch.stack([encoder.preprocess(image) for image in images])


def test_shapes_are_as_declared(encoder: FrozenEncoder, pixels_NCHW: torch.Tensor) -> None:
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    assert tokens_NTD.shape == (3, encoder.token_count, encoder.token_width)
    assert pooled_NP.shape == (3, encoder.pooled_width)
    assert encoder.grid[0] * encoder.grid[1] + 1 == encoder.token_count
    for tensor in (tokens_NTD, pooled_NP):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert tensor.isfinite().all()


def test_declarations_are_json(encoder: FrozenEncoder) -> None:
    assert encoder.layer == TOKEN_LAYER
    preprocessing = json.loads(json.dumps(encoder.preprocessing))
    assert preprocessing == encoder.preprocessing
    assert {"size", "interpolation", "mean", "std", "decoder", "version"} <= set(preprocessing)


def test_head_gives_the_pooled_vector(
    encoder: FrozenEncoder, pixels_NCHW: torch.Tensor, tmp_path: Path
) -> None:
    """Also after a round trip through the file that evaluation reads."""
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    save_file(encoder.head(), tmp_path / "head.safetensors")
    predicted_NP = apply_head(tokens_NTD, load_file(tmp_path / "head.safetensors"))
    assert (predicted_NP - pooled_NP).abs().max() <= 1e-5 * pooled_NP.abs().max()


def test_tokens_are_those_before_the_final_norm(encoder: FrozenEncoder, pixels_NCHW: torch.Tensor) -> None:
    """Seen by a hook on the last block, not by the call under test."""
    visual = encoder._model.visual  # type: ignore[attr-defined]
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    seen: list[torch.Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda block, given, made: seen.append(made))
    tokens_NTD, _ = encoder.encode(pixels_NCHW)
    handle.remove()
    assert len(seen) == 1, "one forward pass"
    assert torch.equal(tokens_NTD, seen[0])


def test_pooled_is_the_models_own_image_embedding(encoder: FrozenEncoder, pixels_NCHW: torch.Tensor) -> None:
    _, pooled_NP = encoder.encode(pixels_NCHW)
    with torch.no_grad():
        own_NP = encoder._model.encode_image(pixels_NCHW)  # type: ignore[attr-defined]
    assert (pooled_NP - own_NP).abs().max() <= 1e-5 * own_NP.abs().max()


def test_encoding_is_repeatable_and_by_image(encoder: FrozenEncoder, pixels_NCHW: torch.Tensor) -> None:
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    again_NTD, again_NP = encoder.encode(pixels_NCHW)
    assert torch.equal(tokens_NTD, again_NTD)
    assert torch.equal(pooled_NP, again_NP)
    alone_NTD, _ = encoder.encode(pixels_NCHW[1:2])
    assert torch.allclose(alone_NTD[0], tokens_NTD[1], atol=1e-4)
    assert not torch.allclose(tokens_NTD[0], tokens_NTD[1], atol=1e-2), "different images, different tokens"


def test_text_embeddings_live_in_the_pooled_space(encoder: FrozenEncoder) -> None:
    texts = ["a red circle", "a blue square", "a red circle"]
    embeddings = encoder.encode_text(texts)
    assert embeddings.shape == (3, encoder.pooled_width)
    assert torch.equal(embeddings[0], embeddings[2])
    assert not torch.allclose(embeddings[0], embeddings[1])
    assert encoder.encode_text([]).shape == (0, encoder.pooled_width)


def test_any_image_size_is_preprocessed(encoder: FrozenEncoder) -> None:
    shapes = {encoder.preprocess(Image.new("RGB", size)).shape for size in [(7, 90), (300, 200), (32, 32)]}
    assert len(shapes) == 1
