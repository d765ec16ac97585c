"""Train a translator: statistics, steps, validation, checkpoints, the final folder.

    work/statistics-*.safetensors  fitted once         work/checkpoints/step-*/  the last two states
    work/metrics.jsonl             one line per step   work/best/                the best on held-out images
    work/final/                    the trained translator, best/ and metrics.jsonl

Batches, noise, times and dropped conditions are pure functions of (seed, step, place in the batch), so a killed
training that is started again in the same `work` gives the same bytes as one that ran through. Several processes see
slices of the same batches; the first one validates and writes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flowkit.errors import TrainingError, TrainingInterrupted
from flowkit.flow.objective import ObjectiveConfig
from flowkit.model.config import DiTConfig
from flowkit.training.checkpoint import write_durably
from flowkit.training.metrics import MetricsLog, validate
from flowkit.training.run import Run, TrainingConfig
from flowkit.training.statistics import NAMED_KEYS, PairedFeatures, fit_statistics
from flowkit.training.world import World
from flowkit.translator import Statistics, Translator

SKIPPED_STEPS_LIMIT = 20
"""Training stops when this many steps were not finite: the data or the learning rate is wrong."""

log = logging.getLogger(__name__)


class TrainingData(PairedFeatures, Protocol):
    """Paired features that can be read as an endless sequence of batches from any step on."""

    def batches(
        self,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        rank: int,
        world_size: int,
        shuffle: Any,
        device: torch.device | str,
    ) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """Yield (step, ids, source, target) of this rank, which are valid until the next item is asked for."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """The folder of the trained translator, and what was measured last and at best."""

    folder: Path
    steps: int
    skipped_steps: int
    validation_tok_cos: float
    validation_r2: float
    best_step: int
    best_validation_r2: float


def train(
    config: TrainingConfig,
    objective: ObjectiveConfig,
    model_config: DiTConfig,
    data: TrainingData,
    validation: PairedFeatures,
    work: Path,
    *,
    feature_scale: str,
    norm_weight_C: Tensor | None = None,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    world: World | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train in `work`, going on from its newest checkpoint, and return the finished folder.

    Every process of `world` calls it with the same arguments; without one, this process trains alone on the CPU.
    `norm_weight_C` is the weight of the target tower's final norm, for the feature scale "target_norm". `report` gets
    every line of metrics.jsonl. Once `stop_requested` says so in any process, all of them write a checkpoint after the
    same step and raise `TrainingInterrupted`. Raises `TrainingError` after too many non-finite steps or if the data do
    not have the shapes of `model_config`, `CheckpointError` for checkpoints of another training.
    """
    world = world or World()
    _check_shapes(model_config, data)
    _check_rank(model_config, objective)
    work.mkdir(parents=True, exist_ok=True)
    statistics = _statistics(
        data,
        work,
        world,
        feature_scale=feature_scale,
        start_noise=objective.start_noise,
        norm_weight_C=norm_weight_C,
    )
    run = Run(config, objective, model_config, statistics, feature_scale, work / "checkpoints", world)
    metrics = MetricsLog(work / "metrics.jsonl", restored_step=run.step) if world.is_first else None
    batches = data.batches(
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=run.step,
        rank=world.rank,
        world_size=world.size,
        shuffle=config.shuffle,
        device=world.device,
    )
    measured: dict[str, float] = {}
    while run.step < config.steps:
        started = time.perf_counter()
        _, ids, source_BTE, target_BTC = next(batches)
        line, broken_rows = run.advance(source_BTE, target_BTC, started=started)
        _check_skipped(run, line, data.keys(ids[broken_rows]))
        measured = {}
        if run.step % config.evaluate_every == 0 or run.step == config.steps:
            measured = _measure(run, validation, config, work)
        if metrics is not None:
            metrics.append(line | measured)
            report(line | measured)
        is_stopped = run.step < config.steps and run.world.any_of(stop_requested())
        if is_stopped or run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save()
        if is_stopped:
            raise TrainingInterrupted(
                f"asked to stop: step {run.step} of {config.steps} is saved, start again to go on"
            )
    if not measured:  # the earlier process ended between its last checkpoint and the final folder
        measured = _measure(run, validation, config, work)
    folder = work / "final"
    if world.is_first:
        _finish(run.translator, work, folder)
    return TrainingResult(
        folder,
        run.step,
        run.skipped_steps,
        **measured,
        best_step=run.best_step,
        best_validation_r2=run.best_r2,
    )


