"""The live state of a training: network, optimizers, average, counters, and how all of it is saved and restored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkit.errors import CheckpointError, TrainingError
from flowkit.flow.objective import ObjectiveConfig
from flowkit.flow.registry import build_objective
from flowkit.model.config import DiTConfig
from flowkit.training.average import WeightAverage
from flowkit.training.checkpoint import TrainingState, copy_into, load_newest, save_state
from flowkit.training.clipping import AdaptiveClip
from flowkit.training.optimizer import build_optimizers
from flowkit.training.parallel import BatchLoss, compile_blocks, distribute, is_sharded
from flowkit.training.rates import matrix_rate, peak_memory_mb, training_flops_per_image
from flowkit.training.schedule import learning_rate_factor
from flowkit.training.step import TIME_EDGES, TrainingStep
from flowkit.training.world import World
from flowkit.translator import Statistics, Translator, build_network

CHANGE_NO_COURSE = (
    "evaluate_every",
    "checkpoint_every",
    "validation_samples",
    "gradient_accumulation",
    "activation_checkpointing",
    "compile",
    "parallel",
)
"""Settings that a training may be resumed with in another value."""
ERROR_NAMES = ("error_t_0", *(f"error_t_below_{edge + 0.25:.2f}" for edge in TIME_EDGES))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. Counts are in steps unless a name says otherwise."""

    steps: int
    batch_size: int
    optimizer: str
    muon_learning_rate: float
    muon_momentum: float
    learning_rate: float
    warmup_steps: int
    final_learning_rate_share: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    precision: str
    seed: int
    evaluate_every: int
    checkpoint_every: int
    validation_samples: int
    shuffle: str = "random"
    adaptive_clipping: bool = True
    gradient_accumulation: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: str = "auto"


