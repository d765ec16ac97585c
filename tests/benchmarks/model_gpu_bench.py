"""The network on a GPU at base size: a training step at batch 128, and sampling, in bf16, by wall time.

Ours is the training step as `flowkit train` takes it: draws, figures of each step, averaged weights, compiled blocks.
The published network runs eagerly with AdamW, as it was trained, under the same autocast in the same run: forward,
backward, clipping and update. The batch is there already. Sampling takes Euler steps, one evaluation each. Shares are
of the rate that large bf16 matrix products reach on the same card in the same run.

Needs torch, numpy, safetensors and what trains alone; on a bare image
`PYTHONPATH=. python tests/benchmarks/model_gpu_bench.py` prints one JSON row per line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from model_peers import (
    OURS,
    PUBLISHED,
    Inputs,
    WholeModel,
    build,
    count_work,
    matrix_product,
    our_config,
    train_pass,
)
from published_dit import PublishedConfig
from rows import Row, processor, row
from torch import Tensor, nn

from flowkit.flow.noise import isotropic
from flowkit.flow.objective import ObjectiveConfig
from flowkit.flow.scale import FeatureScale
from flowkit.flow.solvers import integrate, time_grid
from flowkit.training.run import Run, TrainingConfig
from flowkit.training.world import World
from flowkit.translator import Statistics

SECONDS_PER_STEP_DEMANDED = 0.15
CLIP_NORM = 1.0
LEARNING_RATE = 1e-4
"""Small, so that many steps towards random targets stay finite; a step costs the same whatever the rate."""
Task = Callable[[], Any]


@dataclass(frozen=True)
class GpuBench:
    """Sizes of everything measured; the defaults are those that the bar speaks of."""

    config: PublishedConfig = field(default_factory=PublishedConfig)
    batch: int = 128
    repeats: int = 5
    steps: int = 10
    """Steps of one turn."""
    evaluations: tuple[int, ...] = (100, 8, 1)
    matrix: int = 8192
    products: int = 20
    """Matrix products of one turn."""
    device: str = "cuda"
    backend: str = "inductor"
    """What torch.compile hands the network to."""


def gpu_rows(bench: GpuBench | None = None) -> list[Row]:
    """Measure everything."""
    bench = bench or GpuBench()
    product = matrix_product(bench.matrix, bench.device, torch.bfloat16)
    rates = [2 * bench.matrix**3 / took for took in turns({"": product}, bench, times=bench.products)[""]]
    models = {side: build(side, bench.config, bench.device) for side in (OURS, PUBLISHED)}
    inputs = Inputs.make(bench.config, bench.batch, bench.device)
    found = [
        row("model on GPU, measured bf16 matrix rate, TFLOP/s", [rate / 1e12 for rate in rates], None),
        *training_rows(bench, models, inputs, rates),
        *sampling_rows(bench, models, inputs),
    ]
    name = torch.cuda.get_device_name() if bench.device == "cuda" else processor()
    return [one | {"device": name} for one in found]


def training_rows(
    bench: GpuBench, models: Mapping[str, nn.Module], inputs: Inputs, rates: list[float]
) -> list[Row]:
    """Seconds of our step, its share of the matrix rate, and how much longer the published one takes."""
    published = models[PUBLISHED]
    run = our_run(bench)
    tasks = {
        OURS: lambda: run.advance(inputs.source_BTE, inputs.target_BTC),
        PUBLISHED: training_step(
            published, torch.optim.AdamW(published.parameters(), lr=LEARNING_RATE).step, inputs
        ),
    }
    took = turns(tasks, bench, times=bench.steps)
    work = bench.batch * count_work(OURS, bench.config).forward_backward
    shares = [work / seconds / rate for seconds, rate in zip(took[OURS], rates, strict=True)]
    ratios = [slow / fast for slow, fast in zip(took[PUBLISHED], took[OURS], strict=True)]
    name = f"model on GPU, seconds per training step, batch {bench.batch}"
    return [
        row(name, took[OURS], SECONDS_PER_STEP_DEMANDED, at_most=True),
        row("model on GPU, training step, share of the matrix rate", shares, None),
        row("model on GPU, training step, published / ours, seconds", ratios, None),
    ]


def our_run(bench: GpuBench) -> Run:
    """Return a training of the default recipe, in this process alone; nothing is saved."""
    config = our_config(bench.config)
    training = TrainingConfig(
        steps=1_000_000,
        batch_size=bench.batch,
        optimizer="muon",
        muon_learning_rate=LEARNING_RATE,
        muon_momentum=0.95,
        learning_rate=LEARNING_RATE,
        warmup_steps=30,
        final_learning_rate_share=0.02,
        weight_decay=0.0,
        clip_norm=CLIP_NORM,
        ema_decay=0.99,
        precision="bf16",
        seed=0,
        evaluate_every=1,
        checkpoint_every=1,
        validation_samples=1,
        compile=bench.device == "cuda",
    )
    objective = ObjectiveConfig(
        kind="flow",
        prediction="clean",
        clean_weight=1.0,
        velocity_weight=0.0,
        semantic_weight=0.0,
        cosine_weight=0.0,
        consistency_weight=0.0,
        time="uniform",
        time_beta=(0.5, 0.5),
        share_at_zero=0.5,
        time_gate=True,
        start_noise="target_covariance",
        condition_dropout=0.0,
        clock="ascending",
    )
    statistics = Statistics(
        unit_scale(config.source_width),
        unit_scale(config.target_width),
        isotropic(config.target_tokens, config.target_width),
        torch.zeros(config.target_tokens, config.target_width),
    )
    nowhere = Path(tempfile.gettempdir()) / "flowkit-bench-without-checkpoints"
    return Run(
        training, objective, config, statistics.to(bench.device), "none", nowhere, World(device=bench.device)
    )


def unit_scale(channels: int) -> FeatureScale:
    """Return the scale that changes nothing."""
    return FeatureScale(torch.zeros(channels), torch.ones(channels))


def training_step(model: nn.Module, update: Task, inputs: Inputs) -> Task:
    """Return one step of the published model."""
    parameters = list(model.parameters())

    def step() -> None:
        model.zero_grad(set_to_none=True)
        train_pass(model, inputs, bf16=True)
        float(nn.utils.clip_grad_norm_(parameters, CLIP_NORM))
        update()

    return step


def sampling_rows(bench: GpuBench, models: Mapping[str, nn.Module], inputs: Inputs) -> list[Row]:
    """Our images per second for every number of evaluations, and the published network against the first."""
    tasks = {
        f"{OURS} {evaluations}": our_sampling(bench, whole(models[OURS].eval()), inputs, evaluations)
        for evaluations in bench.evaluations
    }
    most = bench.evaluations[0]
    tasks[PUBLISHED] = published_sampling(models[PUBLISHED].eval(), inputs, most)
    took = turns(tasks, bench)
    ratios = [slow / fast for slow, fast in zip(took[PUBLISHED], took[f"{OURS} {most}"], strict=True)]
    return [
        *[
            row(
                f"model on GPU, sampling, {evaluations} evaluations, images per second",
                [bench.batch / seconds for seconds in took[f"{OURS} {evaluations}"]],
                None,
            )
            for evaluations in bench.evaluations
        ],
        row(f"model on GPU, sampling, {most} evaluations, published / ours, seconds", ratios, None),
    ]


def our_sampling(bench: GpuBench, model: WholeModel, inputs: Inputs, evaluations: int) -> Task:
    """Return a sampling that encodes the condition once."""
    network = torch.compile(model.network, backend=bench.backend)
    encode = torch.compile(model.network.encode_condition, backend=bench.backend)

    @torch.inference_mode()
    def sample() -> Tensor:
        with torch.autocast(bench.device, dtype=torch.bfloat16):
            condition = encode(inputs.source_BTE)

            def velocity(x_BTC: Tensor, t: float) -> Tensor:
                return network(x_BTC, x_BTC.new_full((1,), t), condition).float()

            return integrate(velocity, inputs.x_BTC, time_grid(evaluations), "euler")

    return sample


def published_sampling(model: nn.Module, inputs: Inputs, evaluations: int) -> Task:
    """Return a sampling that encodes the condition at each evaluation."""

    @torch.inference_mode()
    def sample() -> Tensor:
        def velocity(x_BTC: Tensor, t: float) -> Tensor:
            return model(x_BTC, torch.full_like(inputs.t_B, t), inputs.source_BTE).float()

        with torch.autocast(inputs.x_BTC.device.type, dtype=torch.bfloat16):
            return integrate(velocity, inputs.x_BTC, time_grid(evaluations), "euler")

    return sample


def turns(tasks: Mapping[str, Task], bench: GpuBench, *, times: int = 1) -> dict[str, list[float]]:
    """Seconds of one of `times` calls, for every task in turn; the first call of a turn does not count."""
    synchronise = torch.get_device_module(bench.device).synchronize
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(bench.repeats):
        for name, task in tasks.items():
            torch.cuda.empty_cache()
            task()
            synchronise()
            begin = time.perf_counter()
            for _ in range(times):
                task()
            synchronise()
            found[name].append((time.perf_counter() - begin) / times)
    return found


def whole(model: nn.Module) -> WholeModel:
    """Return `model` as the class that it is; raises `TypeError` for another."""
    if not isinstance(model, WholeModel):
        raise TypeError(f"model is a {type(model).__name__}, expected a WholeModel")
    return model


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(line) + "\n" for line in gpu_rows())
