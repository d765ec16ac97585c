"""The straight path of rectified flow between noise and data.

    x_t = (1 - t) x_0 + t x_1      v = x_1 - x_0      x_1 = x_t + (1 - t) v

Time t lies in [0, 1]; 0 is noise and 1 is data. A network that predicts the clean tokens gives the velocity
(x_1 - x_t) / (1 - t), where 1 - t is kept above a smallest value because it vanishes at the data end.

Shapes: B images, T tokens, C channels. Every function is pure and keeps the dtype of its tokens.
"""

from __future__ import annotations

from torch import Tensor

MINIMUM_REMAINING = 0.02
"""Smallest 1 - t that a velocity in a loss is divided by, so that errors near the data end do not rule it."""
MINIMUM_REMAINING_SAMPLED = 1e-6
"""The same in sampling; no grid has a shorter last step, so the last step lands on the clean estimate."""


def expand_time(t_B: Tensor, x_BTC: Tensor) -> Tensor:
    """Return `t_B` with as many trailing axes of length one as `x_BTC` has, in its dtype."""
    return t_B.to(x_BTC.dtype).reshape(-1, *[1] * (x_BTC.ndim - 1))


def interpolate(x_0_BTC: Tensor, x_1_BTC: Tensor, t_B: Tensor) -> Tensor:
    """Return the point x_t of the straight path from `x_0_BTC` (noise) to `x_1_BTC` (data)."""
    return x_0_BTC + expand_time(t_B, x_0_BTC) * (x_1_BTC - x_0_BTC)


def velocity(x_0_BTC: Tensor, x_1_BTC: Tensor) -> Tensor:
    """Return dx_t/dt, the same at every t."""
    return x_1_BTC - x_0_BTC


def clean_estimate(x_t_BTC: Tensor, v_BTC: Tensor, t_B: Tensor) -> Tensor:
    """Return the data end of the path that passes `x_t_BTC` at `t_B` with velocity `v_BTC`."""
    return x_t_BTC + (1 - expand_time(t_B, x_t_BTC)) * v_BTC


def velocity_from_clean(
    clean_BTC: Tensor, x_t_BTC: Tensor, t_B: Tensor, minimum_remaining: float = MINIMUM_REMAINING
) -> Tensor:
    """Return the velocity that leads from `x_t_BTC` at `t_B` straight to `clean_BTC` at 1."""
    remaining = (1 - expand_time(t_B, x_t_BTC)).clamp(min=minimum_remaining)
    return (clean_BTC - x_t_BTC) / remaining


def gated(x_t_BTC: Tensor, t_B: Tensor) -> Tensor:
    """Return t x_t, what a time-gated network sees.

    At t = 0 no noise enters the network, so a single Euler step is exactly its regression estimate.
    """
    return expand_time(t_B, x_t_BTC) * x_t_BTC
