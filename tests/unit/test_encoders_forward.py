"""The forward pass around the towers: arithmetic as declared, compiled like eager, at home on its device."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from flowkit.encoders.demo_towers import as_encoder, build_demo_tower
from flowkit.encoders.image_encoder import COMPILED_MULTIPLE
from flowkit.encoders.open_clip_encoder import OpenClipEncoder
from flowkit.encoders.registry import load_encoder

TOWERS = ("demo-eva", "demo-vit")
HAS_COMPILER = shutil.which("g++") is not None and sys.platform == "linux"
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu() - expected).norm() / expected.norm())


def test_fp32_is_fp32_in_the_convolution_too() -> None:
    """cuDNN rounds the inputs of convolutions to 10 bits unless told otherwise, and torch does not tell it."""
    encoder = load_encoder("demo-vit")
    assert isinstance(encoder, OpenClipEncoder)
    seen: list[bool] = []
    encoder._visual.conv1.register_forward_hook(
        lambda layer, given, made: seen.append(torch.backends.cudnn.allow_tf32)
    )
    before = torch.backends.cudnn.allow_tf32
    encoder.encode(_pixels(1))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before, "others keep their setting"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_of_open_clip_towers_is_autocast(precision: str) -> None:
    encoder = load_encoder("demo-vit", precision=precision)
    assert encoder.arithmetic == f"{precision} autocast over fp32 weights"
    found, _ = encoder.encode(_pixels(4))
    exact, _ = load_encoder("demo-vit").encode(_pixels(4))
    assert 0 < _relative(found, exact) < 0.02


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("name", "precision", "bar"), [("demo-eva", "fp32", 1e-5), ("demo-vit", "bf16", 0.02)]
)
def test_compiled_towers_give_the_same_features_from_one_graph(name: str, precision: str, bar: float) -> None:
    """And a batch that lacks images gives the bits of a full one, whatever was compiled before."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder = load_encoder(name, precision=precision, compile=True)
    eager_encoder = load_encoder(name, precision=precision)
    assert encoder.arithmetic == f"{eager_encoder.arithmetic}, compiled"
    pixels_NCHW = _pixels(COMPILED_MULTIPLE)
    full = encoder.encode(pixels_NCHW)
    for mine, eager in zip(full, eager_encoder.encode(pixels_NCHW), strict=True):
        assert mine.shape == eager.shape
        assert _relative(mine, eager) < bar
    for count in (1, 3, COMPILED_MULTIPLE - 1):
        for mine, whole in zip(encoder.encode(pixels_NCHW[:count]), full, strict=True):
            assert torch.equal(mine, whole[:count])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@on_cuda
@pytest.mark.parametrize("name", TOWERS)
def test_results_stay_on_the_device_and_agree_with_the_cpu(name: str) -> None:
    pixels_NCHW = _pixels(8)
    expected = load_encoder(name).encode(pixels_NCHW)
    encoder = load_encoder(name, device="cuda")
    for given in (pixels_NCHW, pixels_NCHW.pin_memory(), pixels_NCHW.cuda()):
        for mine, theirs in zip(encoder.encode(given), expected, strict=True):
            assert mine.device == encoder.device
            assert _relative(mine, theirs) < 1e-5
    assert encoder.encode_text(["a red circle"]).device.type == "cpu"
    assert {value.device.type for value in encoder.head().values()} == {"cpu"}


@on_cuda
def test_the_patch_convolution_has_its_layout() -> None:
    encoder = as_encoder("demo-vit", build_demo_tower("demo-vit"), device="cuda")
    assert encoder._visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)
