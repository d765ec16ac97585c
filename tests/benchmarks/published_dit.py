"""The diffusion transformer as earlier published: a performance peer, written down from its description.

    h  = W x_t + b                                        c = adapter(source), its keys and values: anew at each call
    h += adaln(rms(layer_scale op(adaln(rms(h)))))        op: self-attention, cross-attention, SwiGLU; in every block
    v  = W_out adaln(rms(h))                              adaln(y) = rms(y) (1 + scale(t)) + shift(t)

Attention multiplies, takes the softmax and multiplies again, on keys and values repeated for each head; the tables of
its positions are made at each call. At base size it has 227,474,014 parameters, of which the position table is not
used. It stands here for its cost, so weights keep torch's initial spread.

Shapes: B images, T tokens, C target width, E source width, D model width, N heads, K key and value heads, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 128
LONGEST_PERIOD = 10_000.0
ADAPTER_DROPOUT = 0.1
LAYER_SCALE = 0.1
SUB_LAYERS = 3


@dataclass(frozen=True)
class PublishedConfig:
    """Shapes of the model; the defaults are its base size. `grid` holds the rows and columns of the tokens."""

    source_width: int = 4096
    target_width: int = 1024
    grid: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int = 4
    ffn_width: int = 2048
    adapter_layers: int = 6

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class RmsNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) with a weight, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised over its last axis."""
        x_float = x.float()
        normed = x_float * torch.rsqrt(x_float.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed.type_as(x) * self.weight


class AdaLN(nn.Module):
    """A norm with shift and scale that are linear in the time embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RmsNorm(width)
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x_BTD: Tensor, time_BD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        shift_BD, scale_BD = self.linear(F.silu(time_BD)).chunk(2, dim=-1)
        return self.norm(x_BTD) * (1 + scale_BD.unsqueeze(1)) + shift_BD.unsqueeze(1)


class TimeEmbedding(nn.Module):
    """Embed times in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        """Return [B, D]."""
        exponents_F = torch.arange(TIME_FREQUENCIES, device=t_B.device) / TIME_FREQUENCIES
        angles_BF = t_B.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponents_F)
        return self.mlp(torch.cat((angles_BF.cos(), angles_BF.sin()), dim=-1))


class Adapter(nn.Module):
    """An MLP that narrows step by step, beside a linear shortcut behind a sigmoid gate."""

    def __init__(self, source_width: int, width: int, layers: int) -> None:
        super().__init__()
        step = (width - source_width) / layers
        widths = [int(source_width + step * layer) for layer in range(layers + 1)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Dropout(ADAPTER_DROPOUT))
                for a, b in pairwise(widths)
            )
        )
        self.residual = nn.Linear(source_width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, source_BTE: Tensor) -> Tensor:
        """Return [B, T, D]."""
        y_BTD = self.layers(source_BTE)
        return y_BTD + torch.sigmoid(self.gate(y_BTD)) * self.residual(source_BTE)


