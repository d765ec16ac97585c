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
from flowkit.encoders.open_clip_names import named_weights
from flowkit.encoders.registry import load_encoder
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


@pytest.mark.parametrize(
    "name", ["demo-resnet", "", "open_clip", "eva_clip", "demo-vit:x", "ViT-L-14/openai"]
)
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(EncoderError, match="expected demo-eva, demo-vit, open_clip:MODEL/TAG, open_clip"):
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


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").write_text("a file with the name of a tag is not its weights")
    with pytest.raises(
        EncoderError, match=r"are not named; fetch them first, or name .*quickgelu/openai=FILE"
    ):
        load_encoder("open_clip:ViT-L-14-quickgelu/openai")
    with pytest.raises(EncoderError, match=r"weights file nowhere\.pt .* does not exist; fetch it first"):
        load_encoder("open_clip:ViT-L-14-quickgelu/openai", Path("nowhere.pt"))


def test_a_file_alone_does_not_tell_how_it_was_trained() -> None:
    """The file of openai has QuickGELU, that of laion2b_s32b_b82k another mean and std, others neither."""
    with pytest.raises(
        EncoderError,
        match=r"tags of ViT-L-14 differ in mean, std, quick_gelu, .* open_clip:ViT-L-14/TAG=x/ViT-L-14-openai\.pt "
        r"\(TAG: openai, laion400m_e31, ",
    ):
        load_encoder("open_clip:ViT-L-14/x/ViT-L-14-openai.pt", Path("anything"))
    with pytest.raises(EncoderError, match="differ in resize_mode, so"):
        load_encoder("open_clip:ViT-H-14-quickgelu/x.pt", Path("anything"))


def test_a_tag_with_a_file_has_the_checks_and_settings_of_the_tag() -> None:
    with pytest.raises(EncoderError, match=r"trained with QuickGELU, the model has GELU"):
        load_encoder("open_clip:ViT-L-14/openai=x.pt", Path("anything"))
    with pytest.raises(EncoderError, match=r"'opneai' is neither a tag of ViT-L-14"):
        load_encoder("open_clip:ViT-L-14/opneai=x.pt", Path("anything"))
    named = named_weights("open_clip:ViT-L-14/laion2b_s32b_b82k=a/x.pt")
    assert named.path == Path("a/x.pt")
    assert named.settings["mean"] == named.settings["std"] == (0.5, 0.5, 0.5)


def test_a_file_alone_has_what_all_tags_share() -> None:
    """Not open_clip's defaults, which are those of OpenAI's weights."""
    assert named_weights("open_clip:ViT-B-16-SigLIP/x.safetensors").settings["mean"] == (0.5, 0.5, 0.5)
    assert named_weights("open_clip:ViT-L-14-quickgelu/x.pt").settings["quick_gelu"]


GREY = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def test_the_bytes_of_a_file_are_read_with_the_settings_of_the_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flowkit-tagged.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path)
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "flowkit-tagged", {"plain": {"url": "x"}, "grey": GREY}
    )
    model = _model()
    file = tmp_path / "mine.safetensors"
    save_file(model.state_dict(), file)
    encoder = load_encoder(f"open_clip:flowkit-tagged/grey={file}")
    assert {key: encoder.preprocessing[key] for key in GREY} == json.loads(json.dumps(GREY))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.encode(pixels)[1], _encoder(model).encode(pixels)[1])
    with pytest.raises(EncoderError, match=r"differ in mean, std, interpolation, resize_mode, so"):
        load_encoder(f"open_clip:flowkit-tagged/{file}")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "flowkit-tagged", {"grey": GREY, "gray": GREY})
    alone = load_encoder(f"open_clip:flowkit-tagged/{file}")
    assert alone.preprocessing == encoder.preprocessing


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
