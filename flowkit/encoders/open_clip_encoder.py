"""An open_clip model with CLS pooling as a `FrozenEncoder`; knows nothing of names, files and downloads.

One `forward_intermediates` call gives the last block's tokens before the final norm and the projected
embedding. Half precision means autocast around fp32 weights. Models that pool in another way (attention
pooling, mean) are refused: their embedding is no function of the CLS token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from torch import nn

from flowkit.encoders.image_encoder import ImageEncoder, dtype_of, settle
from flowkit.errors import EncoderError

TEXT_BATCH = 512
Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class _Anatomy:
    """Where a vision tower keeps what the contract needs."""

    grid: tuple[int, int]
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor | None
    norm_epsilon: float
    projection_PD: torch.Tensor
    projection_bias: torch.Tensor | None


class OpenClipEncoder(ImageEncoder):
    """A `FrozenEncoder` around an open_clip model in evaluation mode."""

    def __init__(
        self,
        name: str,
        model: CLIP | CustomTextCLIP,
        *,
        preprocessing: PreprocessCfg,
        tokenizer: Callable[[], Tokenizer],
        precision: str = "fp32",
        device: str = "cpu",
        compile: bool = False,
    ) -> None:
        """Wrap `model`; `tokenizer` is called once, at the first text. Raises `EncoderError` if it cannot."""
        self._dtype = dtype_of(precision)
        is_exact = self._dtype == torch.float32
        settle(model, torch.device(device))
        self._model = model
        self._visual: Any = model.visual
        self._anatomy = _anatomy(name, self._visual)
        self._make_tokenizer = tokenizer
        self._tokenizer: Tokenizer | None = None
        pooled_width, token_width = self._anatomy.projection_PD.shape
        super().__init__(
            name,
            grid=self._anatomy.grid,
            token_width=token_width,
            pooled_width=pooled_width,
            preprocessing=preprocessing,
            device=device,
            arithmetic=precision if is_exact else f"{precision} autocast over fp32 weights",
            compile=compile,
        )

    def _forward(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self._precision():
            found = self._visual.forward_intermediates(
                pixels_NCHW,
                indices=1,
                normalize_intermediates=False,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
        patches_NTD = found["image_intermediates"][-1]
        cls_N1D = found["image_intermediates_prefix"][-1]
        return torch.cat([cls_N1D, patches_NTD], dim=1), found["image_features"]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the text embeddings [N, P], not normalised, float32 on the CPU."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        found = [torch.empty(0, self.pooled_width)]
        for start in range(0, len(texts), TEXT_BATCH):
            ids = self._tokenizer(texts[start : start + TEXT_BATCH]).to(self.device)
            with self._precision():
                found.append(self._model.encode_text(ids).float().cpu())
        return torch.cat(found)

    def head(self) -> dict[str, torch.Tensor]:
        """Return final norm and projection for `apply_head`, float32 on the CPU."""
        parts = self._anatomy
        tensors = {
            "norm.weight": parts.norm_weight,
            "norm.bias": parts.norm_bias,
            "projection.weight": parts.projection_PD,
            "projection.bias": parts.projection_bias,
        }
        head = {
            key: value.detach().float().cpu().contiguous()
            for key, value in tensors.items()
            if value is not None
        }
        return head | {"norm.epsilon": torch.tensor([parts.norm_epsilon], dtype=torch.float64)}

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)


def _anatomy(name: str, visual: Any) -> _Anatomy:
    if isinstance(visual, VisionTransformer) and visual.pool_type == "tok" and visual.attn_pool is None:
        if visual.proj is not None:
            norm, weight_PD, bias, grid = visual.ln_post, visual.proj.T, None, visual.grid_size
            return _Anatomy(tuple(grid), norm.weight, norm.bias, norm.eps, weight_PD, bias)
    elif isinstance(visual, TimmModel) and _pools_cls(visual.trunk):
        trunk: Any = visual.trunk
        linear: Any = trunk.head if isinstance(trunk.head, nn.Linear) else visual.head.proj
        norm, grid = trunk.norm, trunk.patch_embed.grid_size
        bias = getattr(norm, "bias", None)
        return _Anatomy(tuple(grid), norm.weight, bias, norm.eps, linear.weight, linear.bias)
    raise EncoderError(
        f"encoder {name!r}: its {type(visual).__name__} does not project the normed CLS token; "
        "expected a model with CLS pooling and one prefix token"
    )


def _pools_cls(trunk: nn.Module) -> bool:
    return (
        getattr(trunk, "global_pool", None) == "token"
        and getattr(trunk, "num_prefix_tokens", 0) == 1
        and isinstance(getattr(trunk, "fc_norm", None), nn.Identity)
        and not isinstance(getattr(trunk, "norm", None), nn.Identity)
    )
