"""Bars of the network, each against the published one with equal shapes, in the same run: 256 tokens, base size.

Processor time with one thread decides; what was seen by the clock is a further key of the rows. A rate is matrix
operations per second, so a side that did less work would not look faster for it. Memory is the peak of a process of
its own that builds one side and trains for a few passes. Sampling is put together from single calls: the published
network is evaluated 100 times in 50 steps of Heun's method and encodes its condition each time, this project's
encodes it once; one evaluation is what the demo finds as good as 99.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import model_peers
import torch
from model_peers import (
    OURS,
    PUBLISHED,
    Inputs,
    Seconds,
    WholeModel,
    build,
    count_work,
    fresh_train_pass,
    kept_bytes,
    matrix_product,
    measure,
)
from published_dit import PublishedConfig
from rows import Row, row
from torch import nn

import flowkit

MATRIX, BF16, ENCODE = "matrix product", "ours in bf16", "encode condition"
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls the instructions on x86 and on Arm."""
PUBLISHED_EVALUATIONS = 100
LARGER_BATCH = 4
"""Times the judged batch."""
Turns = dict[str, list[Seconds]]


@dataclass(frozen=True)
class Bench:
    """Sizes of everything measured; the defaults are those that the bars speak of."""

    config: PublishedConfig = field(default_factory=PublishedConfig)
    batch: int = 2
    repeats: int = 7
    passes: int = 3
    """Forward and backward passes of the process whose memory is measured."""
    matrix: int = 2048


def rows(folder: Path, *, bench: Bench | None = None) -> list[Row]:
    """Measure everything; nothing is written to `folder`."""
    bench = bench or Bench()
    with one_thread():
        memory = memory_rows(bench)
        models = {side: build(side, bench.config) for side in (OURS, PUBLISHED)}
        inputs = Inputs.make(bench.config, bench.batch)
        training = training_turns(bench, models, inputs)
        memory.append(kept_row(bench, models, inputs))
        single = sampling_turns(bench, models, inputs)
        found = [*training_rows(bench, training), *memory, *sampling_rows(single)]
        found.append(forward_row(bench, single))
    if torch.cuda.is_available():
        from model_gpu_bench import gpu_rows

        found += gpu_rows()
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training_turns(bench: Bench, models: dict[str, nn.Module], inputs: Inputs) -> Turns:
    """Forward and backward of both sides, ours in bf16 too if the processor has it, and the matrix product."""
    works = {side: partial(fresh_train_pass, model, inputs) for side, model in models.items()}
    if has_bf16_instructions():
        works[BF16] = partial(fresh_train_pass, models[OURS], inputs, bf16=True)
    return measure(works | {MATRIX: matrix_product(bench.matrix)}, bench.repeats)


def emulated_bf16_turns(bench: Bench) -> Turns:
    """The same of a network with one block, once: without instructions bf16 takes ten times as long as fp32."""
    config = replace(bench.config, depth=1, adapter_layers=1)
    inputs = Inputs.make(config, bench.batch)
    ours, published = (build(side, config) for side in (OURS, PUBLISHED))
    works = {
        PUBLISHED: partial(fresh_train_pass, published, inputs),
        BF16: partial(fresh_train_pass, ours, inputs, bf16=True),
    }
    return measure(works, 1)


def sampling_turns(bench: Bench, models: dict[str, nn.Module], inputs: Inputs) -> Turns:
    """Single calls without gradients: our encoded condition, one evaluation of each side, the matrix product."""
    ours, published = models[OURS].eval(), models[PUBLISHED].eval()
    if not isinstance(ours, WholeModel):
        raise TypeError(f"{OURS} is a {type(ours).__name__}, expected a WholeModel")
    network, t_1 = ours.network, inputs.t_B[:1]
    with torch.inference_mode():
        condition = network.encode_condition(inputs.source_BTE)
        works = {
            ENCODE: lambda: network.encode_condition(inputs.source_BTE),
            OURS: lambda: network(inputs.x_BTC, t_1, condition),
            PUBLISHED: lambda: published(inputs.x_BTC, inputs.t_B, inputs.source_BTE),
            MATRIX: matrix_product(bench.matrix),
        }
        return measure(works, bench.repeats)


def training_rows(bench: Bench, turns: Turns) -> list[Row]:
    """Rate against rate, bf16 against fp32, and the share of the matrix rate."""
    work = {side: count_work(side, bench.config).forward_backward for side in (OURS, PUBLISHED)}
    raw = ratios(turns[PUBLISHED], turns[OURS])
    more: dict[str, Any] = {f"{side}_gflop_per_sample": round(work[side] / 1e9, 3) for side in work}
    more |= {f"{side}_cpu_s": seconds(turns[side]) for side in work}
    shares = {side: matrix_shares(bench, turns, side, work[side]) for side in work}
    equal_work = work[OURS] / work[PUBLISHED]
    name = "model, forward + backward in fp32, rate / published"
    return [
        row(
            name,
            [equal_work * ratio for ratio in raw],
            1.0,
            wall=round(equal_work * wall_ratio(turns[PUBLISHED], turns[OURS]), 3),
            seconds_ratio=round(statistics.median(raw), 3),
            published_share_of_matrix_rate=round(statistics.median(shares[PUBLISHED]), 3),
            **more,
        ),
        row("model, forward + backward, share of the matrix rate", shares[OURS], None),
        bf16_row(bench, turns),
    ]


