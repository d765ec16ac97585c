"""Train a translator: statistics, steps, validation, checkpoints, the final folder.

    work/statistics.safetensors   fitted once          work/checkpoints/step-*/   the last two states
    work/metrics.jsonl            one line per step    work/final/                the trained translator + metrics.jsonl

Batches, noise, times and dropped conditions are pure functions of (seed, step, place in the batch), so a killed
training that is started again in the same `work` gives the same bytes as one that ran through.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from flowkit.errors import TrainingError
from flowkit.flow.objective import ObjectiveConfig
from flowkit.flow.registry import build_objective
from flowkit.model.dit import DiTConfig
from flowkit.training.checkpoint import TrainingState, copy_into, load_newest, save_state
from flowkit.training.metrics import MetricsLog, validate
from flowkit.training.optimizer import build_optimizers
from flowkit.training.schedule import learning_rate_factor
from flowkit.training.statistics import PairedFeatures, fit_statistics
from flowkit.training.step import StepResult, TrainingStep, WeightAverage
from flowkit.translator import Statistics, Translator, build_network

SKIPPED_STEPS_LIMIT = 20
"""Training stops when this many steps were not finite: the data or the learning rate is wrong."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. Counts are in steps unless a name says otherwise."""

    steps: int
    batch_size: int
    optimizer: str
    muon_learning_rate: float
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


