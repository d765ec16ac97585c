"""What every frozen encoder offers to the rest of flowkit.

Tokens are the output of the last block before the final norm, unprojected, CLS first, then patches row by
row. The pooled vector is the projected image embedding of the same forward pass, not normalised. Shape
suffixes: N images, T tokens, D token width, P pooled width, C H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image

if TYPE_CHECKING:  # the contract itself needs no open_clip
    from flowkit.encoders.preprocessing import Decoder

TOKEN_LAYER = "last block, before the final norm"


class FrozenEncoder(Protocol):
    """An image encoder, mostly with a text tower, whose weights never change."""

    @property
    def name(self) -> str:
        """Name in the registry, for instance `demo-eva`."""

    @property
    def token_count(self) -> int:
        """T, with the CLS token."""

    @property
    def token_width(self) -> int:
        """D."""

    @property
    def pooled_width(self) -> int:
        """P."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; rows x columns + 1 = T."""

    @property
    def layer(self) -> str:
        """Where the tokens are taken."""

    @property
    def arithmetic(self) -> str:
        """Which numbers `encode` computes in, for instance `fp32`; goes into the attributes of every store."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie and `encode` computes."""

    @property
    def preprocessing(self) -> dict[str, object]:
        """What `preprocessing_of("exact")` returns."""

    def preprocessing_of(self, decoder: Decoder) -> dict[str, object]:
        """How pixels are made from an image, as JSON values; goes into the attributes of every store."""

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels [3, H, W], float32 on the CPU, of an image: the exact way."""

    def preprocess_pixels(self, pixels_CHW: torch.Tensor) -> torch.Tensor:
        """Return the pixels [3, H, W], float32 on the CPU, of a decoded RGB image uint8 [3, h, w]: the fast way."""

    def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [N, T, D] and pooled [N, P] of one forward pass, float32 on `device`.

        The pixels may lie anywhere; a pinned batch is copied without waiting, so it must not change before the
        result is read.
        """

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the text embeddings [N, P], not normalised, float32 on the CPU.

        Raises `EncoderError` if the encoder has no text tower.
        """

    def head(self) -> dict[str, torch.Tensor]:
        """Return final norm and projection for `flowkit.encoders.head.apply_head`, float32 on the CPU."""