def bf16_row(bench: Bench, turns: Turns) -> Row:
    """Ours in bf16 against the published network in fp32, without a demand where bf16 is emulated."""
    judged = BF16 in turns
    if not judged:
        turns = emulated_bf16_turns(bench)
    reason = "this processor has no bf16 instructions; one block, measured once"
    more: dict[str, Any] = {} if judged else {"reason": reason}
    return row(
        "model, forward + backward in bf16 / published in fp32",
        ratios(turns[PUBLISHED], turns[BF16]),
        1.4 if judged else None,
        wall=round(wall_ratio(turns[PUBLISHED], turns[BF16]), 3),
        **more,
    )


def has_bf16_instructions() -> bool:
    """Whether matrices are multiplied in bf16 by the processor itself."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else platform.processor()
    return bool(BF16_FLAGS & set(text.split()))


def memory_rows(bench: Bench) -> list[Row]:
    """The judged batch, where weights and gradients are most of the memory, and once a larger one."""
    larger = replace(bench, batch=LARGER_BATCH * bench.batch, passes=1)
    return [memory_row(bench, 0.8), memory_row(larger, None)]


def memory_row(bench: Bench, demand: float | None) -> Row:
    """Peak of resident memory of a process that trains one side, against the other's; further keys are in GiB."""
    peaks = {side: peak(bench, side) for side in (OURS, PUBLISHED)}
    gib = {
        f"{side}_{part}_gib": round(size / 2**30, 3)
        for side, found in peaks.items()
        for part, size in found.items()
    }
    share = peaks[OURS]["peak"] / peaks[PUBLISHED]["peak"]
    name = f"model, peak memory of forward + backward / published, batch {bench.batch}"
    return row(name, [share], demand, at_most=True, **gib)


def peak(bench: Bench, side: str) -> dict[str, int]:
    """Return the bytes that a fresh process found which trains `side`."""
    request = {"side": side, "config": asdict(bench.config), "batch": bench.batch, "passes": bench.passes}
    package = str(Path(flowkit.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, model_peers.__file__, json.dumps(request)],
        env=os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def kept_row(bench: Bench, models: dict[str, nn.Module], inputs: Inputs) -> Row:
    """Bytes that the forward pass keeps for the backward one: what memory adds with every sample."""
    kept = {side: kept_bytes(model, inputs) for side, model in models.items()}
    mib = {f"{side}_mib_per_sample": round(kept[side] / bench.batch / 2**20, 1) for side in kept}
    name = "model, memory kept for the backward pass / published"
    return row(name, [kept[OURS] / kept[PUBLISHED]], None, at_most=True, **mib)


def sampling_rows(turns: Turns) -> list[Row]:
    """A whole sampling of the published network against ours with as many evaluations, and with one."""
    each: dict[str, Any] = {
        f"{name.replace(' ', '_')}_cpu_s": seconds(turns[name]) for name in (ENCODE, OURS, PUBLISHED)
    }
    found = []
    for evaluations, demand in ((PUBLISHED_EVALUATIONS, 1.4), (1, 20.0)):
        ours, theirs = sampled(turns, evaluations), repeated(turns[PUBLISHED], PUBLISHED_EVALUATIONS)
        name = f"model, sampling, {evaluations} evaluations / published, {PUBLISHED_EVALUATIONS}"
        wall = round(wall_ratio(theirs, ours), 3)
        found.append(row(name, ratios(theirs, ours), demand, wall=wall, **each))
    return found


def sampled(turns: Turns, evaluations: int) -> list[Seconds]:
    """Our encoded condition and `evaluations` evaluations."""
    networks = repeated(turns[OURS], evaluations)
    return [
        Seconds(encode.cpu + network.cpu, encode.wall + network.wall)
        for encode, network in zip(turns[ENCODE], networks, strict=True)
    ]


def repeated(turns: Sequence[Seconds], times: int) -> list[Seconds]:
    """The same, so many times."""
    return [Seconds(times * turn.cpu, times * turn.wall) for turn in turns]


def forward_row(bench: Bench, turns: Turns) -> Row:
    """Our forward pass, condition and all, against the matrix rate."""
    work = count_work(OURS, bench.config)
    whole = turns | {OURS: sampled(turns, 1)}
    return row(
        "model, forward, share of the matrix rate",
        matrix_shares(bench, whole, OURS, work.forward),
        None,
        gflop_per_sample=round(work.forward / 1e9, 3),
        forward_backward_gflop_per_sample=round(work.forward_backward / 1e9, 3),
        matrix_gflop_per_cpu_s=round(2e-9 * bench.matrix**3 / seconds(turns[MATRIX]), 1),
    )


def matrix_shares(bench: Bench, turns: Turns, name: str, operations_per_sample: float) -> list[float]:
    """Operations per second of `name` over those of the matrix product, turn by turn."""
    share = bench.batch * operations_per_sample / (2 * bench.matrix**3)
    return [share * ratio for ratio in ratios(turns[MATRIX], turns[name])]


def ratios(slow: Sequence[Seconds], fast: Sequence[Seconds]) -> list[float]:
    """How many times less processor time `fast` took, turn by turn."""
    return [one.cpu / other.cpu for one, other in zip(slow, fast, strict=True)]


def wall_ratio(slow: Sequence[Seconds], fast: Sequence[Seconds]) -> float:
    """How many times less time by the clock `fast` took."""
    return statistics.median(one.wall / other.wall for one, other in zip(slow, fast, strict=True))


def seconds(turns: Sequence[Seconds]) -> float:
    """Median processor time, four digits of it."""
    return float(f"{statistics.median(turn.cpu for turn in turns):.4g}")


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(line) + "\n" for line in rows(Path()))
