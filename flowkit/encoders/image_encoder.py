"""What all families share: pixels in, one forward pass on a device, float32 out.

A family adds `_forward(pixels) -> tokens, pooled`. Arithmetic in fp32 is meant to be fp32: TensorFloat-32, which
cuDNN uses for the patch convolution unless told otherwise, is switched off. With `compile` the batch is filled
up to a multiple of `COMPILED_MULTIPLE` images, so that few shapes are compiled and a batch that lacks a few
images runs the same kernels whatever came before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import nn
from torch.nn import functional as F

from flowkit.encoders.contract import TOKEN_LAYER
from flowkit.encoders.preprocessing import Decoder, Preprocessing
from flowkit.errors import EncoderError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED_MULTIPLE = 32
Forward = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class ImageEncoder(ABC):
    """The image half of a `FrozenEncoder`; families inherit and implement `_forward`."""

    layer = TOKEN_LAYER

    def __init__(
        self,
        name: str,
        *,
        grid: tuple[int, int],
        token_width: int,
        pooled_width: int,
        preprocessing: PreprocessCfg,
        device: str,
        arithmetic: str,
        compile: bool,
    ) -> None:
        """Declare the encoder; `arithmetic` says which numbers the forward pass is computed in."""
        self.name = name
        self.device = torch.device(device)
        self.grid = grid
        self.token_count = grid[0] * grid[1] + 1
        self.token_width, self.pooled_width = token_width, pooled_width
        self.arithmetic = f"{arithmetic}, compiled" if compile else arithmetic
        self._preprocessing = Preprocessing(preprocessing)
        self._run: Forward = _compiled(self._forward) if compile else self._forward

    @property
    def preprocessing(self) -> dict[str, object]:
        """How the exact pixels are made from an image, as JSON values."""
        return self.preprocessing_of("exact")

    def preprocessing_of(self, decoder: Decoder) -> dict[str, object]:
        """How pixels are made from an image, as JSON values."""
        return self._preprocessing.declared(decoder)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels [3, H, W] of an image, exactly as open_clip makes them."""
        return self._preprocessing.exact(image)

    def preprocess_pixels(self, pixels_CHW: torch.Tensor) -> torch.Tensor:
        """Return the pixels [3, H, W] of a decoded image uint8 [3, h, w], the fast way."""
        return self._preprocessing.fast(pixels_CHW)

    @torch.no_grad()
    def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [N, T, D] and pooled [N, P] of one forward pass, float32 on `device`."""
        with self._exact_convolutions():
            tokens_NTD, pooled_NP = self._run(pixels_NCHW.to(self.device, non_blocking=True))
        return tokens_NTD.float(), pooled_NP.float()

    @abstractmethod
    def _forward(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and pooled in any float type; the pixels lie on `device`."""

    @contextmanager
    def _exact_convolutions(self) -> Iterator[None]:
        cudnn = torch.backends.cudnn
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield


def dtype_of(precision: str) -> torch.dtype:
    """Return the number type of a precision; raises `EncoderError` for an unknown one."""
    if precision not in PRECISIONS:
        raise EncoderError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def settle(model: nn.Module, device: torch.device) -> None:
    """Freeze a model and move it; on CUDA the patch convolution gets the layout that its kernels want."""
    model.to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)


def _compiled(forward: Forward) -> Forward:
    kernels = torch.compile(forward, dynamic=False)

    def run(pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(pixels_NCHW)
        filled_NCHW = F.pad(pixels_NCHW, (0, 0, 0, 0, 0, 0, 0, -count % COMPILED_MULTIPLE))
        tokens_NTD, pooled_NP = kernels(filled_NCHW)
        return tokens_NTD[:count], pooled_NP[:count]

    return run