class Run:
    """A training in progress; `step` steps are done."""

    def __init__(
        self,
        config: TrainingConfig,
        objective_config: ObjectiveConfig,
        model_config: DiTConfig,
        statistics: Statistics,
        feature_scale: str,
        checkpoints: Path,
        world: World,
    ) -> None:
        """Build everything in every process of `world`, or restore it from the newest of `checkpoints`."""
        self._config, self._checkpoints, self.world = config, checkpoints, world
        self._identity = identity_of(config, objective_config, model_config, feature_scale)
        self._device = torch.device(world.device)
        _check_batch(config, world)
        self._network = build_network(model_config, seed=config.seed).to(self._device)
        self.average = WeightAverage(self._network, config.ema_decay)
        self._network.recompute_blocks(config.activation_checkpointing)
        objective = build_objective(objective_config)
        shard = is_sharded(self._network, world, config.parallel)
        loss = distribute(BatchLoss(self._network, objective), world, shard=shard)
        if shard:
            self.average.follow_shards(self._network, keep_whole=world.is_first)
        if config.compile:
            compile_blocks(self._network)
        self._optimizers = build_optimizers(
            self._network,
            kind=config.optimizer,
            muon_learning_rate=config.muon_learning_rate,
            muon_momentum=config.muon_momentum,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._step = TrainingStep(
            loss,
            objective,
            statistics,
            self._optimizers,
            self.average,
            seed=config.seed,
            clip=AdaptiveClip(config.clip_norm, config.adaptive_clipping),
            precision=config.precision,
            micro_batches=config.gradient_accumulation,
            world=world,
        )
        self.translator = Translator(
            self.average.network, model_config, objective_config, feature_scale, statistics
        )
        self._peak = matrix_rate(self._device, config.precision)
        self._flops = training_flops_per_image(model_config) * config.batch_size // world.size
        self.step, self.skipped_steps, self.just_skipped, self._seconds = 0, 0, False, 0.0
        self.best_step, self.best_r2 = 0, -math.inf
        self._restore()

    def advance(
        self, source_BTE: Tensor, target_BTC: Tensor, *, started: float | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        """Take one step; returns its line of metrics and the rows of this process's batch that are not finite.

        `started` is the `time.perf_counter()` from which the step counts, so that waiting for data is part of it.
        """
        config, started = self._config, time.perf_counter() if started is None else started
        factor = learning_rate_factor(
            self.step,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            final_share=config.final_learning_rate_share,
        )
        result = self._step(self.step, source_BTE, target_BTC, learning_rate_factor=factor)
        self.just_skipped = not (result.applied or result.overflow)
        self.skipped_steps += self.just_skipped
        self.step += 1
        elapsed = time.perf_counter() - started
        self._seconds += elapsed
        line = {
            "step": self.step,
            "loss": _finite(result.loss),
            **{f"loss_{name}": _finite(value) for name, value in result.parts.items()},
            **dict(zip(ERROR_NAMES, map(_finite, result.error_by_time), strict=True)),
            "grad_norm": _finite(result.grad_norm),
            "clip_limit": result.clip_limit,
            "loss_scale": self._step.loss_scale.scale,
            "learning_rate": factor * config.learning_rate,
            "muon_learning_rate": factor * config.muon_learning_rate if config.optimizer == "muon" else None,
            "skipped_steps": self.skipped_steps,
            "seconds": round(self._seconds, 4),
            "samples_per_s": round(config.batch_size / elapsed, 1),
            "share_of_peak": round(self._flops / elapsed / self._peak, 4),
            "memory_mb": round(peak_memory_mb(self._device)),
        }
        return line, result.broken_rows

    def is_best(self, r2: float) -> bool:
        """Whether `r2` is the best so far, which is remembered; ties keep the earlier step."""
        r2 = r2 if math.isfinite(r2) else -math.inf
        is_best = self.best_step == 0 or r2 > self.best_r2
        if is_best:
            self.best_step, self.best_r2 = self.step, r2
        return is_best

    def save(self) -> None:
        """Write a checkpoint of the state after the last step; every process must call it."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "network": dict(self._network.named_parameters()),
            "average": self.average.tensors(),
            "optimizer": self._optimizers.tensors(),
        }
        tensors = {  # one after the other, so that no process but the first holds more than one whole tensor
            f"{part}/{name}": self.world.kept_by_first(tensor)
            for part, named in parts.items()
            for name, tensor in named.items()
        }
        counters = {
            "skipped_steps": self.skipped_steps,
            "seconds": self._seconds,
            "best_step": self.best_step,
            "best_r2": _finite(self.best_r2),
            "clip": self._step.clip.state(),
            "loss_scale": self._step.loss_scale.state(),
            "identity": self._identity,
        }
        if self.world.is_first:
            save_state(self._checkpoints, TrainingState(self.step, counters, tensors))
        self.world.from_first(None)  # nobody goes on before it is on the disk

    def _restore(self) -> None:
        state = load_newest(self._checkpoints)
        if state is None:
            return
        _check_identity(self._identity, state.counters.get("identity"), self._checkpoints)
        copy_into(dict(self._network.named_parameters()), state.tensors, "network/")
        copy_into(self.average.tensors(), state.tensors, "average/")
        self._optimizers.restore(
            {
                name.removeprefix("optimizer/"): tensor
                for name, tensor in state.tensors.items()
                if name.startswith("optimizer/")
            }
        )
        self.step = state.step
        counters = state.counters
        self.skipped_steps, self._seconds = counters["skipped_steps"], counters["seconds"]
        self.best_step = counters["best_step"]
        self.best_r2 = -math.inf if counters["best_r2"] is None else counters["best_r2"]
        self._step.clip.restore(counters["clip"])
        self._step.loss_scale.restore(counters["loss_scale"])
        log.info("training resumed step=%d", self.step)


def identity_of(
    config: TrainingConfig, objective_config: ObjectiveConfig, model_config: DiTConfig, feature_scale: str
) -> dict[str, Any]:
    """Return everything that fixes the course of a training, as its checkpoints carry it."""
    course = {name: value for name, value in asdict(config).items() if name not in CHANGE_NO_COURSE}
    training = course | {"feature_scale": feature_scale}
    return {"network": asdict(model_config), "objective": asdict(objective_config), "training": training}


def _check_batch(config: TrainingConfig, world: World) -> None:
    parts = world.size * config.gradient_accumulation
    if config.batch_size % parts:
        raise TrainingError(
            f"train.batch_size={config.batch_size} does not divide into {world.size} processes with "
            f"gradient_accumulation={config.gradient_accumulation}; choose a multiple of {parts}"
        )


def _check_identity(wanted: dict[str, Any], found: Any, checkpoints: Path) -> None:
    """Raise `CheckpointError` naming the first setting in which a checkpoint is of another training."""
    for part, values in wanted.items():
        for name, value in values.items():
            other = (found or {}).get(part, {}).get(name)
            if other != (list(value) if isinstance(value, tuple) else value):
                raise CheckpointError(
                    f"the checkpoints in {checkpoints} are of another training: {part} {name} is {other!r} there, "
                    f"{value!r} here; train in another folder, or remove them to train from the start"
                )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
