"""Stage `train`: one run, from paired tokens to a checkpoint.

model.safetensors, statistics.safetensors, config.json   see flowkit.translator
best/                                                    the same at the best evaluation on held-out tars
metrics.jsonl                                            one line per step; holds times, so it is not tracked
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from flowkit.flow.objective import ObjectiveConfig
from flowkit.model.config import DiTConfig
from flowkit.model.sizes import SIZES
from flowkit.paths import HEAD
from flowkit.progress import Progress, logger
from flowkit.runtime import stop_requested
from flowkit.stages.device import best_device
from flowkit.stages.paired import open_pairs, open_training_pairs
from flowkit.stages.session import Spec, committed, open_session
from flowkit.stages.training_inputs import needs_head, training_inputs
from flowkit.training.loop import TrainingResult, train
from flowkit.training.run import TrainingConfig
from flowkit.training.world import World, joined_world

METRICS = "metrics.jsonl"


def run(spec: Spec) -> None:
    """Commit the checkpoint of `target.run`; several processes, started by torchrun or a cluster, train it together."""
    with joined_world(best_device()) as world:
        if not world.is_first:
            if (work := world.from_first(None)) is not None:
                _train(spec, Path(work), world, lambda line: None)
            return
        _commit(spec, world)


def _commit(spec: Spec, world: World) -> None:
    name, batch = spec.target["run"], spec.values["train"]["batch_size"]
    folder = spec.places.train(name)
    with open_session(spec, folder, training_inputs(spec)) as session:
        if session.is_done:
            world.from_first(None)
            return
        world.from_first(str(session.work))
        progress: Progress | None = None

        def report(line: dict[str, Any], steps: int) -> None:
            nonlocal progress
            if progress is None:
                progress = Progress(f"train {name}", steps, "step", done=line["step"] - 1)
            progress.advance()
            if "validation_r2" in line:
                logger.info("run=%s %s", name, " ".join(f"{key}={value}" for key, value in line.items()))

        result = _train(spec, session.work, world, report)
        if progress is not None:
            progress.close()
            session.record.rates["samples_per_s"] = progress.rate * batch
        counts = {key: value for key, value in asdict(result).items() if key != "folder"}
        session.commit(counts, untracked=(METRICS,), folder=result.folder)


def _train(
    spec: Spec, work: Path, world: World, report: Callable[[dict[str, Any], int], None]
) -> TrainingResult:
    dataset, data = spec.target["dataset"], spec.values["data"]
    held_out = data["validation_shards"]
    by_view = spec.values["model"]["views"] == "single"
    training = open_training_pairs(spec, dataset, by_view=by_view)
    validation = open_pairs(spec, dataset, tars=slice(-held_out, None), by_view=by_view)
    objective, settings = dict(spec.values["objective"]), dict(spec.values["train"])
    feature_scale = objective.pop("feature_scale")
    objective["time_beta"] = tuple(objective["time_beta"])
    if (epochs := settings.pop("epochs")) is not None:
        settings["steps"] = max(1, round(epochs * (len(training) // settings["batch_size"])))
    norm_weight = None
    if needs_head(spec):
        norm_weight = load_file(committed(spec.places.head(spec.target["target"]))[0] / HEAD)["norm.weight"]
    return train(
        TrainingConfig(**settings, shuffle=data["shuffle"]),
        ObjectiveConfig(**objective),
        model_config(
            spec.values["model"],
            source_shape=training.source_shape,
            target_shape=training.target_shape,
            grid=training.grid,
            views=training.views,
        ),
        training,
        validation,
        work,
        feature_scale=feature_scale,
        norm_weight_C=norm_weight,
        report=lambda line: report(line, settings["steps"]),
        world=world,
        stop_requested=stop_requested,
    )


def model_config(
    model: dict[str, Any],
    *,
    source_shape: tuple[int, int],
    target_shape: tuple[int, int],
    grid: tuple[int, int],
    views: int = 1,
) -> DiTConfig:
    """Return the network's shapes: its size from the configuration, tokens (T, D), grid and views from the stores."""
    size = SIZES[model["size"]]
    if model["adapter_layers"] is not None:
        size = {**size, "adapter_layers": model["adapter_layers"]}
    source_tokens, source_width = source_shape
    target_tokens, target_width = target_shape
    return DiTConfig(
        architecture=model["architecture"],
        source_tokens=source_tokens,
        source_width=source_width,
        target_tokens=target_tokens,
        target_width=target_width,
        grid=grid,
        has_cls=target_tokens == views * (grid[0] * grid[1] + 1),
        cross_attention=model["cross_attention"],
        aligned_condition=model["aligned_condition"],
        head=model["head"],
        views=views,
        **size,
    )
