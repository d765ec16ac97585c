"""Solvers against equations with a known solution."""

from __future__ import annotations

import math

import pytest
import torch

from flowkit.flow import guidance, solvers
from flowkit.flow.fidelity import FidelitySums


def _error(solver: str, steps: int) -> float:
    """Error at t = 1 of dx/dt = x - t^2 from x = 1, whose solution is t^2 + 2 t + 2 - exp(t)."""
    one = torch.ones(1, dtype=torch.float64)
    x = solvers.integrate(lambda x, t: x - t**2, one, solvers.time_grid(steps), solver)
    return abs(float(x) - (5 - math.e))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    measured = math.log2(_error(solver, 80) / _error(solver, 160))
    assert measured == pytest.approx(order, abs=0.25)


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


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (5, 0.0)])
def test_impossible_grids_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        solvers.time_grid(steps, shift)


def test_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match=r"'rk45'.*heun"):
        solvers.find_solver("rk45")


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
