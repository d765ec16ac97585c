"""Attention of both architectures against loops over images, heads and tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from unit.paired_material import MODEL

from flowkit.model.config import DiTConfig
from flowkit.model.layers import Attention
from flowkit.model.lumina_next import ParallelAttention
from flowkit.model.rope import rotary_table

B, T, N, H = 2, 5, 4, 16
CONFIG = replace(MODEL, width=N * H, heads=N, cross_attention=True)


@pytest.fixture(params=[1, 2, 4])
def config(request: pytest.FixtureRequest) -> DiTConfig:
    return replace(CONFIG, kv_heads=request.param)


def _naive(q_BTD: Tensor, k_BSE: Tensor, v_BSE: Tensor, kv_heads: int) -> Tensor:
    """Return softmax attention [B, T, D], one query of one head at a time."""
    out_BTD = torch.zeros_like(q_BTD)
    for image in range(len(q_BTD)):
        for head in range(N):
            mine = slice(head * H, (head + 1) * H)
            shared = head // (N // kv_heads)
            theirs = slice(shared * H, (shared + 1) * H)
            for token in range(q_BTD.shape[1]):
                logits_S = k_BSE[image, :, theirs] @ q_BTD[image, token, mine] / math.sqrt(H)
                shares_S = (logits_S - logits_S.max()).exp()
                out_BTD[image, token, mine] = shares_S @ v_BSE[image, :, theirs] / shares_S.sum()
    return out_BTD


def _layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return norm.weight * centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() + norm.bias


def _tokens(seed: int) -> Tensor:
    return torch.randn(B, T, N * H, generator=torch.Generator().manual_seed(seed))


def test_grouped_attention_is_the_textbook_one(config: DiTConfig) -> None:
    torch.manual_seed(3)
    table = rotary_table(config)
    attention = Attention(config.width, config.heads, config.kv_heads)
    x, y = _tokens(1), _tokens(2)

    def rotated(projected: Tensor) -> Tensor:
        return table.rotate(projected.unflatten(-1, (-1, H))).flatten(2)

    attended = _naive(
        rotated(attention.query(x)), rotated(attention.key(y)), attention.value(y), config.kv_heads
    )
    found = attention(x, attention.keys_values(y, table), table)
    torch.testing.assert_close(found, attention.output(attended), atol=1e-5, rtol=1e-4)


def test_parallel_attention_is_two_attentions_with_one_query(config: DiTConfig) -> None:
    torch.manual_seed(4)
    table = rotary_table(config)
    attention = ParallelAttention(config)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    x, y = _tokens(1), _tokens(2)
    assert attention.cross is not None
    assert attention.gate_N is not None

    def rotated(projected: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        return table.rotate(_layer_norm(projected, norm).unflatten(-1, (-1, H))).flatten(2)

    q = rotated(attention.query(x), attention.query_norm)
    own, cross = (
        _naive(q, rotated(side.key(seen), side.key_norm), side.value(seen), config.kv_heads)
        for side, seen in ((attention.own, x), (attention.cross, y))
    )
    gates = attention.gate_N.tanh().repeat_interleave(H)
    expected = attention.output(own + gates * cross)
    found = attention(x, attention.cross(y, table), table)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_closed_gates_hide_the_condition() -> None:
    torch.manual_seed(5)
    table = rotary_table(CONFIG)
    attention = ParallelAttention(CONFIG)
    x = _tokens(1)
    assert attention.cross is not None
    seen, other = (attention(x, attention.cross(_tokens(seed), table), table) for seed in (2, 3))
    assert torch.equal(seen, other)


def test_keys_of_one_image_serve_a_batch(config: DiTConfig) -> None:
    torch.manual_seed(6)
    table = rotary_table(config)
    attention = Attention(config.width, config.heads, config.kv_heads)
    x, y = _tokens(1), _tokens(2)[:1]
    shared = attention(x, attention.keys_values(y, table), table)
    repeated = attention(x, attention.keys_values(y.expand(B, -1, -1), table), table)
    torch.testing.assert_close(shared, repeated, atol=1e-6, rtol=1e-5)
