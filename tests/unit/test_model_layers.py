"""Layers of the transformer against references written here."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from flowkit.model.adapter import build_adapter, layer_widths
from flowkit.model.layers import Attention, TimeEmbedding, rms_norm
from flowkit.model.rope import RotaryTable, grid_angles, split_pairs

B, T, N, H = 2, 10, 4, 16
GRID = (3, 3)


@pytest.fixture
def table() -> RotaryTable:
    return RotaryTable(grid_angles(GRID, has_cls=True, head_width=H))


def test_rms_norm_and_its_gradient_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(B, T, 32, generator=generator)).requires_grad_()
    dy = torch.randn(B, T, 32, generator=generator)
    expected = F.rms_norm(x, (32,), eps=1e-6)
    torch.testing.assert_close(rms_norm(x), expected)
    (ours,) = torch.autograd.grad(rms_norm(x), x, dy)
    (theirs,) = torch.autograd.grad(expected, x, dy)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_rotation_keeps_norms_and_leaves_cls_alone(table: RotaryTable) -> None:
    x = torch.randn(B, T, N, H, generator=torch.Generator().manual_seed(1))
    rotated = table.rotate(x)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[:, 0], x[:, 0])
    assert not torch.allclose(rotated[:, 2:], x[:, 2:])


def test_logits_depend_on_the_offset_of_two_patches_alone(table: RotaryTable) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, H, generator=generator).expand(2, 1, T, 1, H)
    logits = torch.einsum("btnh,bsnh->ts", table.rotate(q), table.rotate(k))[1:, 1:]
    patches = [(row, column) for row in range(3) for column in range(3)]
    by_offset: dict[tuple[int, int], list[float]] = {}
    for i, (row, column) in enumerate(patches):
        for j, (other_row, other_column) in enumerate(patches):
            by_offset.setdefault((row - other_row, column - other_column), []).append(float(logits[i, j]))
    assert all(max(values) - min(values) < 1e-4 for values in by_offset.values())
    means = [values[0] for values in by_offset.values()]
    assert len({round(mean, 4) for mean in means}) == len(means), "every offset has its own logit"


def test_three_axes_share_the_pairs_and_a_view_turns_depth_alone() -> None:
    assert split_pairs(8) == (2, 3, 3)
    assert sum(split_pairs(32)) == 32
    here = grid_angles(GRID, has_cls=False, head_width=H)
    there = grid_angles(GRID, has_cls=False, head_width=H, view=1)
    depth, _, _ = split_pairs(H // 2)
    assert (there[:, :depth] > here[:, :depth]).all()
    torch.testing.assert_close(there[:, depth:], here[:, depth:])


def test_heads_too_narrow_for_three_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channel pairs"):
        grid_angles(GRID, has_cls=True, head_width=4)


def test_grouped_attention_is_the_textbook_one(table: RotaryTable) -> None:
    torch.manual_seed(3)
    attention = Attention(N * H, heads=N, kv_heads=2)
    x = torch.randn(B, T, N * H)
    q = table.rotate(attention.query(x).view(B, T, N, H))
    k = table.rotate(attention.key(x).view(B, T, 2, H)).repeat_interleave(2, dim=2)
    v = attention.value(x).view(B, T, 2, H).repeat_interleave(2, dim=2)
    weights = (torch.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(H)).softmax(-1)
    expected = attention.output(torch.einsum("bnts,bsnh->btnh", weights, v).reshape(B, T, -1))
    torch.testing.assert_close(
        attention(x, attention.keys_values(x, table), table), expected, atol=1e-5, rtol=1e-4
    )


def test_time_embedding_tells_near_times_apart() -> None:
    torch.manual_seed(4)
    embed = TimeEmbedding(32)
    near = embed(torch.tensor([0.50, 0.51, 0.0, 1.0])).detach()
    distances = torch.pdist(near)
    assert float(distances.min()) > 0.02 * float(near.norm(dim=-1).mean())


def test_adapter_narrows_evenly() -> None:
    assert layer_widths(4096, 768, 6) == [4096, 3541, 2986, 2432, 1877, 1322, 768]
    x = torch.randn(2, 3, 40)
    assert build_adapter(40, 16, 3)(x).shape == (2, 3, 16)
    assert isinstance(build_adapter(40, 16, 0), torch.nn.Linear)
    with pytest.raises(ValueError, match="-1"):
        build_adapter(40, 16, -1)
