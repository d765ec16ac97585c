"""Small layers of the transformer: norm, modulation, attention, feed-forward.

    rms_norm(x)     = x / sqrt(mean x^2 + eps)
    modulate(x)     = rms_norm(x) (1 + scale) + shift
    swiglu(x)       = W_down (silu(W_gate x) * W_up x)
    attend(q, k, v) = softmax(q k' / sqrt(H)) v, several query heads to one key and value head

Shapes: B images, T tokens, S tokens attended to, D model width, N query heads, K key and value heads, H head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkit.model.rope import RotaryTable

NORM_EPSILON = 1e-6

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention, both [B, K, S, H]."""


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
    """Divide the last axis by its root mean square."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _RmsNorm.apply(x)
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPSILON)


class RmsNorm(nn.Module):
    """`rms_norm` with a learned weight per channel, for where no modulation or layer scale follows at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight_D = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised over its last axis."""
        return rms_norm(x) * self.weight_D


def zero_linear(width: int, outputs: int) -> nn.Linear:
    """Return a linear layer that gives zero until it is trained."""
    linear = nn.Linear(width, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def attend(q_BNTH: Tensor, keys_values: KeysValues) -> Tensor:
    """Return [B, N, T, H]. Keys of one image serve all images of the batch."""
    k_BKSH, v_BKSH = keys_values
    grouped = q_BNTH.shape[1] != k_BKSH.shape[1]
    return F.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, enable_gqa=grouped)


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Return the normalised `x_BTD` with a shift and scale that depend on time."""
    return rms_norm(x_BTD) * (1 + scale_B1D) + shift_B1D


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
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def keys_values(self, x_BTD: Tensor, table: RotaryTable) -> KeysValues:
        """Return rotated keys and values, both [B, K, T, H]."""
        k_BTKH = table.rotate(self.key(x_BTD).unflatten(-1, (-1, self.head_width)))
        v_BTKH = self.value(x_BTD).unflatten(-1, (-1, self.head_width))
        return k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2)

    def forward(self, x_BTD: Tensor, keys_values: KeysValues, table: RotaryTable) -> Tensor:
        """Return [B, T, D]."""
        q_BTNH = table.rotate(self.query(x_BTD).unflatten(-1, (-1, self.head_width)))
        attended_BNTH = attend(q_BTNH.transpose(1, 2), keys_values)
        return self.output(attended_BNTH.transpose(1, 2).flatten(2))
