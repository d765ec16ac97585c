"""How a network is spread over the processes of a world: a copy in each (DDP), or shards (FSDP2).

Both average gradients over processes. A checkpoint holds whole tensors either way, so any world can go on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from flowkit.flow.objective import Draws, Loss, Objective
from flowkit.model.network import DiT
from flowkit.training.world import World

PARALLELS = ("auto", "ddp", "fsdp")
SHARDED_FROM_PARAMETERS = 400_000_000
"""With "auto", networks from this size on are sharded: sizes large and huge of every architecture."""


class BatchLoss(nn.Module):
    """Network and objective behind one forward call, which is what data parallelism wraps."""

    def __init__(self, network: DiT, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, source_BSE: Tensor, x_1_BTC: Tensor, draws: Draws) -> Loss:
        """Return the loss of a batch at the scale of the network."""
        return self.objective.loss(self.network, source_BSE, x_1_BTC, draws)


def is_sharded(network: nn.Module, world: World, parallel: str) -> bool:
    """Whether `network` is to be sharded over `world`; raises `ValueError` for an unknown kind of parallelism."""
    if parallel not in PARALLELS:
        raise ValueError(f"parallel is {parallel!r}, expected one of {list(PARALLELS)}; choose one of these")
    if world.size == 1 or parallel == "ddp":
        return False
    size = sum(parameter.numel() for parameter in network.parameters())
    return parallel == "fsdp" or size >= SHARDED_FROM_PARAMETERS


def distribute(loss: BatchLoss, world: World, *, shard: bool) -> nn.Module:
    """Return `loss` spread over `world`; sharding replaces the network's parameters in place."""
    if world.size == 1:
        return loss
    if not shard:
        return DistributedDataParallel(loss, gradient_as_bucket_view=True)
    mesh = init_device_mesh(world.device.partition(":")[0], (world.size,))
    for block in loss.network.blocks:
        fully_shard(block, mesh=mesh)
        register_fsdp_forward_method(block, "keys_values")  # read before the block itself runs
    fully_shard(loss, mesh=mesh)
    return loss


def without_exchange(module: nn.Module) -> AbstractContextManager[None]:
    """Return the context of a micro-batch that is not a step's last: gradients stay in this process."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    if isinstance(module, FSDPModule):
        return _switched(module.set_requires_gradient_sync)
    return nullcontext()


@contextmanager
def _switched(set_exchange: Callable[[bool], None]) -> Iterator[None]:
    set_exchange(False)
    try:
        yield
    finally:
        set_exchange(True)


def compile_blocks(network: DiT) -> None:
    """Compile each block, which are all alike, and keep the names of parameters."""
    for block in network.blocks:
        block.compile(dynamic=False)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together, over all shards."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@torch.no_grad()
def scale_gradients(parameters: list[nn.Parameter], factor: float) -> None:
    """Multiply all gradients by `factor`."""
    if factor != 1:
        torch._foreach_mul_(
            [parameter.grad for parameter in parameters if parameter.grad is not None], factor
        )
