"""The adaptive solver: error below its tolerance, the data end, neighbours, and velocities that are not finite."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from gaussian_case import CHANNELS, TOKENS, Gaussian
from gaussian_case import FLOW as GAUSSIAN_FLOW
from torchdiffeq import odeint

from flowkit.flow.adaptive import integrate_adaptively, landing
from flowkit.flow.objective import Transport
from flowkit.flow.registry import build_objective

TOLERANCES = [10.0**-digits for digits in range(1, 10)]


def _start(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("smallest_spread", [0.2, 0.01])
def test_the_flow_of_a_gaussian_is_met_within_the_tolerance(tolerance: float, smallest_spread: float) -> None:
    """The tolerance is one of each step; the velocity is that of clean tokens, which does not exist at t = 1."""
    network = Gaussian(torch.float64, smallest_spread)
    mean, x_0 = network.encode_condition(_start(1)), _start(2)
    transport = Transport("adaptive", tolerance=tolerance)
    found = build_objective(GAUSSIAN_FLOW).sample(network, mean, None, x_0, transport)
    assert _rms(found - network.carried(mean, x_0)) < 10 * tolerance


def test_float32_velocities_do_not_stop_the_smallest_tolerance() -> None:
    network = Gaussian(torch.float32)
    mean, x_0 = network.encode_condition(_start(1, torch.float32)), _start(2, torch.float32)
    found = build_objective(GAUSSIAN_FLOW).sample(
        network, mean, None, x_0, Transport("adaptive", tolerance=1e-9)
    )
    assert found.dtype == torch.float32
    assert _rms(found - network.carried(mean, x_0)) < 1e-5


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("velocity", [lambda x: 0 * x, lambda x: 1e-8 * x, lambda x: -1e6 * x, lambda x: x])
def test_no_velocity_is_asked_for_outside_of_the_way(velocity, tolerance: float) -> None:
    times: list[float] = []

    def watched(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return velocity(x) if len(times) < 3 else 0 * x

    integrate_adaptively(watched, _start(), tolerance)
    assert times[0] == 0.0
    assert max(times) <= 1 - landing(tolerance) < 1
    assert times[-1] == 1 - landing(tolerance)


def test_it_agrees_with_torchdiffeq_on_a_smooth_field() -> None:
    """dx/dt = cos(3 t) x - x^3, on which torchdiffeq may go to the end and beyond."""

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        return math.cos(3 * t) * x - x**3

    x_0, times = _start(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    theirs = odeint(lambda t, x: velocity(x, float(t)), x_0, times, rtol=1e-10, atol=1e-10)[-1]
    for tolerance in (1e-3, 1e-6, 1e-9):
        found = integrate_adaptively(velocity, x_0, tolerance)
        assert _rms(found - theirs) < 2 * tolerance
    to = torch.tensor([0.0, 1 - landing(1e-4)], dtype=torch.float64)
    last = odeint(
        lambda t, x: velocity(x, float(t)),
        x_0,
        to,
        rtol=1e-4,
        atol=1e-4,
        method="dopri5",
        options={"step_t": to[1:], "first_step": 1e-4**0.2 / 3},
    )[-1]
    landed = last + landing(1e-4) * velocity(last, float(to[-1]))
    assert torch.equal(integrate_adaptively(velocity, x_0, 1e-4), landed)


def test_a_smaller_tolerance_costs_more_evaluations() -> None:
    network = Gaussian(torch.float64)
    costs = []
    for tolerance in TOLERANCES[::2]:
        calls: list[float] = []
        network.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        build_objective(GAUSSIAN_FLOW).sample(
            network,
            network.encode_condition(_start(1)),
            None,
            _start(2),
            Transport("adaptive", 1, 1, 1, tolerance),
        )
        costs.append(len(calls))
    assert costs == sorted(costs)
    assert costs[0] <= 14
    assert costs[1] <= 32


def test_images_are_not_solved_together() -> None:
    with pytest.raises(ValueError, match="2 images share one step size, expected 1"):
        integrate_adaptively(lambda x, t: x, torch.zeros(2, 1, 1))


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0, math.nan])
def test_impossible_tolerances_are_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        integrate_adaptively(lambda x, t: x, _start(), tolerance)


@pytest.mark.parametrize("from_t", [0.0, 0.5])
def test_a_velocity_that_is_not_finite_gives_no_number(from_t: float) -> None:
    x = integrate_adaptively(lambda x, t: x if t < from_t else x + math.nan, _start())
    assert x.isnan().all()
    assert x.shape == (1, TOKENS, CHANNELS)


def test_a_tolerance_that_no_step_reaches_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(
        ValueError, match=r"dopri5 does not reach a tolerance of 1e-09: .*; take a larger one"
    ):
        integrate_adaptively(
            lambda x, t: 1e9 * torch.randn(x.shape, generator=generator, dtype=x.dtype), _start(), 1e-9
        )


def test_torchdiffeq_is_loaded_by_the_adaptive_solver_alone() -> None:
    code = (
        "import sys, torch, flowkit.sampling.sampler; from flowkit.flow import adaptive, solvers;"
        "x = torch.ones(1, 1, 1); solvers.integrate(lambda x, t: x, x, solvers.time_grid(2), 'heun');"
        "assert 'torchdiffeq' not in sys.modules; adaptive.integrate_adaptively(lambda x, t: x, x);"
        "assert 'torchdiffeq' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
