"""Rotary positions over three axes: depth, height, width.

Neighbouring channels (2i, 2i + 1) of a head are turned, as one complex number, by the angle p_a f_j, where a is the
axis that the pair belongs to, p_a the token's place on it and f_j = base^(-j / pairs of the axis). This is a true
rotation: norms stay, and a logit depends on the offset of two tokens alone. Depth is the view's index, 0 for one view;
a CLS token has the depth of its view and stands at 0 on the other axes.

Shapes: B images, T tokens, N heads, H head width, P = H / 2 pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.model.config import DiTConfig

FREQUENCY_BASE = 100.0
"""Grids are at most a few dozen tokens wide; with a larger base most pairs would hardly turn."""
DEPTH_SHARE = 1 / 8
"""Share of the pairs given to depth, which has few places; height and width share the rest evenly."""


def split_pairs(pairs: int) -> tuple[int, int, int]:
    """Return how many of a head's channel pairs turn with depth, height and width.

    Raises `ValueError` below three pairs.
    """
    if pairs < 3:
        raise ValueError(f"heads have {pairs} channel pairs, expected at least 3; use fewer or wider heads")
    depth = max(1, round(pairs * DEPTH_SHARE))
    height = (pairs - depth) // 2
    return pairs - 2 * height, height, height


def grid_angles(grid: tuple[int, int], *, has_cls: bool, head_width: int, view: int = 0) -> Tensor:
    """Return the angles [T, P] of a row-major grid of tokens, in float64.

    With `has_cls` the first token is a CLS token, which turns with depth alone.
    """
    rows, columns = grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double().reshape(-1, 2)
    if has_cls:
        places = torch.cat((torch.zeros(1, 2, dtype=torch.float64), places))
    depth = torch.full((len(places), 1), float(view), dtype=torch.float64)
    axes_T3 = torch.cat((depth, places), dim=1)
    parts = []
    for axis, pairs in enumerate(split_pairs(head_width // 2)):
        frequencies = FREQUENCY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        parts.append(axes_T3[:, axis, None] * frequencies)
    return torch.cat(parts, dim=1)


class RotaryTable(nn.Module):
    """The turns exp(i angle) of all tokens, ready to rotate queries and keys; as complex numbers and as pairs."""

    turns_T1P: Tensor
    turns_T1P2: Tensor

    def __init__(self, angles_TP: Tensor) -> None:
        super().__init__()
        turns_TP = torch.polar(torch.ones_like(angles_TP), angles_TP).to(torch.complex64)
        self.register_buffer("turns_T1P", turns_TP[:, None], persistent=False)
        self.register_buffer("turns_T1P2", torch.view_as_real(turns_TP[:, None]).clone(), persistent=False)

    def rotate(self, x_BTNH: Tensor) -> Tensor:
        """Return `x_BTNH` with every channel pair turned by its angle, computed in float32 or wider."""
        wide_BTNH = x_BTNH.to(torch.promote_types(x_BTNH.dtype, torch.float32))
        pairs_BTNP2 = wide_BTNH.unflatten(-1, (-1, 2))
        # the compiler fuses real arithmetic alone, which takes eight times as long elsewhere
        if torch.compiler.is_compiling():
            turned_BTNP2 = _turned(pairs_BTNP2, self.turns_T1P2)
        else:
            turned_BTNP2 = torch.view_as_real(torch.view_as_complex(pairs_BTNP2) * self.turns_T1P)
        return turned_BTNP2.flatten(-2).to(x_BTNH.dtype)


def _turned(pairs: Tensor, turns: Tensor) -> Tensor:
    """The product of complex numbers whose real and imaginary parts lie on the last axis."""
    (real, imaginary), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
    return torch.stack((real * cosine - imaginary * sine, real * sine + imaginary * cosine), dim=-1)


def rotary_table(config: DiTConfig) -> RotaryTable:
    """Return the table of all tokens of `config`: its views one after the other, each at its own depth."""
    views = [
        grid_angles(config.grid, has_cls=config.has_cls, head_width=config.head_width, view=view)
        for view in range(config.views)
    ]
    return RotaryTable(torch.cat(views))
