"""What the network predicts, how it is trained, and how its prediction carries noise to data.

    flow:        min E |f(t x_t, t, c) - x_1|^2      x = f predicts the clean tokens, or v = f the velocity
    regression:  min E |f(0, 0, c) - x_1|^2          the same network at x = 0, t = 0, one evaluation

A flow's loss is the weighted sum of clean and semantic (mean square of the clean estimate), velocity (mean square),
cosine (1 - cosine per token) and consistency (1 - cosine of token means); parts of weight zero are not computed.

Shapes: B images, T tokens, C target channels. Everything here is at the scale of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flowkit.flow import path
from flowkit.flow.adaptive import DEFAULT_TOLERANCE, integrate_adaptively
from flowkit.flow.guidance import CONDITIONAL, guided
from flowkit.flow.noise import START_NOISES, StartNoise, keyed_generator
from flowkit.flow.solvers import ADAPTIVE, integrate, time_grid
from flowkit.flow.time_sampling import SMALLEST_BETA, TIME_DISTRIBUTIONS, times

KINDS = ("flow", "regression", "earlier")
PREDICTIONS = ("clean", "velocity")
CLOCKS = ("ascending", "earlier")
WEIGHTS = ("clean", "velocity", "semantic", "cosine", "consistency")


class Network(Protocol):
    """Any network that encodes its condition once and is then evaluated at many (x, t)."""

    def encode_condition(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Any: ...

    def __call__(self, x_BTC: Tensor, t_B: Tensor, condition: Any) -> Tensor: ...


@dataclass(frozen=True)
class ObjectiveConfig:
    """The choices of an objective. Raises `ValueError` for a value that is not on offer."""

    kind: str
    prediction: str
    clean_weight: float
    velocity_weight: float
    semantic_weight: float
    cosine_weight: float
    consistency_weight: float
    time: str
    time_beta: tuple[float, float]
    share_at_zero: float
    time_gate: bool
    start_noise: str
    condition_dropout: float
    clock: str

    def __post_init__(self) -> None:
        _one_of("objective kind", self.kind, KINDS)
        _one_of("prediction", self.prediction, PREDICTIONS)
        _one_of("time distribution", self.time, tuple(TIME_DISTRIBUTIONS))
        _one_of("start noise", self.start_noise, START_NOISES)
        _one_of("clock", self.clock, CLOCKS)
        if min(self.time_beta) < SMALLEST_BETA:
            raise ValueError(
                f"time_beta is {list(self.time_beta)}, expected two numbers from {SMALLEST_BETA} on; correct it"
            )
        _within("share_at_zero", self.share_at_zero, 1.0)
        _within("condition_dropout", self.condition_dropout, 1.0)
        if self.kind != "regression" and not any(self.weight(part) for part in WEIGHTS):
            raise ValueError(
                f"all loss weights of objective {self.kind!r} are 0; give at least one a positive weight"
            )

    def weight(self, part: str) -> float:
        """Return the weight of a part of the loss."""
        return float(getattr(self, f"{part}_weight"))


@dataclass(frozen=True)
class Draws:
    """The random part of a training batch: times, start noise, and which conditions are kept."""

    t_B: Tensor
    x_0_BTC: Tensor
    keep_B: Tensor


@dataclass(frozen=True)
class Loss:
    """The weighted loss of a batch with its gradient, its parts unweighted, and the clean estimate's error per image.

    `error_B` is the mean square of an image's clean estimate, without gradient.
    """

    total: Tensor
    parts: dict[str, Tensor]
    error_B: Tensor


@dataclass(frozen=True)
class Transport:
    """How an objective is sampled: the solver's name, its steps and their shift, and the scale of guidance.

    The adaptive solver has a tolerance in the place of steps and shift.
    """

    solver: str
    steps: int = 1
    guidance_scale: float = CONDITIONAL
    time_shift: float = 1.0
    tolerance: float = DEFAULT_TOLERANCE


def ascending(t: float) -> float:
    """Return the time that the network is told when the solver is at t: the same."""
    return t


class FlowObjective:
    """Rectified flow."""

    def __init__(self, config: ObjectiveConfig, clock: Callable[[float], float] = ascending) -> None:
        self.config = config
        self.clock = clock

    def draw(
        self,
        *,
        seed: int,
        step: int,
        first_index: int,
        shape_BTC: tuple[int, ...],
        noise: StartNoise,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Return the draws of one batch, each a pure function of (seed, step, place in the global batch)."""
        images, *shape_TC = shape_BTC
        device = noise.channels_CC.device
        generators = [keyed_generator(seed, step, first_index + row, device=device) for row in range(images)]
        u_BU = torch.stack([torch.rand(2, generator=generator, device=device) for generator in generators])
        t_B = times(
            u_BU[:, 0],
            distribution=self.config.time,
            share_at_zero=self.config.share_at_zero,
            beta=self.config.time_beta,
            first_index=first_index,
        )
        x_0_BTC = torch.zeros(shape_BTC, device=device, dtype=dtype)
        noisy = [row for row, t in enumerate(t_B.tolist()) if t > 0 or self._noise_acts_at_zero]
        if noisy:
            white = [torch.randn(shape_TC, generator=generators[row], device=device) for row in noisy]
            x_0_BTC[noisy] = noise.color(torch.stack(white).to(dtype))
        return Draws(t_B, x_0_BTC, u_BU[:, 1] >= self.config.condition_dropout)

    @property
    def _noise_acts_at_zero(self) -> bool:
        config = self.config
        clean_alone = config.prediction == "clean" and config.velocity_weight == 0
        return not (config.time_gate and clean_alone)

    def loss(self, network: Network, source_BSE: Tensor, x_1_BTC: Tensor, draws: Draws) -> Loss:
        """Return the loss of a batch."""
        condition = network.encode_condition(source_BSE, draws.keep_B)
        x_t_BTC = path.interpolate(draws.x_0_BTC, x_1_BTC, draws.t_B)
        clean_BTC, v_BTC = self.predict(network, x_t_BTC, draws.t_B, condition)
        extra_BTC = self.clean_estimate_of_extra_losses(clean_BTC, x_t_BTC, v_BTC, draws.t_B)
        parts: dict[str, Callable[[], Tensor]] = {
            "clean": lambda: _mean_square(clean_BTC, x_1_BTC),
            "velocity": lambda: _mean_square(v_BTC, path.velocity(draws.x_0_BTC, x_1_BTC)),
            "semantic": lambda: _mean_square(extra_BTC, x_1_BTC),
            "cosine": lambda: _cosine_distance(extra_BTC, x_1_BTC),
            "consistency": lambda: _cosine_distance(extra_BTC.mean(1), x_1_BTC.mean(1)),
        }
        values = {part: parts[part]() for part in WEIGHTS if self.config.weight(part)}
        weighted = [self.config.weight(part) * value for part, value in values.items()]
        return Loss(torch.stack(weighted).sum(), values, _error_per_image(clean_BTC, x_1_BTC))

    def predict(
        self,
        network: Network,
        x_t_BTC: Tensor,
        t_B: Tensor,
        condition: Any,
        minimum_remaining: float = path.MINIMUM_REMAINING,
    ) -> tuple[Tensor, Tensor]:
        """Return the clean estimate and the velocity at `x_t_BTC`."""
        seen_BTC = path.gated(x_t_BTC, t_B) if self.config.time_gate else x_t_BTC
        output_BTC = network(seen_BTC, t_B, condition).to(x_t_BTC.dtype)
        if self.config.prediction == "clean":
            return output_BTC, path.velocity_from_clean(output_BTC, x_t_BTC, t_B, minimum_remaining)
        return path.clean_estimate(x_t_BTC, output_BTC, t_B), output_BTC

    def clean_estimate_of_extra_losses(
        self, clean_BTC: Tensor, x_t_BTC: Tensor, v_BTC: Tensor, t_B: Tensor
    ) -> Tensor:
        """Return the clean estimate that the semantic, cosine and consistency parts look at."""
        return clean_BTC

    def sample(
        self,
        network: Network,
        condition: Any,
        null_condition: Any | None,
        x_0_BTC: Tensor,
        transport: Transport,
    ) -> Tensor:
        """Carry `x_0_BTC` to the data end; the adaptive solver takes one image at a time.

        `null_condition` is needed for guidance only.
        """

        def velocity_under(encoded: Any) -> Callable[[Tensor, float], Tensor]:
            def velocity(x_BTC: Tensor, t: float) -> Tensor:
                t_1 = torch.full((1,), self.clock(t), device=x_BTC.device, dtype=x_BTC.dtype)
                return self.predict(network, x_BTC, t_1, encoded, path.MINIMUM_REMAINING_SAMPLED)[1]

            return velocity

        field = guided(velocity_under(condition), velocity_under(null_condition), transport.guidance_scale)
        if transport.solver == ADAPTIVE:
            return integrate_adaptively(field, x_0_BTC, transport.tolerance)
        return integrate(field, x_0_BTC, time_grid(transport.steps, transport.time_shift), transport.solver)


