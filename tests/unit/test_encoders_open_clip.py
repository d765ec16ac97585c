"""Names, tags and pooling of the open_clip family, without any download."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import save_file

from flowkit.encoders.open_clip_encoder import OpenClipEncoder
from flowkit.encoders.registry import FAMILY_MODULES, encoder_family, load_encoder
from flowkit.errors import EncoderError

CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
}


def _model(**vision: object) -> open_clip.CLIP:
    config = json.loads(json.dumps(CONFIG))
    config["vision_cfg"].update(vision)
    return open_clip.CLIP(**config)


def _encoder(model: open_clip.CLIP, **settings: str) -> OpenClipEncoder:
    return OpenClipEncoder(
        "open_clip:x/y",
        model,
        preprocessing=PreprocessCfg(size=16),
        tokenizer=lambda: lambda texts: torch.ones(len(texts), 8, dtype=torch.long),
        **settings,
    )


def test_families_of_names() -> None:
    assert encoder_family("demo-vit") == "demo-vit"
    assert encoder_family("open_clip:ViT-L-14-quickgelu/openai") == "open_clip"
    assert (
        encoder_family("eva_clip:EVA-CLIP-8B") == encoder_family("eva_clip:EVA-CLIP-8B/a/b.pt") == "eva_clip"
    )
    for module in FAMILY_MODULES.values():
        assert Path(*module.split(".")).with_suffix(".py").as_posix().startswith("flowkit/encoders/")


@pytest.mark.parametrize(
    "name", ["demo-resnet", "", "open_clip", "eva_clip", "demo-vit:x", "ViT-L-14/openai"]
)
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(EncoderError, match="expected demo-eva, demo-vit, open_clip:MODEL/TAG or eva_clip"):
        load_encoder(name)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(EncoderError, match=r"no model 'ViT-L14'.*ViT-L-14"):
        load_encoder("open_clip:ViT-L14/openai")


def test_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(EncoderError, match=r"'opneai' is neither a tag of ViT-L-14 \(openai.*nor a file"):
        load_encoder("open_clip:ViT-L-14/opneai")


def test_other_gelu_is_an_error_not_a_warning() -> None:
    """open_clip only warns and computes other features."""
    with pytest.raises(EncoderError, match=r"trained with QuickGELU, the model has GELU; .*-quickgelu"):
        load_encoder("open_clip:ViT-L-14/openai", Path("anything"))


def test_missing_weights_are_named() -> None:
    with pytest.raises(EncoderError, match=r"weights file nowhere\.pt .* does not exist; fetch it first"):
        load_encoder("open_clip:ViT-L-14-quickgelu/openai", Path("nowhere.pt"))


def test_foreign_weights_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "flowkit-small.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path)
    weights = tmp_path / "other.safetensors"
    save_file(_model(width=32).state_dict(), weights)
    torch.save({}, tmp_path / "pickle.safetensors")
    with pytest.raises(EncoderError, match=r"pickle\.safetensors does not fit encoder"):
        load_encoder(f"open_clip:flowkit-small/{weights}", tmp_path / "pickle.safetensors")
    with pytest.raises(
        EncoderError, match=r"other\.safetensors does not fit encoder 'open_clip:flowkit-small"
    ):
        load_encoder(f"open_clip:flowkit-small/{weights}")


@pytest.mark.parametrize("vision", [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 1}])
def test_other_pooling_is_refused(vision: dict[str, object]) -> None:
    with pytest.raises(EncoderError, match="does not project the normed CLS token"):
        _encoder(_model(**vision))


def test_unknown_precision_lists_the_known() -> None:
    with pytest.raises(EncoderError, match="'fp8' is unknown; expected one of fp32, bf16, fp16"):
        _encoder(_model(), precision="fp8")


def test_half_precision_is_close_and_returns_float32() -> None:
    model = _model()
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact, _ = _encoder(model).encode(pixels)
    half, pooled = _encoder(model, precision="bf16").encode(pixels)
    assert half.dtype == pooled.dtype == torch.float32
    assert not torch.equal(exact, half)
    assert (exact - half).norm() < 0.02 * exact.norm()


def test_preprocessing_is_open_clips_own_for_openai_weights() -> None:
    """The defaults of a model without a tag are those of ViT-L/14: bicubic, shortest edge, its mean."""
    settings = open_clip.get_pretrained_cfg("ViT-L-14-quickgelu", "openai")
    encoder = _encoder(_model())
    assert encoder.preprocessing["interpolation"] == "bicubic"
    assert encoder.preprocessing["resize_mode"] == "shortest"
    assert list(settings["mean"]) == encoder.preprocessing["mean"]
    image = Image.effect_noise((50, 40), 80).convert("RGB")
    expected = open_clip.image_transform(16, is_train=False)(image)
    assert torch.equal(encoder.preprocess(image), expected)
