"""Objectives: closed forms with an exact network, draws, and the defects of the earlier recipe."""

from __future__ import annotations

from dataclasses import replace

import paired_material
import pytest
import torch

from flowkit.flow import path
from flowkit.flow.noise import isotropic
from flowkit.flow.objective import Draws, Transport
from flowkit.flow.registry import build_head, build_objective

B, T, C = 8, 3, 4
FLOW = replace(paired_material.FLOW, start_noise="isotropic", condition_dropout=0.0)
FOUR_PARTS = replace(
    FLOW,
    prediction="velocity",
    time_gate=False,
    clean_weight=0.0,
    velocity_weight=1.0,
    semantic_weight=0.5,
    cosine_weight=0.2,
    consistency_weight=0.3,
)


class Exact:
    """A network whose condition is the target itself; it returns the exact clean tokens or velocity."""

    def __init__(self, prediction: str, x_0: torch.Tensor | None = None) -> None:
        self.prediction = prediction
        self.x_0 = x_0
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def encode_condition(self, source: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        return source

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.seen.append((x, t))
        return condition if self.prediction == "clean" else condition - self.x_0


@pytest.fixture
def x_0() -> torch.Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x_1() -> torch.Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(1)) + 2


def _draws(x_0: torch.Tensor) -> Draws:
    return Draws(torch.linspace(0, 0.9, B), x_0, torch.ones(B, dtype=torch.bool))


@pytest.mark.parametrize("config", [FLOW, FOUR_PARTS], ids=["clean", "velocity"])
def test_an_exact_network_has_no_loss_and_samples_exactly(config, x_0, x_1) -> None:
    objective = build_objective(config)
    network = Exact(config.prediction, x_0)
    loss = objective.loss(network, x_1, x_1, _draws(x_0))
    assert float(loss.total) == pytest.approx(0, abs=1e-5)
    assert set(loss.parts) == {
        part for part in ("clean", "velocity", "semantic", "cosine", "consistency") if config.weight(part)
    }
    for solver, steps in (("euler", 1), ("heun", 7), ("midpoint", 3)):
        sampled = objective.sample(network, x_1, None, x_0, Transport(solver, steps))
        torch.testing.assert_close(sampled, x_1, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("steps", [50, 100, 1000])
def test_many_steps_leave_no_start_noise_behind(solver: str, steps: int, x_0, x_1) -> None:
    sampled = build_objective(FLOW).sample(Exact("clean"), x_1, None, x_0, Transport(solver, steps))
    left = float(((sampled - x_1) * (x_0 - x_1)).sum() / (x_0 - x_1).square().sum())
    assert abs(left) < 1e-5


def test_loss_is_the_weighted_sum_of_its_parts(x_0, x_1) -> None:
    loss = build_objective(FOUR_PARTS).loss(Exact("velocity", x_0 + 1), x_1, x_1, _draws(x_0))
    parts = loss.parts
    assert float(parts["velocity"]) == pytest.approx(1, abs=1e-5)  # the velocity is off by one everywhere
    remaining = 1 - torch.linspace(0, 0.9, B)
    assert float(parts["semantic"]) == pytest.approx(float(remaining.square().mean()), abs=1e-5)
    torch.testing.assert_close(loss.error_B, remaining.square())
    assert float(loss.total) == pytest.approx(
        sum(FOUR_PARTS.weight(name) * float(part) for name, part in parts.items())
    )


def test_a_gated_network_sees_no_noise_at_zero(x_0, x_1) -> None:
    network = Exact("clean")
    build_objective(FLOW).sample(network, x_1, None, x_0, Transport("euler", 1))
    seen, t = network.seen[0]
    assert not seen.any()
    assert t.tolist() == [0.0]


def test_draws_depend_on_seed_step_and_place_alone() -> None:
    objective = build_objective(replace(FLOW, share_at_zero=0.25, condition_dropout=0.5))
    noise = isotropic(T, C)

    def draw(**changed: int) -> Draws:
        arguments = {"seed": 1, "step": 2, "first_index": 0} | changed
        return objective.draw(**arguments, shape_BTC=(B, T, C), noise=noise)

    whole, second_half = (
        draw(),
        objective.draw(seed=1, step=2, first_index=B // 2, shape_BTC=(B // 2, T, C), noise=noise),
    )
    for field in ("t_B", "x_0_BTC", "keep_B"):
        torch.testing.assert_close(
            getattr(whole, field)[B // 2 :], getattr(second_half, field), rtol=0, atol=0
        )
    assert not torch.equal(whole.x_0_BTC, draw(seed=2).x_0_BTC)
    assert not torch.equal(whole.x_0_BTC, draw(step=3).x_0_BTC)
    assert 0 < int(whole.keep_B.sum()) < B


def test_regression_draws_nothing_and_is_evaluated_once(x_0, x_1) -> None:
    objective = build_objective(replace(FLOW, kind="regression"))
    draws = objective.draw(seed=0, step=0, first_index=0, shape_BTC=(B, T, C), noise=isotropic(T, C))
    assert not draws.x_0_BTC.any()
    assert not draws.t_B.any()
    assert draws.keep_B.all()
    network = Exact("clean")
    sampled = objective.sample(network, x_1, None, x_0, Transport("heun", 50))
    torch.testing.assert_close(sampled, x_1)
    assert len(network.seen) == 1
    assert not network.seen[0][0].any()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kind": "diffusion"}, "diffusion"),
        ({"prediction": "noise"}, "noise"),
        ({"clock": "backward"}, "backward"),
        ({"share_at_zero": 1.5}, "1.5"),
        ({"time_beta": (0.2, 1.0)}, "0.2"),
        ({"clean_weight": 0.0}, "loss weights"),
    ],
)
def test_a_wrong_choice_is_refused_by_name(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(FLOW, **changed)


def test_earlier_extra_losses_are_wrong_even_for_an_exact_network(x_0, x_1) -> None:
    earlier = build_objective(replace(FOUR_PARTS, kind="earlier"))
    loss = earlier.loss(Exact("velocity", x_0), x_1, x_1, _draws(x_0))
    parts = loss.parts
    assert float(parts["velocity"]) == pytest.approx(0, abs=1e-6)
    remaining = 2 * path.expand_time(1 - torch.linspace(0, 0.9, B), x_0) * (x_1 - x_0)
    assert float(parts["semantic"]) == pytest.approx(float(remaining.square().mean()), rel=1e-4)
    assert float(loss.total) > 1


def test_earlier_clock_tells_the_network_the_wrong_time(x_0, x_1) -> None:
    network = Exact("velocity", x_0)
    objective = build_objective(replace(FOUR_PARTS, clock="earlier"))
    objective.sample(network, x_1, None, x_0, Transport("euler", 4))
    assert [float(t) for _, t in network.seen] == [1.0, 0.75, 0.5, 0.25]


def test_earlier_head_limits_the_rank_and_the_usual_one_does_not() -> None:
    width, target_width = 32, 16
    for name, rank in (("earlier", 12), ("linear", 16)):
        head = build_head(name, width=width, target_width=target_width)
        generator = torch.Generator().manual_seed(0)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        matrix = head(torch.eye(width)) - head(torch.zeros(1, width))
        assert torch.linalg.matrix_rank(matrix) == rank
