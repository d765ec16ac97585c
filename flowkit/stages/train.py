"""Stage `train`: one run, from paired tokens to a checkpoint.

model.safetensors, statistics.safetensors, config.json   see flowkit.translator
metrics.jsonl                                            one line per step; holds times, so it is not tracked
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flowkit.features.loader import PairedTokens
from flowkit.flow.objective import ObjectiveConfig
from flowkit.model.dit import DiTConfig
from flowkit.model.sizes import SIZES
from flowkit.progress import Progress, logger
from flowkit.stages.device import best_device
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import Spec, open_session
from flowkit.training.loop import TrainingConfig, train

METRICS = "metrics.jsonl"


def run(spec: Spec) -> None:
    """Commit the checkpoint of `target.run`."""
    dataset, name = spec.target["dataset"], spec.target["run"]
    pairs_folder = spec.places.pairs(dataset, spec.target["source"], spec.target["target"])
    with open_session(spec, spec.places.train(name), [pairs_folder]) as session:
        if session.is_done:
            return
        data, settings = spec.values["data"], dict(spec.values["objective"])
        held_out = data["validation_shards"]
        training = open_pairs(spec, dataset, layout=data["layout"], tars=slice(0, -held_out))
        validation = open_pairs(spec, dataset, layout=data["layout"], tars=slice(-held_out, None))
        feature_scale = settings.pop("feature_scale")
        config = TrainingConfig(**spec.values["train"], shuffle=data["shuffle"])
        progress = Progress(f"train {name}", config.steps, "step")
        done = 0

        def report(line: dict[str, Any]) -> None:
            nonlocal done
            progress.advance(line["step"] - done)
            done = line["step"]
            if "validation_r2" in line:
                logger.info("run=%s %s", name, " ".join(f"{key}={value}" for key, value in line.items()))

        result = train(
            config,
            ObjectiveConfig(**settings),
            _model_config(spec.values["model"], training),
            training,
            validation,
            session.work,
            feature_scale=feature_scale,
            report=report,
            device=best_device(),
        )
        progress.close()
        session.record.rates["samples_per_s"] = progress.rate * config.batch_size
        counts = {key: value for key, value in asdict(result).items() if key != "folder"}
        session.commit(counts, untracked=(METRICS,), folder=result.folder)


def _model_config(model: dict[str, Any], data: PairedTokens) -> DiTConfig:
    """Return the network's shapes: its size from the configuration, tokens and grid from the stores."""
    size = SIZES[model["size"]]
    if model["adapter_layers"] is not None:
        size = {**size, "adapter_layers": model["adapter_layers"]}
    source_tokens, source_width = data.source_shape
    target_tokens, target_width = data.target_shape
    return DiTConfig(
        architecture=model["architecture"],
        source_tokens=source_tokens,
        source_width=source_width,
        target_tokens=target_tokens,
        target_width=target_width,
        grid=data.grid,
        has_cls=target_tokens == data.grid[0] * data.grid[1] + 1,
        cross_attention=model["cross_attention"],
        aligned_condition=model["aligned_condition"],
        head=model["head"],
        **size,
    )
