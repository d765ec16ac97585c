"""EVA-CLIP-8B, `eva_clip:EVA-CLIP-8B` or `eva_clip:EVA-CLIP-8B/<path>`: timm's Eva class with published weights.

Pre-norm ViT: RMSNorm (statistics in fp32), joint q, k, v without bias, plain GELU, learned positions, class
token; embedding = final norm of the class token times a projection without bias. A path is the published .pt
or a folder of the hub's shards. In half precision the weights themselves are bf16 or fp16 (15 GB instead of
30), so this is not autocast over fp32 weights. There is no text tower.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import PreprocessCfg
from timm.models.eva import Eva
from torch import nn

from flowkit.encoders.eva_names import EvaConfig, named_tower
from flowkit.encoders.eva_weights import load_eva_weights
from flowkit.encoders.image_encoder import ImageEncoder, dtype_of, settle
from flowkit.encoders.weight_files import weight_files
from flowkit.errors import EncoderError
from flowkit.progress import logger

NORM_EPSILON = 1e-6


class EvaClipEncoder(ImageEncoder):
    """A `FrozenEncoder` around an Eva tower in evaluation mode; its weights are all of one number type."""

    def __init__(self, name: str, tower: Any, *, device: str = "cpu", compile: bool = False) -> None:
        """Wrap `tower`, made by `build_eva`; the arithmetic is that of its weights."""
        settle(tower, torch.device(device))
        self._tower = tower
        self._dtype: torch.dtype = tower.head.weight.dtype
        pooled_width, token_width = tower.head.weight.shape
        super().__init__(
            name,
            grid=tuple(tower.patch_embed.grid_size),
            token_width=token_width,
            pooled_width=pooled_width,
            preprocessing=PreprocessCfg(size=tower.patch_embed.img_size[0]),
            device=device,
            arithmetic="fp32"
            if self._dtype == torch.float32
            else f"{self._dtype} weights".removeprefix("torch."),
            compile=compile,
        )

    def _forward(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed_NTD, blocks = self._tower.forward_intermediates(
            pixels_NCHW.to(self._dtype), indices=1, return_prefix_tokens=True, output_fmt="NLC"
        )
        patches_NTD, cls_N1D = blocks[-1]
        return torch.cat([cls_N1D, patches_NTD], dim=1), self._tower.forward_head(normed_NTD)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Raise `EncoderError`: the text tower is not loaded."""
        raise EncoderError(
            f"encoder {self.name!r} has no text tower; as the target of a translation take an open_clip encoder"
        )

    def head(self) -> dict[str, torch.Tensor]:
        """Return final norm and projection for `apply_head`, float32 on the CPU."""
        return {
            "norm.weight": self._tower.norm.weight.detach().float().cpu().contiguous(),
            "norm.epsilon": torch.tensor([NORM_EPSILON], dtype=torch.float64),
            "projection.weight": self._tower.head.weight.detach().float().cpu().contiguous(),
        }


def build_eva(config: EvaConfig, *, device: str = "meta") -> nn.Module:
    """Return an untrained tower; on the meta device it takes no memory and waits for its weights.

    The norm is torch's, with statistics in fp32 whatever the tokens are: in fp16 squares overflow from 256 on.
    """
    tower = Eva(
        img_size=config.image_pixels,
        patch_size=config.patch_pixels,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=False,
        use_abs_pos_emb=True,
        use_rot_pos_emb=False,
        norm_layer=partial(nn.RMSNorm, eps=NORM_EPSILON),
        global_pool="token",
        num_classes=0,
        device=device,
    )
    tower.head = nn.Linear(config.width, config.pooled_width, bias=False, device=device)
    return tower


def load_eva_clip(
    name: str, weights: Path | None, *, precision: str, device: str, compile: bool = False
) -> EvaClipEncoder:
    """Return the encoder with the weights of a file or a folder of shards; nothing is downloaded here.

    Raises `EncoderError` for an unknown model, missing or damaged files, and weights of another tower.
    """
    published, path = named_tower(name)
    dtype = dtype_of(precision)
    if weights is None and path is None:
        raise EncoderError(
            f"weights of encoder {name!r} are not named; fetch them first, or name {name}/PATH"
        )
    tower = build_eva(published.config)
    files = weight_files(weights or path or Path())
    left_out = load_eva_weights(tower, files, dtype=dtype, device=device)
    logger.info("encoder=%s files=%d dtype=%s left_out=%d", name, len(files), precision, left_out)
    return EvaClipEncoder(name, tower, device=device, compile=compile)