def rotary_table(grid: tuple[int, int], head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, each [T, H]: height, width and, on half of the channels, depth, which is always 0."""
    rows, columns = grid
    axis = head_width // 4
    frequencies = 1 / LONGEST_PERIOD ** (torch.arange(axis, device=device) / axis)
    places = torch.arange(rows * columns, device=device)
    height = (places // columns)[:, None] * frequencies
    breadth = (places % columns)[:, None] * frequencies
    depth = torch.zeros(rows * columns, head_width - 2 * axis, device=device)
    angles_TH = torch.cat((height, breadth, depth), dim=-1)
    return angles_TH.cos(), angles_TH.sin()


def turned(x_BNTH: Tensor, cosine_TH: Tensor, sine_TH: Tensor) -> Tensor:
    """Return `x_BNTH` with positions, pairing channel i with i + H / 2."""
    first, second = x_BNTH.chunk(2, dim=-1)
    return x_BNTH * cosine_TH + torch.cat((-second, first), dim=-1) * sine_TH


class Attention(nn.Module):
    """Grouped-query attention; queries and keys get positions where both come from the same tokens."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        kv_width = config.kv_heads * config.head_width
        self.config = config
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, kv_width, bias=False)
        self.value = nn.Linear(config.width, kv_width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, source_BSD: Tensor, *, positions: bool) -> Tensor:
        """Return [B, T, D]; keys and values come from `source_BSD`."""
        config = self.config
        q_BNTH, k_BKSH, v_BKSH = (
            linear(tokens).unflatten(-1, (-1, config.head_width)).transpose(1, 2)
            for linear, tokens in ((self.query, x_BTD), (self.key, source_BSD), (self.value, source_BSD))
        )
        if positions:
            table = rotary_table(config.grid, config.head_width, x_BTD.device)
            q_BNTH, k_BKSH = turned(q_BNTH, *table).type_as(q_BNTH), turned(k_BKSH, *table).type_as(k_BKSH)
        groups = config.heads // config.kv_heads
        k_BNSH, v_BNSH = k_BKSH.repeat_interleave(groups, dim=1), v_BKSH.repeat_interleave(groups, dim=1)
        logits_BNTS = q_BNTH @ k_BNSH.transpose(-2, -1) / math.sqrt(config.head_width)
        attended_BNTH = logits_BNTS.softmax(dim=-1) @ v_BNSH
        return self.output(attended_BNTH.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward without biases."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden_width, bias=False)
        self.up = nn.Linear(width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class SubLayer(nn.Module):
    """What surrounds one operation: two norms with AdaLN, layer scale, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_before, self.norm_after = RmsNorm(width), RmsNorm(width)
        self.modulation_before, self.modulation_after = AdaLN(width), AdaLN(width)
        self.layer_scale_D = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, h_BTD: Tensor, time_BD: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the stream with the operation's output added."""
        y_BTD = self.layer_scale_D * operation(self.modulation_before(self.norm_before(h_BTD), time_BD))
        return h_BTD + self.modulation_after(self.norm_after(y_BTD), time_BD)


class Block(nn.Module):
    """Self-attention, cross-attention, SwiGLU."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.attention, self.cross = Attention(config), Attention(config)
        self.feed_forward = SwiGLU(config.width, config.ffn_width)
        self.sub_layers = nn.ModuleList(SubLayer(config.width) for _ in range(SUB_LAYERS))

    def forward(self, h_BTD: Tensor, time_BD: Tensor, condition_BSD: Tensor) -> Tensor:
        """Return the stream behind this block."""
        operations: list[Callable[[Tensor], Tensor]] = [
            lambda x_BTD: self.attention(x_BTD, x_BTD, positions=True),
            lambda x_BTD: self.cross(x_BTD, condition_BSD, positions=False),
            self.feed_forward,
        ]
        for sub_layer, operation in zip(self.sub_layers, operations, strict=True):
            h_BTD = sub_layer(h_BTD, time_BD, operation)
        return h_BTD


class PublishedDiT(nn.Module):
    """The whole network: f(x_t, t, source) -> velocity."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        rows, columns = config.grid
        self.position_TD = nn.Parameter(torch.zeros(rows * columns, config.width))
        """Counted and not used: positions come from the rotary tables."""
        self.input = nn.Linear(config.target_width, config.width)
        self.time = TimeEmbedding(config.width)
        self.adapter = Adapter(config.source_width, config.width, config.adapter_layers)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RmsNorm(config.width)
        self.modulation = AdaLN(config.width)
        self.output = nn.Linear(config.width, config.target_width)

    def forward(self, x_BTC: Tensor, t_B: Tensor, source_BTE: Tensor) -> Tensor:
        """Return [B, T, C]."""
        h_BTD, time_BD, condition_BTD = self.input(x_BTC), self.time(t_B), self.adapter(source_BTE)
        for block in self.blocks:
            h_BTD = block(h_BTD, time_BD, condition_BTD)
        return self.output(self.modulation(self.norm(h_BTD), time_BD))
