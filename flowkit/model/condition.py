"""The condition's tokens at the width of the model, or the learned null condition in their place.

Shapes: B images, S source tokens, E source width, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.model.adapter import build_adapter
from flowkit.model.config import DiTConfig


class ConditionEncoder(nn.Module):
    """The adapter, and one learned token that stands for every token of a dropped condition."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.adapter = build_adapter(config.source_width, config.width, config.adapter_layers)
        self.null_D = nn.Parameter(torch.zeros(config.width))

    def forward(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Tensor:
        """Return [B, S, D]; images whose `keep_B` is false get the null condition."""
        tokens_BSD = self.adapter(source_BSE)
        if keep_B is None:
            return tokens_BSD
        return torch.where(keep_B[:, None, None], tokens_BSD, self.null_D.to(tokens_BSD.dtype))
