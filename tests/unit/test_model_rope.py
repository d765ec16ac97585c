"""Rotary positions: a true rotation, whose logits know offsets alone, on three axes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.paired_material import MODEL

from flowkit.model.embedding import TokenEmbedding
from flowkit.model.rope import RotaryTable, grid_angles, rotary_table, split_pairs

ROWS, COLUMNS, VIEWS, H = 5, 4, 3, 16
PATCHES = ROWS * COLUMNS
TOKENS = VIEWS * (PATCHES + 1)
WITH_VIEWS = replace(
    MODEL,
    source_tokens=TOKENS,
    target_tokens=TOKENS,
    grid=(ROWS, COLUMNS),
    views=VIEWS,
    width=2 * H,
)
Place = tuple[int, int, int]
places = st.tuples(st.integers(0, VIEWS - 1), st.integers(0, ROWS - 1), st.integers(0, COLUMNS - 1))


@pytest.fixture(scope="module")
def table() -> RotaryTable:
    return rotary_table(WITH_VIEWS)


def _index(place: Place) -> int:
    view, row, column = place
    return view * (PATCHES + 1) + 1 + row * COLUMNS + column


def _logits(table: RotaryTable, seed: int) -> torch.Tensor:
    """Return the logits of one query with one key, each put at every token, [T, T]."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, H, generator=generator).expand(2, 1, TOKENS, 1, H)
    return torch.einsum("btnh,bsnh->ts", table.rotate(q).double(), table.rotate(k).double())


def test_rotation_keeps_norms(table: RotaryTable) -> None:
    x = torch.randn(2, TOKENS, 4, H, generator=torch.Generator().manual_seed(1))
    before, after = x.double().norm(dim=-1), table.rotate(x).double().norm(dim=-1)
    assert float((after / before - 1).abs().max()) < 1e-6


def test_rotation_is_that_of_pairs_by_their_angle() -> None:
    angles = grid_angles((2, 2), has_cls=False, head_width=H)
    x = torch.randn(1, 4, 1, H, generator=torch.Generator().manual_seed(2))
    rotated = RotaryTable(angles).rotate(x)
    for token in range(4):
        for pair in range(H // 2):
            angle = float(angles[token, pair])
            a, b = x[0, token, 0, 2 * pair : 2 * pair + 2].tolist()
            expected = (a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle))
            assert rotated[0, token, 0, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=1e-6)


@given(first=places, second=places, move=places, seed=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_logits_depend_on_the_offset_alone(first: Place, second: Place, move: Place, seed: int) -> None:
    """Move both patches by the same step in depth, height and width: the logit stays."""
    sizes = (VIEWS, ROWS, COLUMNS)
    steps = [
        min(step, size - 1 - max(a, b)) for step, size, a, b in zip(move, sizes, first, second, strict=True)
    ]
    moved = [tuple(a + step for a, step in zip(place, steps, strict=True)) for place in (first, second)]
    logits = _logits(rotary_table(WITH_VIEWS), seed)
    here, there = logits[_index(first), _index(second)], logits[_index(moved[0]), _index(moved[1])]
    assert float(here) == pytest.approx(float(there), abs=2e-5)


def test_every_offset_has_its_own_logits(table: RotaryTable) -> None:
    """Eight queries and keys see each offset differently."""
    logits = torch.stack([_logits(table, seed) for seed in range(8)], dim=-1)
    everywhere = [
        (view, row, column) for view in range(VIEWS) for row in range(ROWS) for column in range(COLUMNS)
    ]
    by_offset = {
        tuple(a - b for a, b in zip(first, second, strict=True)): logits[_index(first), _index(second)]
        for first in everywhere
        for second in everywhere
    }
    assert len(by_offset) == (2 * VIEWS - 1) * (2 * ROWS - 1) * (2 * COLUMNS - 1)
    assert float(torch.pdist(torch.stack(list(by_offset.values()))).min()) > 0.1


def test_cls_turns_with_the_depth_of_its_view_alone(table: RotaryTable) -> None:
    depth, _, _ = split_pairs(WITH_VIEWS.head_width // 2)
    cls = table.turns_T1P[:, 0].unflatten(0, (VIEWS, PATCHES + 1))[:, 0]
    assert torch.equal(cls[0], torch.ones_like(cls[0]))
    assert torch.equal(cls[:, depth:], torch.ones_like(cls[:, depth:]))
    assert len({tuple(turns.tolist()) for turns in cls[:, :depth]}) == VIEWS


def test_every_pair_turns_for_some_token(table: RotaryTable) -> None:
    assert (table.turns_T1P[:, 0] != 1).any(dim=0).all()


def test_with_one_view_depth_alone_stands_still() -> None:
    one = rotary_table(replace(WITH_VIEWS, views=1, source_tokens=PATCHES + 1, target_tokens=PATCHES + 1))
    depth, _, _ = split_pairs(H // 2)
    turning = (one.turns_T1P[:, 0] != 1).any(dim=0)
    assert turning.tolist() == [False] * depth + [True] * (H // 2 - depth)


def test_one_view_is_the_grid_and_views_differ_in_depth_alone(table: RotaryTable) -> None:
    views = table.turns_T1P.unflatten(0, (VIEWS, PATCHES + 1))
    one = RotaryTable(grid_angles((ROWS, COLUMNS), has_cls=True, head_width=H))
    assert torch.equal(views[0], one.turns_T1P)
    depth, _, _ = split_pairs(H // 2)
    for view in range(1, VIEWS):
        assert torch.equal(views[view][..., depth:], views[0][..., depth:])
        assert (views[view][..., :depth] != views[view - 1][..., :depth]).all()


@pytest.mark.parametrize("pairs", [3, 8, 16, 32, 64])
def test_three_axes_share_the_pairs(pairs: int) -> None:
    depth, height, width = split_pairs(pairs)
    assert depth + height + width == pairs
    assert height == width
    assert 1 <= depth <= height + 1


def test_heads_too_narrow_for_three_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channel pairs"):
        grid_angles((3, 3), has_cls=True, head_width=4)


def test_a_place_is_embedded_alike_in_all_views_until_training_tells_them_apart() -> None:
    embedding = TokenEmbedding(WITH_VIEWS)
    x_BTC = torch.randn(2, PATCHES + 1, WITH_VIEWS.target_width).repeat(1, VIEWS, 1)
    nothing = torch.zeros(2, VIEWS * (PATCHES + 1), WITH_VIEWS.width)
    by_view = embedding(x_BTC, nothing).unflatten(1, (VIEWS, PATCHES + 1))
    assert torch.equal(by_view[:, 0], by_view[:, 1])
    assert not torch.equal(by_view[:, 0, 0], by_view[:, 0, 1])
    assert embedding.view_V1D is not None
    embedding.view_V1D.data[1] += 1
    told = embedding(x_BTC, nothing).unflatten(1, (VIEWS, PATCHES + 1))
    assert torch.equal(told[:, 0], by_view[:, 0])
    torch.testing.assert_close(told[:, 1], by_view[:, 1] + 1)
    one = replace(WITH_VIEWS, views=1, source_tokens=PATCHES + 1, target_tokens=PATCHES + 1)
    assert TokenEmbedding(one).view_V1D is None
