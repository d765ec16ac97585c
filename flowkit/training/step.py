"""One step of training: draw, loss, gradient, clip, update, average.

A batch may be worked through in micro-batches whose gradients add up, and every process of a world has its own slice of
the global batch; neither changes the draws or the mean gradient. A step whose loss or gradient is not finite changes
nothing and is reported. In float16 a gradient that overflows only lowers the scale of the loss.

Shapes: B images, T tokens, E source width, C target width.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flowkit.flow.objective import Loss, Objective
from flowkit.training.average import WeightAverage
from flowkit.training.clipping import AdaptiveClip
from flowkit.training.optimizer import Optimizers
from flowkit.training.parallel import scale_gradients, total_norm, without_exchange
from flowkit.training.precision import LossScale, autocast
from flowkit.training.world import World
from flowkit.translator import Statistics

TIME_EDGES = (0.0, 0.25, 0.5, 0.75)
"""Errors are told apart at t = 0 and in quarters of (0, 1]."""


@dataclass(frozen=True)
class StepResult:
    """What one step measured over the global batch. `applied` is false for a step that changed nothing.

    `error_by_time` is the mean square of the clean estimate at t = 0 and in each quarter of (0, 1], NaN without images.
    `broken_rows` are the images of this process's slice whose features are not finite, looked for in such steps only.
    """

    loss: float
    parts: dict[str, float]
    error_by_time: list[float]
    grad_norm: float
    clip_limit: float
    applied: bool
    overflow: bool = False
    broken_rows: list[int] = field(default_factory=list)


class TrainingStep:
    """Everything one step needs. Call it with this process's slice of a batch at raw scale."""

    def __init__(
        self,
        loss: nn.Module,
        objective: Objective,
        statistics: Statistics,
        optimizers: Optimizers,
        average: WeightAverage,
        *,
        seed: int,
        clip: AdaptiveClip,
        precision: str,
        micro_batches: int = 1,
        world: World | None = None,
    ) -> None:
        """`loss` is a `BatchLoss`, alone or distributed over `world`."""
        self._loss = loss
        self._objective = objective
        self._statistics = statistics
        self._optimizers = optimizers
        self._average = average
        self._seed = seed
        self.clip = clip
        self.loss_scale = LossScale.of(precision)
        self._precision = precision
        self._micro_batches = micro_batches
        self._world = world or World()
        self._parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        self._dtype = self._parameters[0].dtype
        self._parts: list[str] = []

    def __call__(
        self, step: int, source_BTE: Tensor, target_BTC: Tensor, *, learning_rate_factor: float
    ) -> StepResult:
        """Train on one batch."""
        for parameter in self._parameters:
            parameter.grad = None
        parts = [
            self._backward(step, source_BTE, target_BTC, number) for number in range(self._micro_batches)
        ]
        sums = torch.stack(parts).sum(0)
        grad_norm = total_norm(self._parameters) / self.loss_scale.scale
        means = self._world.summed(sums) / self._world.size
        loss, norm, *rest = torch.cat((means[:1], grad_norm.to(means)[None], means[1:])).tolist()
        limit, scale = self.clip.current, self.loss_scale.scale
        applied = math.isfinite(loss) and math.isfinite(norm)
        overflow = self.loss_scale.is_overflow(loss, norm)
        if applied:
            scale_gradients(self._parameters, self.clip.share(norm) / scale)
            self._optimizers.step(learning_rate_factor)
            self._average.update(step)
        self.loss_scale.update(overflow=overflow)
        bins = len(TIME_EDGES) + 1
        values, errors, counts = rest[: -2 * bins], rest[-2 * bins : -bins], rest[-bins:]
        return StepResult(
            loss,
            dict(zip(self._parts, values, strict=True)),
            [error / count if count else math.nan for error, count in zip(errors, counts, strict=True)],
            norm,
            limit,
            applied,
            overflow,
            [] if applied or overflow else _broken_rows(source_BTE, target_BTC),
        )

    def _backward(self, step: int, source_BTE: Tensor, target_BTC: Tensor, number: int) -> Tensor:
        """Add the gradient of micro-batch `number`; returns loss, parts, errors by time and their counts."""
        statistics = self._statistics
        device = statistics.target_mean_TC.device
        images = len(source_BTE) // self._micro_batches
        rows = slice(number * images, (number + 1) * images)
        x_1_BTC = statistics.target.apply(target_BTC[rows].to(device, self._dtype, non_blocking=True))
        source_BTE = statistics.source.apply(source_BTE[rows].to(device, self._dtype, non_blocking=True))
        draws = self._objective.draw(
            seed=self._seed,
            step=step,
            first_index=self._world.rank * len(target_BTC) + rows.start,
            shape_BTC=tuple(x_1_BTC.shape),
            noise=statistics.noise,
            dtype=self._dtype,
        )
        is_last = number == self._micro_batches - 1
        with nullcontext() if is_last else without_exchange(self._loss):
            with autocast(self._precision, device):
                result: Loss = self._loss(source_BTE, x_1_BTC, draws)
            (result.total * (self.loss_scale.scale / self._micro_batches)).backward()
        self._parts = list(result.parts)
        with torch.no_grad():
            values = torch.stack([result.total, *result.parts.values()]).detach() / self._micro_batches
            return torch.cat((values, *_by_time(result.error_B, draws.t_B)))


def _by_time(error_B: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of errors at t = 0 and in each quarter of (0, 1], and how many images those are."""
    edges = torch.tensor(TIME_EDGES, device=t_B.device, dtype=t_B.dtype)
    place_B = torch.bucketize(t_B, edges)
    sums = error_B.new_zeros(len(TIME_EDGES) + 1)
    return sums.index_add(0, place_B, error_B), sums.index_add(0, place_B, torch.ones_like(error_B))


def _broken_rows(*features_BTC: Tensor) -> list[int]:
    broken_B = torch.stack([~features.isfinite().flatten(1).all(1) for features in features_BTC]).any(0)
    return broken_B.nonzero().flatten().tolist()
