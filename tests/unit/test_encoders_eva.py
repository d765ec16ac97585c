"""EVA-CLIP towers: equal to a forward pass written here, in both weight layouts, and strict about files."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from encoders_material import (
    TINY_EVA,
    TINY_EVA_MODEL,
    State,
    hub_eva_weights,
    original_eva_weights,
    register_tiny_eva,
    save_original,
    save_shards,
)

from flowkit.encoders import eva_clip
from flowkit.encoders.eva_clip import EvaClipEncoder, build_eva
from flowkit.encoders.eva_names import MODELS
from flowkit.encoders.head import apply_head
from flowkit.encoders.registry import load_encoder
from flowkit.encoders.weight_registry import find_weights, weight_files
from flowkit.errors import EncoderError

NAME = f"eva_clip:{TINY_EVA_MODEL}"
Change = Callable[[State], None]


@pytest.fixture(scope="module", autouse=True)
def _tiny_eva() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        register_tiny_eva(patch)
        yield


@pytest.fixture
def pixels_NCHW() -> torch.Tensor:
    size = TINY_EVA.image_pixels
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def _load(path: Path, precision: str = "fp32") -> EvaClipEncoder:
    encoder = load_encoder(f"{NAME}/{path}", precision=precision)
    assert isinstance(encoder, EvaClipEncoder)
    return encoder


def _rms_norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _expected(state: State, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and pooled from the description of the tower and nothing else, in float64."""
    weight = {key.removeprefix("visual."): value.double() for key, value in state.items()}
    count, heads = len(pixels_NCHW), TINY_EVA.heads
    patch, side = TINY_EVA.patch_pixels, TINY_EVA.image_pixels // TINY_EVA.patch_pixels
    cut = pixels_NCHW.double().reshape(count, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
    patches_NTD = cut.reshape(count, side * side, -1) @ weight["patch_embed.proj.weight"].flatten(1).T
    patches_NTD = patches_NTD + weight["patch_embed.proj.bias"]
    x_NTD = torch.cat([weight["cls_token"].expand(count, 1, -1), patches_NTD], 1) + weight["pos_embed"]
    for layer in range(TINY_EVA.layers):
        part = {
            key.removeprefix(f"blocks.{layer}."): value
            for key, value in weight.items()
            if key.startswith(f"blocks.{layer}.")
        }
        joint = _rms_norm(x_NTD, part["norm1.weight"]) @ part["attn.qkv.weight"].T
        q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in joint.chunk(3, dim=-1))
        seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x_NTD = x_NTD + seen.transpose(1, 2).flatten(2) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        hidden = _rms_norm(x_NTD, part["norm2.weight"]) @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x_NTD = x_NTD + hidden @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
    return x_NTD, _rms_norm(x_NTD[:, 0], weight["norm.weight"]) @ weight["head.weight"].T


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_both_layouts_equal_the_forward_pass_written_here(tmp_path: Path, pixels_NCHW: torch.Tensor) -> None:
    original = original_eva_weights()
    one_file = _load(save_original(tmp_path, original)).encode(pixels_NCHW)
    shards = _load(save_shards(tmp_path / "hub", hub_eva_weights(original))).encode(pixels_NCHW)
    for mine, theirs, expected in zip(one_file, shards, _expected(original, pixels_NCHW), strict=True):
        assert torch.equal(mine, theirs), "both layouts are the same tower"
        assert mine.shape == expected.shape
        assert _relative(mine, expected) <= 1e-6


def test_published_sizes_are_those_of_the_8b_tower() -> None:
    """On the meta device; 7,526,088,704 parameters stand in the tower's model card."""
    tower = build_eva(MODELS["EVA-CLIP-8B"].config)
    assert sum(one.numel() for one in tower.parameters()) == 7_526_088_704
    assert {one.device.type for one in tower.parameters()} == {"meta"}
    assert not list(tower.buffers()), "a buffer would stay without a value"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_means_half_weights(tmp_path: Path, pixels_NCHW: torch.Tensor, precision: str) -> None:
    original = original_eva_weights()
    encoder = _load(save_original(tmp_path, original), precision)
    assert {one.dtype for one in encoder._tower.parameters()} == {eva_clip.dtype_of(precision)}
    assert encoder.arithmetic == {"bf16": "bfloat16 weights", "fp16": "float16 weights"}[precision]
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    assert tokens_NTD.dtype == pooled_NP.dtype == torch.float32
    expected_NTD, expected_NP = _expected(original, pixels_NCHW)
    assert 0 < _relative(tokens_NTD, expected_NTD) < 0.02
    assert _relative(pooled_NP, expected_NP) < 0.02


