"""How fast a training runs, against what the machine can do.

    share of peak = FLOPs of a step / (seconds x measured rate of a large matrix product in the same precision)

FLOPs count forward and backward once; what activation checkpointing computes again is not counted.
"""

from __future__ import annotations

import math
import resource
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowkit.model.config import DiTConfig
from flowkit.training.precision import dtype_of
from flowkit.translator import build_network

BACKWARD_SHARE = 2
"""A backward pass computes two matrix products for each of the forward pass."""
CPU_SIDE, GPU_SIDE = 512, 8192
REPEATS, LONGEST_SECONDS = 3, 0.5


def training_flops_per_image(config: DiTConfig) -> int:
    """Return the floating-point operations of one image, forward and backward."""
    with torch.device("meta"):
        network = build_network(config)
        source = torch.empty(1, config.source_tokens, config.source_width)
        target, t = torch.empty(1, config.target_tokens, config.target_width), torch.empty(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(target, t, network.encode_condition(source))
    return (1 + BACKWARD_SHARE) * counter.get_total_flops()


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the FLOPs per second of a large square matrix product, the best of a few."""
    side = GPU_SIDE if device.type == "cuda" else CPU_SIDE
    matrix = torch.ones(side, side, dtype=dtype_of(precision), device=device)
    best, began = math.inf, time.perf_counter()
    for _ in range(REPEATS + 1):  # the first one warms up
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() - began > LONGEST_SECONDS:
            break
    return 2 * side**3 / best


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory used so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
