"""The contract that every encoder passes: shapes, one forward pass, a head that gives the embedding.

A new encoder is one more row in `ENCODERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from encoders_material import (
    TINY_EVA_MODEL,
    hub_eva_weights,
    original_eva_weights,
    register_tiny_eva,
    save_original,
    save_shards,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from flowkit.encoders.contract import TOKEN_LAYER, FrozenEncoder
from flowkit.encoders.head import apply_head
from flowkit.encoders.registry import load_encoder
from flowkit.errors import EncoderError

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@dataclass(frozen=True)
class Row:
    """How the contract gets an encoder, its blocks, and the model's own embedding of images."""

    load: Callable[[Path], Any]
    blocks: Callable[[Any], Any]
    own_embedding: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]]
    has_text: bool = True


def _open_clip(load: Callable[[Path], Any]) -> Row:
    def blocks(encoder: Any) -> Any:
        visual = encoder._model.visual
        return visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks

    return Row(load, blocks, lambda encoder: encoder._model.encode_image)


def _eva(load: Callable[[Path], Any]) -> Row:
    return Row(load, lambda encoder: encoder._tower.blocks, lambda encoder: encoder._tower, has_text=False)


def _tiny_open_clip(folder: Path) -> FrozenEncoder:
    (folder / "flowkit-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**json.loads(json.dumps(TINY)))
    weights = folder / "tiny.safetensors"
    save_file(model.state_dict(), weights)
    return load_encoder(f"open_clip:flowkit-tiny/{weights}")


def _tiny_eva(folder: Path) -> FrozenEncoder:
    return load_encoder(f"eva_clip:{TINY_EVA_MODEL}", save_original(folder, original_eva_weights()))


def _tiny_eva_of_the_hub(folder: Path) -> FrozenEncoder:
    shards = save_shards(folder, hub_eva_weights(original_eva_weights()))
    return load_encoder(f"eva_clip:{TINY_EVA_MODEL}", shards)


ENCODERS = {
    "demo-eva": _open_clip(lambda folder: load_encoder("demo-eva")),
    "demo-vit": _open_clip(lambda folder: load_encoder("demo-vit")),
    "open_clip": _open_clip(_tiny_open_clip),
    "eva_clip": _eva(_tiny_eva),
    "eva_clip, hub": _eva(_tiny_eva_of_the_hub),
}


@pytest.fixture(scope="module", params=ENCODERS)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    with pytest.MonkeyPatch.context() as patch:
        register_tiny_eva(patch)
        yield ENCODERS[request.param]


@pytest.fixture(scope="module")
def encoder(row: Row, tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    torch.set_num_threads(1)
    return row.load(tmp_path_factory.mktemp("encoder"))


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
        assert tensor.device == encoder.device
        assert not tensor.requires_grad
        assert tensor.isfinite().all()


def test_declarations_are_json(encoder: FrozenEncoder) -> None:
    assert encoder.layer == TOKEN_LAYER
    preprocessing = json.loads(json.dumps(encoder.preprocessing))
    assert preprocessing == encoder.preprocessing
    assert {"size", "interpolation", "mean", "std", "decoder", "version"} <= set(preprocessing)
    assert encoder.preprocessing_of("exact") == preprocessing
    fast = json.loads(json.dumps(encoder.preprocessing_of("fast")))
    assert {name for name in fast if fast[name] != preprocessing[name]} == {"decoder", "version"}
    with pytest.raises(EncoderError, match="decoder 'turbo' is unknown; expected exact or fast"):
        encoder.preprocessing_of("turbo")  # type: ignore[arg-type]
    assert encoder.arithmetic == "fp32"


def test_head_gives_the_pooled_vector(
    encoder: FrozenEncoder, pixels_NCHW: torch.Tensor, tmp_path: Path
) -> None:
    """Also after a round trip through the file that evaluation reads."""
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    save_file(encoder.head(), tmp_path / "head.safetensors")
    predicted_NP = apply_head(tokens_NTD, load_file(tmp_path / "head.safetensors"))
    assert (predicted_NP - pooled_NP).abs().max() <= 1e-5 * pooled_NP.abs().max()


def test_tokens_are_those_before_the_final_norm(
    row: Row, encoder: FrozenEncoder, pixels_NCHW: torch.Tensor
) -> None:
    """Seen by a hook on the last block, not by the call under test."""
    seen: list[torch.Tensor] = []
    handle = row.blocks(encoder)[-1].register_forward_hook(lambda block, given, made: seen.append(made))
    tokens_NTD, _ = encoder.encode(pixels_NCHW)
    handle.remove()
    assert len(seen) == 1, "one forward pass"
    assert torch.equal(tokens_NTD, seen[0])


def test_pooled_is_the_models_own_image_embedding(
    row: Row, encoder: FrozenEncoder, pixels_NCHW: torch.Tensor
) -> None:
    _, pooled_NP = encoder.encode(pixels_NCHW)
    with torch.no_grad():
        own_NP = row.own_embedding(encoder)(pixels_NCHW)
    assert (pooled_NP - own_NP).abs().max() <= 1e-5 * own_NP.abs().max()


def test_encoding_is_repeatable_and_by_image(encoder: FrozenEncoder, pixels_NCHW: torch.Tensor) -> None:
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    again_NTD, again_NP = encoder.encode(pixels_NCHW)
    assert torch.equal(tokens_NTD, again_NTD)
    assert torch.equal(pooled_NP, again_NP)
    alone_NTD, _ = encoder.encode(pixels_NCHW[1:2])
    assert torch.allclose(alone_NTD[0], tokens_NTD[1], atol=1e-4)
    assert not torch.allclose(tokens_NTD[0], tokens_NTD[1], atol=1e-2), "different images, different tokens"


def test_text_embeddings_live_in_the_pooled_space(row: Row, encoder: FrozenEncoder) -> None:
    texts = ["a red circle", "a blue square", "a red circle"]
    if not row.has_text:
        with pytest.raises(EncoderError, match="has no text tower"):
            encoder.encode_text(texts)
        return
    embeddings = encoder.encode_text(texts)
    assert embeddings.shape == (3, encoder.pooled_width)
    assert torch.equal(embeddings[0], embeddings[2])
    assert not torch.allclose(embeddings[0], embeddings[1])
    assert encoder.encode_text([]).shape == (0, encoder.pooled_width)


SIZES = [(7, 90), (300, 200), (32, 32), (1, 1), (640, 480), (225, 224)]


def test_any_image_size_is_preprocessed_in_both_ways(encoder: FrozenEncoder) -> None:
    shapes = set()
    for size in SIZES:
        image = Image.new("RGB", size)
        shapes |= {encoder.preprocess(image).shape, encoder.preprocess_pixels(_decoded(image)).shape}
    assert len(shapes) == 1
    assert len(shapes.pop()) == 3


@pytest.mark.parametrize("size", [(640, 480), (97, 211), (24, 24)])
def test_fast_pixels_are_near_the_exact_ones(encoder: FrozenEncoder, size: tuple[int, int]) -> None:
    """From the same decoded image at most one grey level apart, and mostly none."""
    image = _scene(*size)
    exact_CHW, fast_CHW = encoder.preprocess(image), encoder.preprocess_pixels(_decoded(image))
    assert fast_CHW.dtype == exact_CHW.dtype
    assert fast_CHW.is_contiguous()
    level = 1 / 255 / min(encoder.preprocessing["std"])  # type: ignore[call-overload]
    apart_CHW = (exact_CHW - fast_CHW).abs()
    assert apart_CHW.max() <= 1.01 * level
    assert apart_CHW.mean() <= 0.25 * level
    assert exact_CHW.std() > 0.3, "a picture that says something"


def test_pixels_of_other_types_are_refused(encoder: FrozenEncoder) -> None:
    for wrong in (
        torch.zeros(3, 32, 32),
        torch.zeros(1, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 9).byte(),
    ):
        with pytest.raises(ValueError, match=r"expected uint8 \[3, h, w\]"):
            encoder.preprocess_pixels(wrong)


def _decoded(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _scene(width: int, height: int) -> Image.Image:
    """Edges, gradients and a little noise, as photographs have them."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 6, height))
    planes = [np.sin(3 * x + y), np.sign(np.sin(5 * x) * np.cos(4 * y)), np.cos(x * y)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(planes, -1) * 100 + 127 + noise, 0, 255).astype(np.uint8))
