"""What every frozen encoder offers to the rest of flowkit.

Tokens are the output of the last block before the final norm, unprojected, CLS first, then patches row by
row. The pooled vector is the projected image embedding of the same forward pass, not normalised. Shape
suffixes: N images, T tokens, D token width, P pooled width, C H W pixels.
"""

from __future__ import annotations

from typing import Protocol

import torch
from PIL import Image

TOKEN_LAYER = "last block, before the final norm"


class FrozenEncoder(Protocol):
    """An image and text encoder whose weights never change; all tensors it returns are float32 on the CPU."""

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
    def preprocessing(self) -> dict[str, object]:
        """How pixels are made from an image, as JSON values; goes into the attributes of every store."""

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels [3, H, W] of an image."""

    def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [N, T, D] and pooled [N, P] of one forward pass."""

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the text embeddings [N, P], not normalised."""

    def head(self) -> dict[str, torch.Tensor]:
        """Return final norm and projection for `flowkit.encoders.head.apply_head`."""
