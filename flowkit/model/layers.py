"""Small layers of the transformer: norm, time embedding, modulation, attention, feed-forward.

    rms_norm(x)     = x / sqrt(mean x^2 + eps)
    modulate(x)     = rms_norm(x) (1 + scale) + shift
    swiglu(x)       = W_down (silu(W_gate x) * W_up x)
    time(t)         = MLP(sin and cos of 1000 t at geometric frequencies)

Shapes: B images, T tokens, D model width, N query heads, K key and value heads, H head width, F frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkit.model.rope import RotaryTable

NORM_EPSILON = 1e-6
TIME_SCALE = 1000.0
"""t in [0, 1] is stretched to the range that the frequencies cover; unscaled, most of them would be constant."""
TIME_LONGEST_PERIOD = 10_000.0
TIME_FREQUENCIES = 128


class _RmsNorm(torch.autograd.Function):
    """y = x r with r = (mean x^2 + eps)^(-1/2), and dx = r (dy - y mean(dy y)).

    On a CPU the composite of torch takes more than twice as long, forward and backward together.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        r = mean_square.add_(NORM_EPSILON).rsqrt_()
        y = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (dy,) = gradients
        y, r = ctx.saved_tensors
        along_y = torch.linalg.vecdot(dy, y).unsqueeze(-1).div_(y.shape[-1])
        return torch.addcmul(dy, y, along_y, value=-1).mul_(r)


def rms_norm(x: Tensor) -> Tensor:
    """Divide the last axis by its root mean square; no weight, since a modulation or a layer scale follows."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _RmsNorm.apply(x)
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPSILON)


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Return the normalised `x_BTD` with a shift and scale that depend on time."""
    return rms_norm(x_BTD) * (1 + scale_B1D) + shift_B1D


class TimeEmbedding(nn.Module):
    """Embed times in [0, 1] as vectors of the model's width."""

    frequencies_F: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents_F = torch.arange(TIME_FREQUENCIES, dtype=torch.float64) / TIME_FREQUENCIES
        frequencies_F = torch.exp(-math.log(TIME_LONGEST_PERIOD) * exponents_F)
        self.register_buffer("frequencies_F", frequencies_F.float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        """Return [B, D]."""
        angles_BF = TIME_SCALE * t_B.float()[:, None] * self.frequencies_F
        return self.mlp(torch.cat((angles_BF.cos(), angles_BF.sin()), dim=-1))


class SwiGLU(nn.Module):
    """Gated feed-forward without biases; its matrices are kept apart, each fit for orthogonalised updates."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden_width, bias=False)
        self.up = nn.Linear(width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions on queries and keys.

    `keys_values` and `forward` are separate so that cross-attention can keep the condition's keys and values.
    """

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.groups = heads // kv_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def keys_values(self, x_BTD: Tensor, table: RotaryTable) -> tuple[Tensor, Tensor]:
        """Return rotated keys and values, both [B, K, T, H]."""
        k_BTKH = table.rotate(self.key(x_BTD).unflatten(-1, (-1, self.head_width)))
        v_BTKH = self.value(x_BTD).unflatten(-1, (-1, self.head_width))
        return k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2)

    def forward(self, x_BTD: Tensor, keys_values: tuple[Tensor, Tensor], table: RotaryTable) -> Tensor:
        """Return [B, T, D]. Keys of one image serve all images of the batch."""
        q_BTNH = table.rotate(self.query(x_BTD).unflatten(-1, (-1, self.head_width)))
        k_BKSH, v_BKSH = keys_values
        attended_BNTH = F.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2), k_BKSH, v_BKSH, enable_gqa=self.groups > 1
        )
        return self.output(attended_BNTH.transpose(1, 2).flatten(2))