def test_large_tokens_in_fp16_survive_the_norm(tmp_path: Path, pixels_NCHW: torch.Tensor) -> None:
    """Squares of values beyond 255 overflow fp16; the norm must not be taken there. Real towers have such tokens."""
    original = original_eva_weights()
    for key in ("visual.pos_embed", "visual.cls_token"):
        original[key] *= 3000
    tokens_NTD, pooled_NP = _load(save_original(tmp_path, original), "fp16").encode(pixels_NCHW)
    expected_NTD, expected_NP = _expected(original, pixels_NCHW)
    assert expected_NTD.abs().max() > 1000
    assert _relative(tokens_NTD, expected_NTD) < 0.02
    assert _relative(pooled_NP, expected_NP) < 0.02


def test_head_gives_the_pooled_vector_in_bf16_too(tmp_path: Path, pixels_NCHW: torch.Tensor) -> None:
    encoder = _load(save_original(tmp_path, original_eva_weights()), "bf16")
    tokens_NTD, pooled_NP = encoder.encode(pixels_NCHW)
    assert (apply_head(tokens_NTD, encoder.head()) - pooled_NP).norm() < 0.01 * pooled_NP.norm()


def test_text_is_refused(tmp_path: Path) -> None:
    encoder = _load(save_original(tmp_path, original_eva_weights()))
    with pytest.raises(EncoderError, match=rf"encoder '{NAME}/.*tiny\.pt' has no text tower; .* open_clip"):
        encoder.encode_text(["a red circle"])


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The text tower, a bias of zeros that the hub's class declares, and a buffer of some versions."""
    state = hub_eva_weights(original_eva_weights())
    state["visual_projection.bias"] = torch.zeros(TINY_EVA.pooled_width)
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    with caplog.at_level(logging.INFO, logger="flowkit"):
        _load(save_shards(tmp_path, state))
    assert "files=4 dtype=fp32 left_out=5" in caplog.text


def _drop(key: str) -> Change:
    return lambda state: state.__delitem__(key)


def _put(key: str, value: torch.Tensor) -> Change:
    return lambda state: state.update({key: value})


