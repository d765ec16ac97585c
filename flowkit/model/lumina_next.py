"""The `lumina_next` diffusion transformer: the Next-DiT block (Lumina-Next, arXiv 2406.18583) on aligned token grids.

    c  = time(t) + W norm(mean of the condition's tokens)              (s1, g1, s2, g2) = W silu(c), in every block
    h += tanh(g1) rms(Wo [self(x) + tanh(gate_head) cross(x, y)])      x = rms(h) (1 + s1), y = rms(condition)
    h += tanh(g2) rms(SwiGLU(rms(h) (1 + s2)))                         f = head(norm(h) (1 + W silu(c)))

Self- and cross-attention run side by side with the same queries and the same output projection. Queries and keys pass a
LayerNorm over the channels of all heads. Gates and the head, which comes from outside, start at zero, and so does f.

What differs from the paper:
- t is stretched by 1000 before its sinusoids, since most of these are constant for times in [0, 1].
- positions turn on three axes with our own frequencies, as in `blip3o`: views have a place, and grids are small.
- the condition's keys are rotated too: its grid is the target's, so that an offset between the two means something.
- a learned position and the condition token of the same place (aligned_condition) join the input: CLS and the first
  patch have the same angles, and cross-attention alone is slow to learn which token of the condition is its own.
- the condition passes an adapter first, once for all blocks; matrices start as torch starts them, norms follow each.

Shapes: B images, T target tokens, S source tokens, C target width, E source width, D model width, M modulation width,
N query heads, K key and value heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowkit.model.condition import ConditionEncoder
from flowkit.model.config import DiTConfig
from flowkit.model.embedding import TimeEmbedding, TokenEmbedding
from flowkit.model.layers import NORM_EPSILON, KeysValues, RmsNorm, SwiGLU, attend, zero_linear
from flowkit.model.network import Block, BlockStack, DiT
from flowkit.model.rope import RotaryTable, rotary_table

WIDEST_MODULATION = 1024


@dataclass(frozen=True)
class Condition:
    """A condition encoded once per image: its tokens, their summary, and keys and values per block."""

    tokens_BSD: Tensor
    summary_BM: Tensor
    keys_values: tuple[KeysValues | None, ...]


class KeyValueProjection(nn.Module):
    """Normalised, rotated keys, and values."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        kv_width = config.kv_heads * config.head_width
        self.key = nn.Linear(config.width, kv_width, bias=False)
        self.key_norm = nn.LayerNorm(kv_width)
        self.value = nn.Linear(config.width, kv_width, bias=False)

    def forward(self, x_BSD: Tensor, table: RotaryTable) -> KeysValues:
        """Return keys and values, both [B, K, S, H] and of one dtype."""
        k_BSKH = self.key_norm(self.key(x_BSD)).unflatten(-1, (-1, self.head_width))
        v_BSKH = self.value(x_BSD).unflatten(-1, (-1, self.head_width))
        return table.rotate(k_BSKH).to(v_BSKH.dtype).transpose(1, 2), v_BSKH.transpose(1, 2)