def _measure(run: Run, validation: PairedFeatures, config: TrainingConfig, work: Path) -> dict[str, float]:
    """Validate the averaged weights, and keep them if they are the best so far."""
    run.average.gather()
    measured: dict[str, float] = {}
    if run.world.is_first:
        measured = validate(run.translator, validation, images=config.validation_samples, seed=config.seed)
    measured = run.world.from_first(measured)
    if run.is_best(measured["validation_r2"]) and run.world.is_first:
        _replace_folder(work / "best", run.translator.save)
    return measured


def _check_skipped(run: Run, line: dict[str, Any], broken_keys: list[str]) -> None:
    """Warn of a step that was not finite, and stop after too many."""
    if not run.just_skipped:
        return
    named = [key for keys in run.world.gathered(broken_keys) for key in keys]
    suspects = f"; features that are not finite: {', '.join(named[:NAMED_KEYS])}" if named else ""
    log.warning("step=%d skipped loss=%s grad_norm=%s%s", run.step, line["loss"], line["grad_norm"], suspects)
    if run.skipped_steps > SKIPPED_STEPS_LIMIT:
        raise TrainingError(
            f"{run.skipped_steps} steps had a loss or gradient that is not finite (the last one: step {run.step}, "
            f"loss {line['loss']}, gradient norm {line['grad_norm']}{suspects}), expected at most "
            f"{SKIPPED_STEPS_LIMIT}; lower the learning rate or verify the feature stores"
        )


def _statistics(
    data: PairedFeatures,
    work: Path,
    world: World,
    *,
    feature_scale: str,
    start_noise: str,
    norm_weight_C: Tensor | None,
) -> Statistics:
    file = work / f"statistics-{feature_scale}-{start_noise}.safetensors"
    if world.is_first and not _is_whole(file):
        fitted = fit_statistics(
            data, feature_scale=feature_scale, start_noise=start_noise, norm_weight_C=norm_weight_C
        )
        partial = file.with_suffix(".partial")
        write_durably(partial, save(fitted.tensors()))
        partial.replace(file)
    world.from_first(None)  # the others wait here
    return Statistics.from_tensors(load_file(file)).to(world.device)


def _is_whole(file: Path) -> bool:
    try:
        return bool(load_file(file))
    except FileNotFoundError:
        return False
    except SafetensorError as error:
        log.warning("statistics=%s damaged=%s, fitting them again", file, error)
        return False


def _finish(translator: Translator, work: Path, final: Path) -> None:
    def fill(folder: Path) -> None:
        translator.save(folder)
        shutil.copytree(work / "best", folder / "best")
        shutil.copyfile(work / "metrics.jsonl", folder / "metrics.jsonl")

    _replace_folder(final, fill)


def _replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder in place that `fill` filled, in one step."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    fill(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _check_rank(config: DiTConfig, objective: ObjectiveConfig) -> None:
    """A velocity holds the start noise in every direction, which no output of lower rank can."""
    is_narrow = config.head == "linear" and config.width < config.target_width
    if is_narrow and objective.kind == "flow" and objective.prediction == "velocity":
        raise TrainingError(
            f"a velocity of {config.target_width} channels from a network that is {config.width} wide has lower rank "
            "than the noise in it; choose objective.prediction=clean, a model.size at least as wide, or "
            "model.head=earlier for the limit of the earlier work"
        )


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
