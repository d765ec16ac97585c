"""The `blip3o` diffusion transformer: f(x, t, condition) -> tokens of the target.

    h  = W_x x + position + condition of the same position (aligned_condition)
    h += post(op(pre(h)))  for op in self-attention, cross-attention (cross_attention), SwiGLU, in every block
    pre(h)  = rms_norm(h) (1 + scale) + shift             post(y) = layer_scale gate rms_norm(y) + shift'
    f  = head(rms_norm(h) (1 + scale) + shift)

shift, scale, gate and shift' are linear in the time embedding. Gates, output shifts and head start at zero, so at
initialisation every block is the identity and f is zero. The head comes from outside and must not limit the rank.

Shapes: B images, T target tokens, S source tokens, C target width, E source width, D model width, K heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowkit.model.adapter import build_adapter
from flowkit.model.layers import Attention, SwiGLU, TimeEmbedding, modulate, rms_norm
from flowkit.model.rope import RotaryTable, grid_angles

ARCHITECTURE = "blip3o"
EMBEDDING_SPREAD = 0.02
LAYER_SCALE = 1.0
SHARES_PER_OPERATION = 4


@dataclass(frozen=True)
class DiTConfig:
    """Everything that fixes the network's shapes. Raises `ValueError` for shapes that do not fit together."""

    architecture: str
    source_tokens: int
    source_width: int
    target_tokens: int
    target_width: int
    grid: tuple[int, int]
    has_cls: bool
    width: int
    depth: int
    heads: int
    kv_heads: int
    ffn_width: int
    adapter_layers: int
    cross_attention: bool
    aligned_condition: bool
    head: str

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if rows * columns + self.has_cls != self.target_tokens:
            raise ValueError(
                f"a {rows} x {columns} grid with{'' if self.has_cls else 'out'} CLS has "
                f"{rows * columns + self.has_cls} tokens, expected {self.target_tokens}; correct grid or has_cls"
            )
        if self.source_tokens != self.target_tokens:
            raise ValueError(
                f"source has {self.source_tokens} tokens, target {self.target_tokens}, expected equal numbers on "
                "one grid; use the same token layout for both"
            )
        if self.width % self.heads or self.heads % self.kv_heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads} do not divide into even head "
                "widths and whole groups; choose another size"
            )
        if not (self.cross_attention or self.aligned_condition):
            raise ValueError(
                "the network would not see its condition; turn on cross_attention or aligned_condition"
            )


@dataclass(frozen=True)
class Condition:
    """A condition encoded once per image: its tokens and, per block, the keys and values of cross-attention."""

    tokens_BSD: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...]


class Operation(nn.Module):
    """The norms, layer scale and residual around one operation of a block."""

    def __init__(self, operation: nn.Module, width: int) -> None:
        super().__init__()
        self.operation = operation
        self.layer_scale_D = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def before(self, h_BTD: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Return the modulated input of the operation."""
        shift_B1D, scale_B1D, _, _ = modulation
        return modulate(h_BTD, shift_B1D, scale_B1D)

    def after(self, h_BTD: Tensor, y_BTD: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Return the stream with the operation's normalised and gated output added."""
        _, _, gate_B1D, shift_B1D = modulation
        return torch.addcmul(h_BTD + shift_B1D, rms_norm(y_BTD), self.layer_scale_D * gate_B1D)


class Block(nn.Module):
    """Self-attention, optional cross-attention and SwiGLU, each modulated by time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads, kv_heads = config.width, config.heads, config.kv_heads
        self.attention = Operation(Attention(width, heads, kv_heads), width)
        self.cross = Operation(Attention(width, heads, kv_heads), width) if config.cross_attention else None
        self.feed_forward = Operation(SwiGLU(width, config.ffn_width), width)
        operations = 3 if config.cross_attention else 2
        self.modulation = _zero_linear(width, SHARES_PER_OPERATION * operations * width)

    def forward(
        self, h_BTD: Tensor, time_BD: Tensor, condition_kv: tuple[Tensor, Tensor] | None, table: RotaryTable
    ) -> Tensor:
        """Return the stream behind this block."""
        shares = self.modulation(time_BD)[:, None].chunk(
            len(self.modulation.weight) // h_BTD.shape[-1], dim=-1
        )
        attention, cross = self.attention, self.cross
        x_BTD = attention.before(h_BTD, shares[:4])
        keys_values = attention.operation.keys_values(x_BTD, table)
        h_BTD = attention.after(h_BTD, attention.operation(x_BTD, keys_values, table), shares[:4])
        if cross is not None:
            x_BTD = cross.before(h_BTD, shares[4:8])
            h_BTD = cross.after(h_BTD, cross.operation(x_BTD, condition_kv, table), shares[4:8])
        x_BTD = self.feed_forward.before(h_BTD, shares[-4:])
        return self.feed_forward.after(h_BTD, self.feed_forward.operation(x_BTD), shares[-4:])


class DiT(nn.Module):
    """The network. Encode the condition once, then evaluate it at as many (x, t) as needed."""

    def __init__(self, config: DiTConfig, head: nn.Module) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.adapter = build_adapter(config.source_width, width, config.adapter_layers)
        self.null_condition_D = nn.Parameter(torch.zeros(width))
        self.input = nn.Linear(config.target_width, width)
        self.position_TD = nn.Parameter(EMBEDDING_SPREAD * torch.randn(config.target_tokens, width))
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.modulation = _zero_linear(width, 2 * width)
        self.head = head
        head_width = width // config.heads
        self.table = RotaryTable(grid_angles(config.grid, has_cls=config.has_cls, head_width=head_width))

    def encode_condition(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Condition:
        """Encode source tokens; images whose `keep_B` is false get the learned null condition instead."""
        tokens_BSD = self.adapter(source_BSE)
        if keep_B is not None:
            tokens_BSD = torch.where(
                keep_B[:, None, None], tokens_BSD, self.null_condition_D.to(tokens_BSD.dtype)
            )
        if not self.config.cross_attention:
            return Condition(tokens_BSD, ())
        normed_BSD = rms_norm(tokens_BSD)
        keys_values = (block.cross.operation.keys_values(normed_BSD, self.table) for block in self.blocks)
        return Condition(tokens_BSD, tuple(keys_values))

    def forward(self, x_BTC: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """Return [B, T, C]. `t_B` may hold one time for all images."""
        h_BTD = self.input(x_BTC) + self.position_TD
        if self.config.aligned_condition:
            h_BTD = h_BTD + condition.tokens_BSD
        time_BD = nn.functional.silu(self.time(t_B))
        for index, block in enumerate(self.blocks):
            keys_values = condition.keys_values[index] if self.config.cross_attention else None
            h_BTD = block(h_BTD, time_BD, keys_values, self.table)
        shift_B1D, scale_B1D = self.modulation(time_BD)[:, None].chunk(2, dim=-1)
        return self.head(modulate(h_BTD, shift_B1D, scale_B1D))

    def hidden_matrices(self) -> dict[str, nn.Parameter]:
        """Return the matrices of the blocks' operations by name: those that an orthogonalised update fits."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith("blocks.") and ".operation." in name and parameter.ndim == 2
        }


def _zero_linear(width: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(width, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