BAD_STATES = {
    "unknown": (_put("visual.blocks.0.ls1", torch.ones(32)), "unknown tensor visual.blocks.0.ls1"),
    "bare names": (_put("blocks.0.norm1.weight", torch.ones(32)), r"unknown tensor blocks.0.*\(visual\.\*\)"),
    "missing": (_drop("visual.blocks.1.mlp.fc1.bias"), r"lacks blocks.1.mlp.fc1.bias \(1 tensors\)"),
    "deeper": (_put("visual.blocks.2.norm1.weight", torch.ones(32)), "unknown tensor visual.blocks.2.norm1"),
    "shape": (
        _put("visual.norm.weight", torch.ones(33)),
        r"visual.norm.weight is .*\(33,\), expected .*\(32,\)",
    ),
    "transposed": (_put("visual.head.weight", torch.ones(32, 12)), r"\(32, 12\), expected floats \(12, 32\)"),
    "integers": (
        _put("visual.norm.weight", torch.ones(32, dtype=torch.int8)),
        "is torch.int8 .* expected floats",
    ),
    "bias": (_put("visual.head.bias", torch.full((12,), 1e-3)), "visual.head.bias is not zero"),
    "query bias": (_put("visual.blocks.0.attn.q_bias", torch.zeros(32)), "unknown tensor .*q_bias"),
    "both layouts": (_put("vision_model.post_layernorm.weight", torch.ones(32)), "is there twice"),
    "whole and third": (
        _put("vision_model.encoder.layers.0.self_attn.k_proj.weight", torch.ones(32, 32)),
        "k_proj.weight is there twice",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_other_tensors_are_refused(tmp_path: Path, case: str) -> None:
    change, message = BAD_STATES[case]
    state = original_eva_weights()
    change(state)
    with pytest.raises(EncoderError, match=message) as caught:
        _load(save_original(tmp_path, state))
    assert "tiny.pt" in str(caught.value), "the message names the file"


def test_a_third_of_the_joint_projection_is_not_enough(tmp_path: Path) -> None:
    state = hub_eva_weights(original_eva_weights())
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(EncoderError, match=r"lacks blocks.1.attn.qkv.weight \(q, k or v\) \(1 tensors\)"):
        _load(save_shards(tmp_path, state))
    state["vision_model.embeddings.position_ids"] = torch.arange(1, 18)
    with pytest.raises(EncoderError, match="position_ids are not 0, 1, 2"):
        _load(save_shards(tmp_path, state))


def test_a_text_tower_alone_is_said_to_be_one(tmp_path: Path) -> None:
    state = {key: value for key, value in original_eva_weights().items() if not key.startswith("visual.")}
    with pytest.raises(EncoderError, match=r"holds no vision tower \(3 tensors of a text tower\)"):
        _load(save_original(tmp_path, state))


class _Opens:
    """What a hostile file would do: its unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return open, (self.path, "w")


def test_files_that_are_no_plain_tensors_are_not_opened(tmp_path: Path) -> None:
    file, witness = tmp_path / "bad.pt", tmp_path / "ran"
    torch.save({"visual.norm.weight": _Opens(witness)}, file)
    with pytest.raises(EncoderError, match=r"bad\.pt holds more than tensors; it is not opened"):
        _load(file)
    assert not witness.exists()
    for content in (b"", b"no tensors at all", pickle.dumps({"a": 1})):
        file.write_bytes(content)
        with pytest.raises(EncoderError, match=r"bad\.pt (is damaged|holds more|is not)"):
            _load(file)
    whole = save_original(tmp_path, original_eva_weights()).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError, match=r"weights file .*bad\.pt is damaged"):
        _load(file)
    torch.save({"module": original_eva_weights()}, file)
    with pytest.raises(EncoderError, match=r"bad\.pt is not a flat table of tensors"):
        _load(file)


def test_folders_of_shards_are_complete_or_refused(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "hub", hub_eva_weights(original_eva_weights()))
    names = [f"pytorch_model-{number:05d}-of-00004.bin" for number in range(1, 5)]
    assert weight_files(folder) == [folder / name for name in names]
    (folder / names[2]).unlink()
    with pytest.raises(EncoderError, match=r"hub lacks pytorch_model-00003-of-00004\.bin \(1 of 4 shards\)"):
        _load(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(EncoderError, match=r"lacks pytorch_model-00003-of-00004\.bin"):
        weight_files(folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(EncoderError, match="holds no sets of pytorch_model-NNNNN-of-NNNNN"):
        weight_files(folder)
    with pytest.raises(EncoderError, match="nowhere do not exist"):
        weight_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "../b.bin"}}', '{"weight_map": {}}', "[]", "{", "{}"]
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin\.index\.json (names|is not an index)"):
        weight_files(tmp_path)


def test_weights_are_named_found_or_asked_for(tmp_path: Path) -> None:
    file = save_original(tmp_path, original_eva_weights())
    assert find_weights(f"{NAME}/{file}") == file
    assert load_encoder(NAME, file).name == NAME
    with pytest.raises(EncoderError, match=f"weights of encoder '{NAME}' are not named; .*{NAME}/PATH"):
        load_encoder(NAME)
    with pytest.raises(EncoderError, match="nowhere do not exist"):
        find_weights(f"{NAME}/{tmp_path / 'nowhere'}")
    with pytest.raises(EncoderError, match=r"eva_clip has no model 'EVA-CLIP-18B'.*expected EVA-CLIP-8B"):
        find_weights("eva_clip:EVA-CLIP-18B")
    with pytest.raises(EncoderError, match="precision 'fp8' is unknown"):
        load_encoder(NAME, file, precision="fp8")


MEASURE = """
import sys, threading, time, torch
from pathlib import Path
from flowkit.encoders.eva_clip import EvaConfig, build_eva
from flowkit.encoders.eva_names import MODELS
from flowkit.encoders.eva_weights import load_eva_weights
config = EvaConfig(image_pixels=28, patch_pixels=14, width=1024, layers=6, heads=8, mlp_ratio=5.0, pooled_width=64)

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
tower = build_eva(config)
load_eva_weights(tower, [Path(sys.argv[1])], dtype=getattr(torch, sys.argv[2]), device="cpu")
done.set()
thread.join()
print(peak[0] - before, sum(one.numel() * one.element_size() for one in tower.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_holds_the_model_once(tmp_path: Path, dtype: str) -> None:
    """Of a file of 337 MB; pages of the mapped file are the system's and can be taken back at any time."""
    config = eva_clip.EvaConfig(28, 14, 1024, 6, 8, 5.0, 64)
    file = save_original(tmp_path, original_eva_weights(config))
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file), dtype], capture_output=True, text=True, check=True
    )
    taken, model = map(int, answer.stdout.split())
    assert model > (150e6 if dtype == "bfloat16" else 300e6)
    assert taken < 1.25 * model
