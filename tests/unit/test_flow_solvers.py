"""Solvers against equations with a known solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torchdiffeq import odeint

from flowkit.flow import guidance, solvers
from flowkit.flow.fidelity import FidelitySums

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2}
IN_TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}


@dataclass(frozen=True)
class Problem:
    """An equation, its solution, and a start at t = 0."""

    velocity: solvers.Velocity
    solution: Callable[[float], torch.Tensor]

    def error(self, solver: str, times: list[float]) -> float:
        x = solvers.integrate(self.velocity, self.solution(0.0), times, solver)
        return float((x - self.solution(times[-1])).abs().max())


def _float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


TURN = _float64(0, -3, 3, 0).reshape(2, 2)
PROBLEMS = {
    # linear with a source, nonlinear, and a rotation
    "linear": Problem(lambda x, t: x - t**2, lambda t: _float64(t**2 + 2 * t + 2 - math.exp(t))),
    "logistic": Problem(lambda x, t: 4 * x * (1 - x), lambda t: _float64(1 / (1 + 9 * math.exp(-4 * t)))),
    "rotation": Problem(lambda x, t: TURN @ x, lambda t: _float64(math.cos(3 * t), math.sin(3 * t))),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("end", [0.8, 1.0])
@pytest.mark.parametrize("solver", ORDERS)
def test_error_falls_with_the_order_of_the_solver(
    solver: str, end: float, shift: float, problem: str
) -> None:
    """Also up to t = 1, where Heun's method ends with an Euler step: its error is h^2, as that of all other steps."""
    coarse, fine = (
        PROBLEMS[problem].error(solver, [end * t for t in solvers.time_grid(steps, shift)])
        for steps in (320, 640)
    )
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.1)


def test_heun_leaves_out_the_corrector_at_the_data_end_alone() -> None:
    times: list[float] = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return -x

    solvers.integrate(velocity, torch.ones(1), [0.0, 0.5, 1.0], "heun")
    assert times == [0.0, 0.5, 0.5]
    times.clear()
    solvers.integrate(velocity, torch.ones(1), [0.0, 0.25, 0.5], "heun")
    assert times == [0.0, 0.25, 0.25, 0.5]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("solver", ORDERS)
def test_steps_are_those_of_torchdiffeq(solver: str, shift: float, problem: str) -> None:
    velocity, start = PROBLEMS[problem].velocity, PROBLEMS[problem].solution(0.0)
    times = [0.9 * t for t in solvers.time_grid(7, shift)]
    ours = solvers.integrate(velocity, start, times, solver)
    theirs = odeint(
        lambda t, x: velocity(x, float(t)), start, _float64(*times), method=IN_TORCHDIFFEQ[solver]
    )
    torch.testing.assert_close(ours, theirs[-1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", sorted(solvers.SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_evaluations_are_what_the_solver_says(solver: str, steps: int) -> None:
    visited = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        visited.append(t)
        return torch.ones_like(x)

    x = solvers.integrate(velocity, torch.zeros(2), solvers.time_grid(steps), solver)
    assert len(visited) == solvers.SOLVERS[solver].evaluations(steps)
    assert all(0 <= t < 1 for t in visited), "a velocity from clean tokens does not exist at t = 1"
    torch.testing.assert_close(x, torch.ones(2))


def test_one_euler_step_ends_on_the_clean_estimate() -> None:
    x_0, clean = torch.randn(2, 3, 4)
    x = solvers.integrate(lambda x, t: (clean - x) / (1 - t), x_0, solvers.time_grid(1), "euler")
    torch.testing.assert_close(x, clean)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_grid_ascends_and_ends_exactly_at_one(shift: float) -> None:
    grid = solvers.time_grid(50, shift)
    assert grid[0] == 0.0
    assert grid[-1] == 1.0
    assert grid == sorted(set(grid))
    assert (grid[25] < 0.5) == (shift > 1)


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (5, 0.0), (5, -1.0), (9999, 1e-3)])
def test_impossible_grids_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        solvers.time_grid(steps, shift)


def test_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match=r"'rk45'.*heun"):
        solvers.find_solver("rk45")


def test_shifted_times_are_those_of_the_formula() -> None:
    assert solvers.time_grid(4, 3.0) == pytest.approx([0, 0.25 / 2.5, 0.5 / 2, 0.75 / 1.5, 1])
    assert solvers.time_grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_guidance_moves_away_from_the_null_velocity() -> None:
    def one(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.ones_like(x)

    def null(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.full_like(x, 0.25)

    x = torch.zeros(3)
    torch.testing.assert_close(guidance.guided(one, null, 3.0)(x, 0.0), torch.full((3,), 0.25 + 3 * 0.75))
    assert guidance.guided(one, null, guidance.CONDITIONAL) is one
    assert [guidance.evaluations_per_velocity(scale) for scale in (1.0, 3.0)] == [1, 2]


def test_fidelity_sums_are_those_of_the_whole_set() -> None:
    generator = torch.Generator().manual_seed(0)
    target, predicted = torch.randn(2, 10, 3, 4, generator=generator)
    mean = torch.randn(3, 4, generator=generator)
    sums = FidelitySums(mean)
    for rows in (slice(0, 3), slice(3, 10)):
        sums.add(predicted[rows], target[rows])
    assert sums.tok_cos == pytest.approx(
        float(torch.cosine_similarity(predicted, target, dim=-1).mean()), abs=1e-6
    )
    expected = 1 - float((predicted - target).square().sum() / (target - mean).square().sum())
    assert sums.r2 == pytest.approx(expected, abs=1e-6)
    assert math.isnan(FidelitySums(mean).r2)
