"""Both sides of the model's bars: this project's network and the published one, with equal shapes and inputs.

Needs torch, numpy and the model alone, so it runs on a bare GPU image. As a program it is one side of the memory bar:
`python model_peers.py '{"side": "ours", "config": {}, "batch": 2, "passes": 3}'` builds that side only, runs its
passes and prints {"peak", "imports", "parameters"}, all in bytes.

Shapes: B images, T tokens, C target width, E source width.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from published_dit import PublishedConfig, PublishedDiT
from torch import Tensor, nn

from flowkit.flow.registry import build_head
from flowkit.model.config import DiTConfig
from flowkit.model.registry import find_architecture

OURS, PUBLISHED = "ours", "published"
AWAKE_SPREAD = 0.02


class WholeModel(nn.Module):
    """This project's network from source tokens to output, as training calls it."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        head = build_head("linear", width=config.width, target_width=config.target_width)
        self.network = find_architecture("blip3o")(our_config(config), head)

    def forward(self, x_BTC: Tensor, t_B: Tensor, source_BTE: Tensor) -> Tensor:
        """Return [B, T, C]."""
        return self.network(x_BTC, t_B, self.network.encode_condition(source_BTE))


def our_config(config: PublishedConfig) -> DiTConfig:
    """Return the configuration of this project's network with the same shapes, everything else as by default."""
    rows, columns = config.grid
    return DiTConfig(
        architecture="blip3o",
        source_tokens=rows * columns,
        source_width=config.source_width,
        target_tokens=rows * columns,
        target_width=config.target_width,
        grid=config.grid,
        has_cls=False,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        kv_heads=config.kv_heads,
        ffn_width=config.ffn_width,
        adapter_layers=config.adapter_layers,
        cross_attention=True,
        aligned_condition=True,
        head="linear",
    )


SIDES: dict[str, Callable[[PublishedConfig], nn.Module]] = {OURS: WholeModel, PUBLISHED: PublishedDiT}


def build(side: str, config: PublishedConfig, device: str = "cpu") -> nn.Module:
    """Return the model of `side` in training mode; what starts at zero is moved off it, as training would."""
    torch.manual_seed(0)
    with torch.device(device):
        model = SIDES[side](config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=AWAKE_SPREAD)
    return model


@dataclass(frozen=True)
class Inputs:
    """One batch: noisy tokens, times, source tokens, and what the output is compared with."""

    x_BTC: Tensor
    t_B: Tensor
    source_BTE: Tensor
    target_BTC: Tensor

    @classmethod
    def make(cls, config: PublishedConfig, batch: int, device: str = "cpu") -> Inputs:
        """Return random numbers of unit spread."""
        dice = torch.Generator(device).manual_seed(0)
        tokens = config.grid[0] * config.grid[1]

        def draw(width: int) -> Tensor:
            return torch.randn(batch, tokens, width, generator=dice, device=device)

        times_B = torch.rand(batch, generator=dice, device=device)
        return cls(draw(config.target_width), times_B, draw(config.source_width), draw(config.target_width))


def train_pass(model: Callable[..., Tensor], inputs: Inputs, *, bf16: bool = False) -> None:
    """Forward and backward; gradients add to those that are there."""
    with torch.autocast(inputs.x_BTC.device.type, dtype=torch.bfloat16, enabled=bf16):
        output_BTC = model(inputs.x_BTC, inputs.t_B, inputs.source_BTE)
    F.mse_loss(output_BTC.float(), inputs.target_BTC).backward()


def fresh_train_pass(model: nn.Module, inputs: Inputs, *, bf16: bool = False) -> None:
    """Forward and backward with no gradients before."""
    model.zero_grad(set_to_none=True)
    train_pass(model, inputs, bf16=bf16)


@dataclass(frozen=True)
class Work:
    """Floating point operations of one sample, two for a multiplication with addition."""

    forward: float
    forward_backward: float


def count_work(side: str, config: PublishedConfig) -> Work:
    """Count the matrix products of `side` without doing them."""
    # imported here, because it brings 70 MB that the memory bar's processes must not hold
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = SIDES[side](config)
        tokens = config.grid[0] * config.grid[1]
        x_BTC, source_BTE = (
            torch.empty(1, tokens, width) for width in (config.target_width, config.source_width)
        )
        t_B = torch.empty(1)
    with FlopCounterMode(display=False) as forward:
        output_BTC = model(x_BTC, t_B, source_BTE)
    with FlopCounterMode(display=False) as backward:
        output_BTC.sum().backward()
    return Work(forward.get_total_flops(), float(forward.get_total_flops() + backward.get_total_flops()))


def kept_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Return the bytes beside the weights that a forward pass keeps for the backward one."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output_BTC = model(inputs.x_BTC, inputs.t_B, inputs.source_BTE)
    del output_BTC
    return sum(size for address, size in sizes.items() if address not in weights)


def matrix_product(size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """Return one product of two square matrices with `size` rows: 2 size^3 operations."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right


@dataclass(frozen=True)
class Seconds:
    """What a piece of work took."""

    cpu: float
    wall: float


def measure(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Seconds]]:
    """Do every work once for nothing, then all in turn, in every other repeat backwards."""
    for work in works.values():
        work()
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for repeat in range(repeats):
        for name in list(works)[:: -1 if repeat % 2 else 1]:
            cpu, wall = time.process_time(), time.perf_counter()
            works[name]()
            found[name].append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))
    return found


def main(request: Mapping[str, Any]) -> dict[str, int]:
    """Build one side, run its passes and return the peak of this process's resident memory and what is in it."""
    torch.set_num_threads(1)
    imports = resident_bytes("VmRSS")
    model = build(request["side"], PublishedConfig(**request["config"]))
    inputs = Inputs.make(PublishedConfig(**request["config"]), request["batch"])
    for _ in range(request["passes"]):
        fresh_train_pass(model, inputs)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    return {"peak": resident_bytes("VmHWM"), "imports": imports, "parameters": parameters}


def resident_bytes(which: str) -> int:
    """Return the resident memory of this process: "VmRSS" now, "VmHWM" at its peak since the program began.

    ru_maxrss would not do: a child process begins with its parent's peak.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
