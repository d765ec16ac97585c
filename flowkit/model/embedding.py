"""What goes into the blocks: embeddings of the noisy tokens and of time.

    tokens(x)  = W x + position + view + condition of the same position (aligned_condition)
    time(t)    = MLP(cos and sin of 1000 t at geometric frequencies)

A place has the same position in all views, and what tells these apart starts at zero: what is learned of a place in one
view holds in the others. Shapes: B images, V views, T tokens of all views, C target width, D width of the
embedding, F frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowkit.model.config import DiTConfig

POSITION_SPREAD = 0.02
TIME_SCALE = 1000.0
"""t in [0, 1] is stretched to the range that the frequencies cover; unscaled, most of them would be constant."""
TIME_LONGEST_PERIOD = 10_000.0
TIME_FREQUENCIES = 128


class TokenEmbedding(nn.Module):
    """Embed the noisy target tokens, each with its position and the condition token of that position."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.aligned_condition = config.aligned_condition
        self.input = nn.Linear(config.target_width, config.width)
        of_view = config.target_tokens // config.views
        # its name is that of checkpoints: where there are several views, T is that of one
        self.position_TD = nn.Parameter(POSITION_SPREAD * torch.randn(of_view, config.width))
        self.view_V1D = nn.Parameter(torch.zeros(config.views, 1, config.width)) if config.views > 1 else None

    def forward(self, x_BTC: Tensor, condition_BTD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        h_BTD = self.input(x_BTC) + self._places()
        return h_BTD + condition_BTD if self.aligned_condition else h_BTD

    def _places(self) -> Tensor:
        """Return what is added to the tokens of all views, [T, D]."""
        if self.view_V1D is None:
            return self.position_TD
        return (self.position_TD + self.view_V1D).flatten(0, 1)


class TimeEmbedding(nn.Module):
    """Embed times in [0, 1] as vectors of a given width."""

    frequencies_F: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents_F = torch.arange(TIME_FREQUENCIES, dtype=torch.float64) / TIME_FREQUENCIES
        frequencies_F = torch.exp(-math.log(TIME_LONGEST_PERIOD) * exponents_F)
        self.register_buffer("frequencies_F", frequencies_F.float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        """Return [B, D]."""
        angles_BF = TIME_SCALE * t_B.to(self.frequencies_F.dtype)[:, None] * self.frequencies_F
        return self.mlp(torch.cat((angles_BF.cos(), angles_BF.sin()), dim=-1))
