"""The `blip3o` diffusion transformer: f(x, t, condition) -> tokens of the target.

    h  = W_x x + position + condition of the same position (aligned_condition)
    h += post(op(pre(h)))  for op in self-attention, cross-attention (cross_attention), SwiGLU, in every block
    pre(h)  = rms_norm(h) (1 + scale) + shift             post(y) = layer_scale gate rms_norm(y) + shift'
    f  = head(rms_norm(h) (1 + scale) + shift)

shift, scale, gate and shift' are linear in the time embedding. Gates, output shifts and head start at zero, so at
initialisation every block is the identity and f is zero. The head comes from outside and must not limit the rank.

Shapes: B images, T target tokens, S source tokens, C target width, E source width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flowkit.model.adapter import build_adapter
from flowkit.model.layers import Attention, SwiGLU, TimeEmbedding, modulate, rms_norm
from flowkit.model.rope import RotaryTable, grid_angles

ARCHITECTURE = "blip3o"
EMBEDDING_SPREAD = 0.02
LAYER_SCALE = 1.0
SHARES_PER_BRANCH = 4

KeysValues = tuple[Tensor, Tensor]
Operation = Callable[[Tensor], Tensor]
Shares = tuple[Tensor, ...]
"""shift, scale, gate and output shift of one branch, each [B, 1, D]."""


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
    keys_values: tuple[KeysValues, ...]


class Branch(nn.Module):
    """The norms, modulation, layer scale and residual around one operation of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale_D = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, h_BTD: Tensor, operation: Operation, shares: Shares) -> Tensor:
        """Return the stream `h_BTD` with the output of `operation` added."""
        shift_B1D, scale_B1D, gate_B1D, shift_after_B1D = shares
        y_BTD = operation(modulate(h_BTD, shift_B1D, scale_B1D))
        return torch.addcmul(h_BTD + shift_after_B1D, rms_norm(y_BTD), self.layer_scale_D * gate_B1D)


class Block(nn.Module):
    """Self-attention, optional cross-attention and SwiGLU, each modulated by time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads, kv_heads = config.width, config.heads, config.kv_heads
        self.attention = Attention(width, heads, kv_heads)
        self.cross = Attention(width, heads, kv_heads) if config.cross_attention else None
        self.feed_forward = SwiGLU(width, config.ffn_width)
        branches = 3 if config.cross_attention else 2
        self.branches = nn.ModuleList(Branch(width) for _ in range(branches))
        self.modulation = _zero_linear(width, branches * SHARES_PER_BRANCH * width)

    def forward(
        self, h_BTD: Tensor, time_BD: Tensor, condition: KeysValues | None, table: RotaryTable
    ) -> Tensor:
        """Return the stream behind this block; `condition` holds the keys and values of cross-attention."""

        def attend(x_BTD: Tensor) -> Tensor:
            return self.attention(x_BTD, self.attention.keys_values(x_BTD, table), table)

        operations: list[Operation] = [attend, self.feed_forward]
        if self.cross is not None:
            operations.insert(1, partial(self.cross, keys_values=condition, table=table))
        shares = self.modulation(time_BD)[:, None].chunk(len(operations) * SHARES_PER_BRANCH, dim=-1)
        for branch, operation in zip(self.branches, operations, strict=True):
            mine, shares = shares[:SHARES_PER_BRANCH], shares[SHARES_PER_BRANCH:]
            h_BTD = branch(h_BTD, operation, mine)
        return h_BTD

    def matrices(self) -> list[nn.Parameter]:
        """Return the weight matrices of the operations."""
        parts = (part for part in (self.attention, self.cross, self.feed_forward) if part is not None)
        return [parameter for part in parts for parameter in part.parameters()]


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
        cross = [block.cross for block in self._blocks() if block.cross is not None]
        return Condition(
            tokens_BSD, tuple(attention.keys_values(normed_BSD, self.table) for attention in cross)
        )

    def forward(self, x_BTC: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """Return [B, T, C]. `t_B` may hold one time for all images."""
        h_BTD = self.input(x_BTC) + self.position_TD
        if self.config.aligned_condition:
            h_BTD = h_BTD + condition.tokens_BSD
        time_BD = nn.functional.silu(self.time(t_B))
        for index, block in enumerate(self._blocks()):
            keys_values = condition.keys_values[index] if condition.keys_values else None
            h_BTD = block(h_BTD, time_BD, keys_values, self.table)
        shift_B1D, scale_B1D = self.modulation(time_BD)[:, None].chunk(2, dim=-1)
        return self.head(modulate(h_BTD, shift_B1D, scale_B1D))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the matrices of the blocks' operations: those that an orthogonalised update fits."""
        return [matrix for block in self._blocks() for matrix in block.matrices()]

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def _zero_linear(width: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(width, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
