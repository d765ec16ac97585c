"""At which times t a training batch is evaluated.

A fixed share of every batch sits at t = 0, the only time that a one-step sampler visits; the other images take the
inverse distribution function of a named density at a uniform number u:

    uniform: u        logit_normal: sigmoid(probit(u))        beta: the quantile of Beta(a, b), a and b from 1/2 on

Beta(1/2, 1/2) is U-shaped, Beta(1, 1) uniform. Its quantile is interpolated on a grid of theta with t = sin(theta)^2,
where the density sin(theta)^(2 a - 1) cos(theta)^(2 b - 1) is bounded. Which images sit at t = 0 depends on their
place in the global batch alone, so every batch holds the same share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

BetaShape = tuple[float, float]
"""The parameters a and b of Beta(a, b), both at least `SMALLEST_BETA`."""
SMALLEST_BETA = 0.5
BETA_CELLS = 4096
OPEN_INTERVAL = 1e-6
"""Uniform numbers are kept this far from 0 and 1, where the probit is infinite."""


@cache
def _beta_quantiles(a: float, b: float) -> Tensor:
    """Return the angles theta [Q + 1] up to which 0, 1/Q, ..., 1 of Beta(a, b) lie, in float64."""
    edges = torch.linspace(0, math.pi / 2, BETA_CELLS + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = middles.sin().pow(2 * a - 1) * middles.cos().pow(2 * b - 1)
    below = torch.cat((mass.new_zeros(1), mass.cumsum(0))) / mass.sum()
    wanted = torch.linspace(0, 1, BETA_CELLS + 1, dtype=torch.float64)
    cell = torch.searchsorted(below, wanted, right=True).clamp(1, BETA_CELLS) - 1
    # the outermost cells may hold nothing that float64 can tell
    held = (below[cell + 1] - below[cell]).clamp(min=torch.finfo(torch.float64).tiny)
    within = (wanted - below[cell]) / held
    return edges[cell] + within.clamp(0, 1) * (edges[cell + 1] - edges[cell])


def _beta(u_B: Tensor, shape: BetaShape) -> Tensor:
    angles = _beta_quantiles(*shape).to(u_B.device)
    place_B = u_B.double() * BETA_CELLS
    cell_B = place_B.long().clamp(max=BETA_CELLS - 1)
    angle_B = torch.lerp(angles[cell_B], angles[cell_B + 1], place_B - cell_B)
    return angle_B.sin().square().to(u_B.dtype)


TIME_DISTRIBUTIONS: dict[str, Callable[[Tensor, BetaShape], Tensor]] = {
    "uniform": lambda u_B, _: u_B,
    "logit_normal": lambda u_B, _: torch.sigmoid(
        torch.special.ndtri(u_B.clamp(OPEN_INTERVAL, 1 - OPEN_INTERVAL))
    ),
    "beta": _beta,
}


def is_at_zero(index: int, share: float) -> bool:
    """Whether image `index` of the global batch is trained at t = 0.

    Any run of n neighbouring images holds `share` n of them, up to one.
    """
    return math.floor((index + 1) * share) > math.floor(index * share)


def times(
    u_B: Tensor,
    *,
    distribution: str,
    share_at_zero: float,
    beta: BetaShape = (SMALLEST_BETA, SMALLEST_BETA),
    first_index: int = 0,
) -> Tensor:
    """Return one time per image from uniform numbers `u_B` in [0, 1).

    `first_index` is the place of the first image in the global batch, which several processes may share.
    Raises `ValueError` for an unknown distribution.
    """
    if distribution not in TIME_DISTRIBUTIONS:
        raise ValueError(
            f"time distribution is {distribution!r}, expected one of {sorted(TIME_DISTRIBUTIONS)}; choose one of these"
        )
    zero_B = [is_at_zero(first_index + row, share_at_zero) for row in range(len(u_B))]
    t_B = TIME_DISTRIBUTIONS[distribution](u_B, beta)
    return t_B.masked_fill(torch.tensor(zero_B, device=u_B.device), 0.0)