class RegressionObjective:
    """Mean square error of the same network at x = 0 and t = 0."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def draw(
        self,
        *,
        seed: int,
        step: int,
        first_index: int,
        shape_BTC: tuple[int, ...],
        noise: StartNoise,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Return zeros: a regression draws nothing and keeps every condition."""
        images, device = shape_BTC[0], noise.channels_CC.device
        kept_B = torch.ones(images, dtype=torch.bool, device=device)
        return Draws(
            torch.zeros(images, device=device), torch.zeros(shape_BTC, device=device, dtype=dtype), kept_B
        )

    def loss(self, network: Network, source_BSE: Tensor, x_1_BTC: Tensor, draws: Draws) -> Loss:
        """Return the mean square error of a batch, also as its only part."""
        condition = network.encode_condition(source_BSE, draws.keep_B)
        clean_BTC = network(draws.x_0_BTC, draws.t_B, condition).to(x_1_BTC.dtype)
        loss = _mean_square(clean_BTC, x_1_BTC)
        return Loss(loss, {"clean": loss}, _error_per_image(clean_BTC, x_1_BTC))

    def sample(
        self,
        network: Network,
        condition: Any,
        null_condition: Any | None,
        x_0_BTC: Tensor,
        transport: Transport,
    ) -> Tensor:
        """Return the network's estimate; start noise and solver have no say in it."""
        return network(torch.zeros_like(x_0_BTC), x_0_BTC.new_zeros(1), condition).to(x_0_BTC.dtype)


Objective = FlowObjective | RegressionObjective


def _mean_square(estimate: Tensor, target: Tensor) -> Tensor:
    return (estimate - target).square().mean()


@torch.no_grad()
def _error_per_image(estimate_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    return (estimate_BTC - target_BTC).square().mean(dim=(1, 2))


def _cosine_distance(estimate: Tensor, target: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(estimate, target, dim=-1).mean()


def _one_of(name: str, value: str, offered: tuple[str, ...]) -> None:
    if value not in offered:
        raise ValueError(f"{name} is {value!r}, expected one of {list(offered)}; choose one of these")


def _within(name: str, value: float, upper: float) -> None:
    if not 0 <= value <= upper:
        raise ValueError(f"{name} is {value}, expected a number from 0 to {upper}; correct it")
