"""Integrate dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data).

    euler:    x + h v(x, t)
    midpoint: x + h v(x + h/2 v(x, t), t + h/2)
    heun:     x + h/2 (v(x, t) + v(x + h v(x, t), t + h)),   plain Euler in the last step

The last corrector of Heun's method is left out because it would evaluate the velocity at t = 1, where a velocity from
clean tokens is divided by zero; one Euler step errs by h^2, so the order of the whole stays 2. The solver keeps the
state in float32 or wider and never clamps it. Steps that the error chooses are in `flowkit.flow.adaptive`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flowkit.flow.path import MINIMUM_REMAINING_SAMPLED

ADAPTIVE = "adaptive"
"""Name of the solver that chooses its own steps."""

Velocity = Callable[[Tensor, float], Tensor]
"""v(x_BTC, t) for one time t that all images share."""

Step = Callable[[Velocity, Tensor, float, float], Tensor]
"""One step from time t to time t_next."""


def _euler(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    return x + (t_next - t) * velocity(x, t)


def _midpoint(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    half = (t_next - t) / 2
    return x + 2 * half * velocity(x + half * velocity(x, t), t + half)


def _heun(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    h = t_next - t
    v = velocity(x, t)
    if t_next >= 1:
        return x + h * v
    return x + h / 2 * (v + velocity(x + h * v, t_next))


@dataclass(frozen=True)
class Solver:
    """A one-step method and how many velocities it evaluates in `steps` steps."""

    step: Step
    evaluations_per_step: int
    evaluations_saved: int = 0

    def evaluations(self, steps: int) -> int:
        """Return how many velocities are evaluated in `steps` steps."""
        return steps * self.evaluations_per_step - self.evaluations_saved


SOLVERS: dict[str, Solver] = {
    "euler": Solver(_euler, 1),
    "midpoint": Solver(_midpoint, 2),
    "heun": Solver(_heun, 2, evaluations_saved=1),
}


def find_solver(name: str) -> Solver:
    """Return the solver called `name`; raises `ValueError` for an unknown name."""
    if name not in SOLVERS:
        raise ValueError(
            f"solver is {name!r}, expected one of {sorted(SOLVERS)}, or {ADAPTIVE!r} where no number of steps is "
            "given; choose one of these"
        )
    return SOLVERS[name]


def time_grid(steps: int, shift: float = 1.0) -> list[float]:
    """Return steps + 1 ascending times from exactly 0 to exactly 1.

    `shift` s > 1 moves them towards the noise end: t / (t + s - s t). Raises `ValueError` unless steps >= 1, s > 0,
    or if the last step is so short that a velocity from clean tokens would not land on them.
    """
    if steps < 1:
        raise ValueError(
            f"number of inference steps is {steps}, expected at least 1; ask for one step or more"
        )
    if shift <= 0:
        raise ValueError(f"time shift is {shift}, expected a positive number; 1 leaves the grid uniform")
    uniform = [index / steps for index in range(steps + 1)]
    times = [t / (t + shift - shift * t) for t in uniform]
    if (last := times[-1] - times[-2]) < MINIMUM_REMAINING_SAMPLED:
        raise ValueError(
            f"the last of {steps} steps with time shift {shift} has length {last:.1e}, expected at least "
            f"{MINIMUM_REMAINING_SAMPLED}; take fewer steps or a larger shift"
        )
    return times


def integrate(velocity: Velocity, x_0: Tensor, times: list[float], solver: str) -> Tensor:
    """Return x at the last of `times`, starting from `x_0` at the first.

    >>> integrate(lambda x, t: -x, torch.ones(1), time_grid(100), "midpoint")   # about exp(-1)
    """
    step = find_solver(solver).step
    x = x_0.to(torch.promote_types(x_0.dtype, torch.float32))
    for t, t_next in pairwise(times):
        x = step(velocity, x, t, t_next)
    return x
