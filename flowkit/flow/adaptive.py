"""Integrate dx/dt = v(x, t) for one image with steps that its own error chooses: dopri5 of torchdiffeq.

    0 -> 1 - delta   dopri5, error per step below tolerance (1 + |x|) in root mean square, state in float64
    1 - delta -> 1   one Euler step, delta = sqrt(tolerance) / 10 and at least 1e-5

A velocity from clean tokens is divided by 1 - t, so it does not exist at 1; the Euler step lands on the clean estimate,
and its error, delta^2 / 2 |x''|, is a two-hundredth of the tolerance times |x''|. torchdiffeq keeps one step size for
everything it is given: images are solved one by one, so that none of them depends on its neighbours. torchdiffeq is
imported when it is used, because training and the other solvers do without it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit.flow.solvers import Velocity

DEFAULT_TOLERANCE = 1e-3
SMALLEST_LANDING = 1e-5
MOST_STEPS = 1000


class _NotFiniteError(Exception):
    """The velocity is not finite, so no step size can help."""


def landing(tolerance: float) -> float:
    """Return delta, the length of the last step."""
    return max(math.sqrt(tolerance) / 10, SMALLEST_LANDING)


def integrate_adaptively(velocity: Velocity, x_0_BTC: Tensor, tolerance: float = DEFAULT_TOLERANCE) -> Tensor:
    """Return x at t = 1 of one image, B = 1; all NaN if the velocity is not finite on the way.

    Raises `ValueError` for several images, a tolerance outside (0, 1), or one that no step size reaches.
    """
    if len(x_0_BTC) != 1:
        raise ValueError(f"{len(x_0_BTC)} images share one step size, expected 1; solve each image by itself")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, expected a number between 0 and 1, for instance 1e-3")
    dtype = torch.promote_types(x_0_BTC.dtype, torch.float32)
    end = 1 - landing(tolerance)
    try:
        x_BTC = _dopri5(velocity, x_0_BTC.to(dtype), end, tolerance)
    except _NotFiniteError:
        return torch.full_like(x_0_BTC, torch.nan, dtype=dtype)
    return x_BTC + (1 - end) * velocity(x_BTC, end)


def _dopri5(velocity: Velocity, x_0_BTC: Tensor, end: float, tolerance: float) -> Tensor:
    from torchdiffeq import odeint

    def field(t: Tensor, x_BTC: Tensor) -> Tensor:
        v_BTC = velocity(x_BTC.to(x_0_BTC.dtype), float(t))
        if not v_BTC.isfinite().all():
            raise _NotFiniteError
        return v_BTC.double()

    times = torch.tensor([0.0, end], dtype=torch.float64, device=x_0_BTC.device)
    options = {
        "step_t": times[1:],  # otherwise it steps past the end, where there is no velocity, and interpolates
        "first_step": tolerance**0.2 / 3,  # otherwise it tries one of any length, also past the end
        "max_num_steps": MOST_STEPS,
    }
    try:
        path_BTC = odeint(
            field,
            x_0_BTC.double(),
            times,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
            options=options,
        )
    except AssertionError as error:
        raise ValueError(
            f"dopri5 does not reach a tolerance of {tolerance:g}: {error}; take a larger one, or a solver with a fixed "
            "number of steps"
        ) from error
    return path_BTC[-1].to(x_0_BTC.dtype)
