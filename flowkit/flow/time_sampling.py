"""At which times t a training batch is evaluated.

A fixed share of every batch sits at t = 0, the only time that a one-step sampler visits; the other images take the
inverse distribution function of a named density at a uniform number u:

    uniform: u        u_shaped: sin(pi u / 2)^2, that is Beta(1/2, 1/2)        logit_normal: sigmoid(probit(u))

Which images sit at t = 0 depends on their place in the global batch alone, so every batch holds the same share.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

OPEN_INTERVAL = 1e-6
"""Uniform numbers are kept this far from 0 and 1, where the probit is infinite."""


def _uniform(u_B: Tensor) -> Tensor:
    return u_B


def _u_shaped(u_B: Tensor) -> Tensor:
    return torch.sin(u_B * (math.pi / 2)).square()


def _logit_normal(u_B: Tensor) -> Tensor:
    return torch.sigmoid(torch.special.ndtri(u_B.clamp(OPEN_INTERVAL, 1 - OPEN_INTERVAL)))


TIME_DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": _uniform,
    "u_shaped": _u_shaped,
    "logit_normal": _logit_normal,
}


def is_at_zero(index: int, share: float) -> bool:
    """Whether image `index` of the global batch is trained at t = 0.

    Any run of n neighbouring images holds `share` n of them, up to one.
    """
    return math.floor((index + 1) * share) > math.floor(index * share)


def times(u_B: Tensor, *, distribution: str, share_at_zero: float, first_index: int = 0) -> Tensor:
    """Return one time per image from uniform numbers `u_B` in [0, 1).

    `first_index` is the place of the first image in the global batch, which several processes may share.
    Raises `ValueError` for an unknown distribution.
    """
    if distribution not in TIME_DISTRIBUTIONS:
        raise ValueError(
            f"time distribution is {distribution!r}, expected one of {sorted(TIME_DISTRIBUTIONS)}; choose one of these"
        )
    zero_B = [is_at_zero(first_index + row, share_at_zero) for row in range(len(u_B))]
    t_B = TIME_DISTRIBUTIONS[distribution](u_B)
    return t_B.masked_fill(torch.tensor(zero_B, device=u_B.device), 0.0)
