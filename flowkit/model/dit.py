"""The `blip3o` diffusion transformer: f(x, t, condition) -> tokens of the target.

    h  = embedding of x and, position by position, of the condition (aligned_condition)
    h += post(op(pre(h)))  for op in self-attention, cross-attention (cross_attention), SwiGLU, in every block
    pre(h)  = rms_norm(h) (1 + scale) + shift             post(y) = layer_scale gate rms_norm(y) + shift'
    f  = head(rms_norm(h) (1 + scale) + shift)

shift, scale, gate and shift' are linear in the time embedding. Gates, output shifts and head start at zero, so at
initialisation every block is the identity and f is zero. The head comes from outside and must not limit the rank.

What differs from the block as earlier published:
- layer scale and a zero gate act behind the last norm; before it, the norm undid the scale and no branch was closed.
- one norm on each side of an operation, weighted by the modulation, which earlier normalised a second time.
- the learned position table is added to the input and so trained; beside rotary positions it was kept, never read.

Shapes: B images, T target tokens, S source tokens, C target width, E source width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flowkit.model.condition import ConditionEncoder
from flowkit.model.config import DiTConfig
from flowkit.model.embedding import TimeEmbedding, TokenEmbedding
from flowkit.model.layers import Attention, KeysValues, SwiGLU, modulate, rms_norm, zero_linear
from flowkit.model.network import Block, BlockStack, DiT
from flowkit.model.rope import RotaryTable, rotary_table

LAYER_SCALE = 1.0
SHARES_PER_BRANCH = 4

Operation = Callable[[Tensor], Tensor]
Shares = tuple[Tensor, ...]
"""shift, scale, gate and output shift of one branch, each [B, 1, D]."""


@dataclass(frozen=True)
class Condition:
    """A condition encoded once per image: its tokens and, per block, the keys and values of cross-attention."""

    tokens_BSD: Tensor
    keys_values: tuple[KeysValues | None, ...]


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


class SandwichBlock(Block):
    """Self-attention, optional cross-attention and SwiGLU, each between two norms and modulated by time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads, kv_heads = config.width, config.heads, config.kv_heads
        self.attention = Attention(width, heads, kv_heads)
        self.cross = Attention(width, heads, kv_heads) if config.cross_attention else None
        self.feed_forward = SwiGLU(width, config.ffn_width)
        branches = 3 if config.cross_attention else 2
        self.branches = nn.ModuleList(Branch(width) for _ in range(branches))
        self.modulation = zero_linear(width, branches * SHARES_PER_BRANCH * width)

    def keys_values(self, condition_BSD: Tensor, table: RotaryTable) -> KeysValues | None:
        """Return rotated keys and values of the normalised condition."""
        return None if self.cross is None else self.cross.keys_values(condition_BSD, table)

    def forward(
        self, h_BTD: Tensor, modulation_BM: Tensor, condition: KeysValues | None, table: RotaryTable
    ) -> Tensor:
        """Return the stream behind this block; `condition` holds the keys and values of cross-attention."""

        def attend_to_itself(x_BTD: Tensor) -> Tensor:
            return self.attention(x_BTD, self.attention.keys_values(x_BTD, table), table)

        operations: list[Operation] = [attend_to_itself, self.feed_forward]
        if self.cross is not None:
            operations.insert(1, partial(self.cross, keys_values=condition, table=table))
        shares = self.modulation(modulation_BM)[:, None].chunk(len(operations) * SHARES_PER_BRANCH, dim=-1)
        for branch, operation in zip(self.branches, operations, strict=True):
            mine, shares = shares[:SHARES_PER_BRANCH], shares[SHARES_PER_BRANCH:]
            h_BTD = branch(h_BTD, operation, mine)
        return h_BTD

    def matrices(self) -> list[nn.Parameter]:
        """Return the weight matrices of the operations."""
        parts = (part for part in (self.attention, self.cross, self.feed_forward) if part is not None)
        return [parameter for part in parts for parameter in part.parameters()]


class Blip3oDiT(DiT):
    """Sandwich blocks modulated by time, with the condition beside the noisy tokens and in cross-attention."""

    def __init__(self, config: DiTConfig, head: nn.Module) -> None:
        super().__init__(config)
        width = config.width
        self.condition = ConditionEncoder(config)
        self.embedding = TokenEmbedding(config)
        self.time = TimeEmbedding(width)
        self.blocks = BlockStack(SandwichBlock(config) for _ in range(config.depth))
        self.modulation = zero_linear(width, 2 * width)
        self.head = head
        self.table = rotary_table(config)

    def encode_condition(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Condition:
        """Encode source tokens; images whose `keep_B` is false get the learned null condition instead."""
        tokens_BSD = self.condition(source_BSE, keep_B)
        return Condition(tokens_BSD, self.blocks.keys_values(rms_norm(tokens_BSD), self.table))

    def forward(self, x_BTC: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """Return [B, T, C]. `t_B` may hold one time for all images."""
        h_BTD = self.embedding(x_BTC, condition.tokens_BSD)
        time_BD = nn.functional.silu(self.time(t_B))
        h_BTD = self.blocks(h_BTD, time_BD, condition.keys_values, self.table)
        shift_B1D, scale_B1D = self.modulation(time_BD)[:, None].chunk(2, dim=-1)
        return self.head(modulate(h_BTD, shift_B1D, scale_B1D))
