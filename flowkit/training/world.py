"""The processes that train one run together, as torchrun or a cluster's launcher started them.

Rank, size and address come from the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). One process
alone is a world of size 1, in which every function here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

AnyValue = TypeVar("AnyValue")


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any_of(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        return flag if self.size == 1 else bool(self.summed(torch.tensor(float(flag), device=self.device)))

    def kept_by_first(self, tensor: Tensor) -> Tensor:
        """Return the whole tensor on the CPU in the first process, an empty one in others; all must call it."""
        full = whole(tensor)
        return full.detach().cpu() if self.is_first else torch.empty(0)

    def from_first(self, value: AnyValue) -> AnyValue:
        """Return the first process's `value` in every process; it travels pickled."""
        if self.size == 1:
            return value
        carrier = [value]
        dist.broadcast_object_list(carrier, src=0)
        return carrier[0]

    def gathered(self, value: AnyValue) -> list[AnyValue]:
        """Return the `value` of every process, in every process; they travel pickled."""
        if self.size == 1:
            return [value]
        values: list[AnyValue] = [value] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Yield this process's world on `device` ("cpu" or "cuda"); with several processes, connect them first."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded one, in every process; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that lies here; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(full: Tensor, model: Tensor) -> Tensor:
    """Return `full`, which every process holds, laid out as `model` is."""
    if not isinstance(model, DTensor):
        return full.to(model.device)
    return distribute_tensor(full.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