class TrainingData(PairedFeatures, Protocol):
    """Paired features that can be read as an endless sequence of batches from any step on."""

    def batches(
        self, *, seed: int, batch_size: int, start_step: int, shuffle: Any, device: torch.device | str
    ) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """Yield (step, ids, source, target), which are valid until the next item is asked for."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """The folder of the trained translator, and what was measured last."""

    folder: Path
    steps: int
    skipped_steps: int
    validation_tok_cos: float
    validation_r2: float


def train(
    config: TrainingConfig,
    objective: ObjectiveConfig,
    model_config: DiTConfig,
    data: TrainingData,
    validation: PairedFeatures,
    work: Path,
    *,
    feature_scale: str,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    device: torch.device | str = "cpu",
) -> TrainingResult:
    """Train in `work`, going on from its newest checkpoint, and return the finished folder.

    `report` gets every line of metrics.jsonl. Raises `TrainingError` after too many non-finite steps or if the data
    does not have the shapes of `model_config`, `CheckpointError` for checkpoints of another training.
    """
    _check_shapes(model_config, data)
    work.mkdir(parents=True, exist_ok=True)
    run = _Run(config, objective, model_config, data, work, feature_scale, torch.device(device))
    metrics = MetricsLog(work / "metrics.jsonl", restored_step=run.step)
    batches = data.batches(
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=run.step,
        shuffle=config.shuffle,
        device=device,
    )
    measured: dict[str, float] = {}
    while run.step < config.steps:
        _, _, source_BTE, target_BTC = next(batches)
        line = run.advance(source_BTE, target_BTC)
        measured = {}
        if run.step % config.evaluate_every == 0 or run.step == config.steps:
            measured = validate(
                run.translator, validation, images=config.validation_samples, seed=config.seed
            )
        metrics.append(line | measured)
        report(line | measured)
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save()
    if not measured:  # the earlier process ended between its last checkpoint and the final folder
        measured = validate(run.translator, validation, images=config.validation_samples, seed=config.seed)
    folder = _finish(run.translator, work)
    return TrainingResult(folder, run.step, run.skipped_steps, **measured)


class _Run:
    """The live state of a training: network, optimizers, average, counters."""

    def __init__(
        self,
        config: TrainingConfig,
        objective: ObjectiveConfig,
        model_config: DiTConfig,
        data: TrainingData,
        work: Path,
        feature_scale: str,
        device: torch.device,
    ) -> None:
        self._config = config
        self._checkpoints = work / "checkpoints"
        statistics = _statistics(data, work, feature_scale=feature_scale, start_noise=objective.start_noise)
        statistics = statistics.to(device)
        self._network = build_network(model_config, seed=config.seed).to(device)
        self._average = WeightAverage(self._network, config.ema_decay)
        self._optimizers = build_optimizers(
            self._network,
            kind=config.optimizer,
            muon_learning_rate=config.muon_learning_rate,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._step = TrainingStep(
            self._network,
            build_objective(objective),
            statistics,
            self._optimizers,
            self._average,
            seed=config.seed,
            clip_norm=config.clip_norm,
            precision=config.precision,
        )
        self.translator = Translator(
            self._average.network, model_config, objective, feature_scale, statistics
        )
        self.step, self.skipped_steps, self._seconds = 0, 0, 0.0
        self._restore()

    def advance(self, source_BTE: Tensor, target_BTC: Tensor) -> dict[str, Any]:
        """Take one step and return its line of metrics."""
        config, started = self._config, time.perf_counter()
        factor = learning_rate_factor(
            self.step,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            final_share=config.final_learning_rate_share,
        )
        result = self._step(self.step, source_BTE, target_BTC, learning_rate_factor=factor)
        if not result.applied:
            self._count_skipped(result)
        self.step += 1
        elapsed = time.perf_counter() - started
        self._seconds += elapsed
        return {
            "step": self.step,
            "loss": _finite(result.loss),
            **{f"loss_{name}": _finite(value) for name, value in result.parts.items()},
            "grad_norm": _finite(result.grad_norm),
            "learning_rate": factor * config.learning_rate,
            "skipped_steps": self.skipped_steps,
            "seconds": round(self._seconds, 4),
            "samples_per_s": round(len(source_BTE) / elapsed, 1),
        }

    def save(self) -> None:
        """Write a checkpoint of the state after the last step."""
        network = {f"network/{name}": tensor for name, tensor in self._network.named_parameters()}
        average = {f"average/{name}": tensor for name, tensor in self._average.network.named_parameters()}
        optimizers = {f"optimizer/{name}": tensor for name, tensor in self._optimizers.tensors().items()}
        counters = {"skipped_steps": self.skipped_steps, "seconds": self._seconds}
        save_state(self._checkpoints, TrainingState(self.step, counters, network | average | optimizers))

    def _restore(self) -> None:
        state = load_newest(self._checkpoints)
        if state is None:
            return
        copy_into(dict(self._network.named_parameters()), state.tensors, "network/")
        copy_into(dict(self._average.network.named_parameters()), state.tensors, "average/")
        prefix = "optimizer/"
        self._optimizers.restore(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in state.tensors.items()
                if name.startswith(prefix)
            }
        )
        self.step = state.step
        self.skipped_steps = state.counters["skipped_steps"]
        self._seconds = state.counters["seconds"]
        log.info("training resumed step=%d", self.step)

    def _count_skipped(self, result: StepResult) -> None:
        self.skipped_steps += 1
        log.warning("step=%d skipped loss=%s grad_norm=%s", self.step + 1, result.loss, result.grad_norm)
        if self.skipped_steps > SKIPPED_STEPS_LIMIT:
            raise TrainingError(
                f"{self.skipped_steps} steps had a loss or gradient that is not finite (the last one: step "
                f"{self.step + 1}, loss {result.loss}, gradient norm {result.grad_norm}), expected at most "
                f"{SKIPPED_STEPS_LIMIT}; lower the learning rate or verify the feature stores"
            )


def _statistics(data: PairedFeatures, work: Path, *, feature_scale: str, start_noise: str) -> Statistics:
    file = work / "statistics.safetensors"
    if not file.exists():
        fitted = fit_statistics(data, feature_scale=feature_scale, start_noise=start_noise)
        partial = file.with_suffix(".partial")
        partial.write_bytes(save(fitted.tensors()))
        os.replace(partial, file)
    return Statistics.from_tensors(load_file(file))


def _finish(translator: Translator, work: Path) -> Path:
    final, partial = work / "final", work / "final.partial"
    for folder in (partial, final):
        shutil.rmtree(folder, ignore_errors=True)
    translator.save(partial)
    shutil.copyfile(work / "metrics.jsonl", partial / "metrics.jsonl")
    partial.rename(final)
    return final


def _check_shapes(config: DiTConfig, data: PairedFeatures) -> None:
    for name, found, expected in (
        ("source", data.source_shape, (config.source_tokens, config.source_width)),
        ("target", data.target_shape, (config.target_tokens, config.target_width)),
    ):
        if tuple(found) != expected:
            raise TrainingError(
                f"{name} features have shape {tuple(found)}, the network expects {expected} (tokens, channels); "
                "extract them again or correct the token layout"
            )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