class ParallelAttention(nn.Module):
    """Self-attention and, through one gate per head, cross-attention, with shared queries and output."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.head_width = config.head_width
        self.query = nn.Linear(width, width, bias=False)
        self.query_norm = nn.LayerNorm(width)
        self.own = KeyValueProjection(config)
        self.cross = KeyValueProjection(config) if config.cross_attention else None
        self.gate_N = nn.Parameter(torch.zeros(config.heads)) if config.cross_attention else None
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, condition: KeysValues | None, table: RotaryTable) -> Tensor:
        """Return [B, T, D]; `condition` holds the keys and values of cross-attention."""
        own = self.own(x_BTD, table)
        q_BTNH = self.query_norm(self.query(x_BTD)).unflatten(-1, (-1, self.head_width))
        q_BNTH = table.rotate(q_BTNH).to(own[0].dtype).transpose(1, 2)
        attended_BNTH = attend(q_BNTH, own)
        if condition is not None and self.gate_N is not None:
            attended_BNTH = attended_BNTH + self.gate_N.tanh()[:, None, None] * attend(q_BNTH, condition)
        return self.output(attended_BNTH.transpose(1, 2).flatten(2))


class NextBlock(Block):
    """Parallel attention and SwiGLU, each scaled before and gated behind, between two norms."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = ParallelAttention(config)
        self.feed_forward = SwiGLU(width, config.ffn_width)
        self.before_attention, self.after_attention = RmsNorm(width), RmsNorm(width)
        self.before_feed_forward, self.after_feed_forward = RmsNorm(width), RmsNorm(width)
        self.condition_norm = RmsNorm(width) if config.cross_attention else None
        self.modulation = zero_linear(modulation_width(config), 4 * width)

    def keys_values(self, condition_BSD: Tensor, table: RotaryTable) -> KeysValues | None:
        """Return the keys and values of cross-attention."""
        if self.attention.cross is None or self.condition_norm is None:
            return None
        return self.attention.cross(self.condition_norm(condition_BSD), table)

    def forward(
        self, h_BTD: Tensor, modulation_BM: Tensor, condition: KeysValues | None, table: RotaryTable
    ) -> Tensor:
        """Return the stream behind this block; `condition` holds the keys and values of cross-attention."""
        shares = self.modulation(modulation_BM)[:, None].chunk(4, dim=-1)
        scale_attention_B1D, gate_attention_B1D, scale_B1D, gate_B1D = shares
        x_BTD = self.before_attention(h_BTD) * (1 + scale_attention_B1D)
        y_BTD = self.after_attention(self.attention(x_BTD, condition, table))
        h_BTD = torch.addcmul(h_BTD, gate_attention_B1D.tanh(), y_BTD)
        x_BTD = self.before_feed_forward(h_BTD) * (1 + scale_B1D)
        y_BTD = self.after_feed_forward(self.feed_forward(x_BTD))
        return torch.addcmul(h_BTD, gate_B1D.tanh(), y_BTD)

    def matrices(self) -> list[nn.Parameter]:
        """Return the weight matrices of attention and feed-forward."""
        parts = (*self.attention.parameters(), *self.feed_forward.parameters())
        return [parameter for parameter in parts if parameter.ndim == 2]


class LuminaNextDiT(DiT):
    """Next blocks modulated by time and by a summary of the condition."""

    def __init__(self, config: DiTConfig, head: nn.Module) -> None:
        super().__init__(config)
        width = config.width
        self.condition = ConditionEncoder(config)
        self.summary = nn.Sequential(nn.LayerNorm(width), zero_linear(width, modulation_width(config)))
        self.embedding = TokenEmbedding(config)
        self.time = TimeEmbedding(modulation_width(config))
        self.blocks = BlockStack(NextBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON, elementwise_affine=False)
        self.modulation = zero_linear(modulation_width(config), width)
        self.head = head
        self.table = rotary_table(config)

    def encode_condition(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Condition:
        """Encode source tokens; images whose `keep_B` is false get the learned null condition instead."""
        tokens_BSD = self.condition(source_BSE, keep_B)
        summary_BM = self.summary(tokens_BSD.mean(dim=1))
        return Condition(tokens_BSD, summary_BM, self.blocks.keys_values(tokens_BSD, self.table))

    def forward(self, x_BTC: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """Return [B, T, C]. `t_B` may hold one time for all images."""
        h_BTD = self.embedding(x_BTC, condition.tokens_BSD)
        modulation_BM = nn.functional.silu(self.time(t_B) + condition.summary_BM)
        h_BTD = self.blocks(h_BTD, modulation_BM, condition.keys_values, self.table)
        scale_B1D = self.modulation(modulation_BM)[:, None]
        return self.head(self.norm(h_BTD) * (1 + scale_B1D))


def modulation_width(config: DiTConfig) -> int:
    """Return the width of the vector that scales and gates the blocks, kept narrow in wide networks."""
    return min(config.width, WIDEST_MODULATION)
