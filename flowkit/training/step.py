"""One step of training: draw, loss, gradient, clip, update, average.

A step whose loss or gradient is not finite changes nothing and is counted. Gradients are clipped to a global norm;
the average of the weights follows them by w_ema <- d w_ema + (1 - d) w, with a smaller d in the first steps.

Shapes: B images, T tokens, E source width, C target width.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowkit.flow.objective import Objective
from flowkit.model.dit import DiT
from flowkit.training.optimizer import Optimizers
from flowkit.translator import Statistics


@dataclass(frozen=True)
class StepResult:
    """What one step measured. `applied` is false for a non-finite step, which changed nothing."""

    loss: float
    parts: dict[str, float]
    grad_norm: float
    applied: bool


class WeightAverage:
    """A second network whose parameters are the exponential moving average of the first one's."""

    def __init__(self, network: DiT, decay: float) -> None:
        self._decay = decay
        self._live: list[Tensor] = list(network.parameters())
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the live weights after step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), self._live, 1 - decay)


class TrainingStep:
    """Everything one step needs. Call it with a batch at raw scale."""

    def __init__(
        self,
        network: DiT,
        objective: Objective,
        statistics: Statistics,
        optimizers: Optimizers,
        average: WeightAverage,
        *,
        seed: int,
        clip_norm: float,
        precision: str,
    ) -> None:
        self._network = network
        self._objective = objective
        self._statistics = statistics
        self._optimizers = optimizers
        self._average = average
        self._seed = seed
        self._clip_norm = clip_norm
        self._precision = precision
        self._parameters = list(network.parameters())

    def __call__(
        self,
        step: int,
        source_BTE: Tensor,
        target_BTC: Tensor,
        *,
        learning_rate_factor: float,
        first_index: int = 0,
    ) -> StepResult:
        """Train on one batch; `first_index` is the place of its first image in the global batch."""
        statistics = self._statistics
        device = statistics.target_mean_TC.device
        x_1_BTC = statistics.target.apply(target_BTC.to(device, non_blocking=True).float())
        draws = self._objective.draw(
            seed=self._seed,
            step=step,
            first_index=first_index,
            shape_BTC=tuple(x_1_BTC.shape),
            noise=statistics.noise,
        )
        with autocast(self._precision, device):
            source_BTE = statistics.source.apply(source_BTE.to(device, non_blocking=True).float())
            loss, parts = self._objective.loss(self._network, source_BTE, x_1_BTC, draws)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        grad_norm = float(nn.utils.clip_grad_norm_(self._parameters, self._clip_norm))
        applied = math.isfinite(loss.item()) and math.isfinite(grad_norm)
        if applied:
            self._optimizers.step(learning_rate_factor)
            self._average.update(step)
        return StepResult(
            loss.item(), {name: part.item() for name, part in parts.items()}, grad_norm, applied
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the network runs in `precision` ("fp32" or "bf16")."""
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise ValueError(f"precision is {precision!r}, expected 'fp32' or 'bf16'; choose one of these")
