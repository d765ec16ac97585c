"""The exponential moving average of the weights, which is what a training leaves.

w_ema <- d w_ema + (1 - d) w, with a smaller d in the first steps. The average is laid out over the processes as the
weights are; `network` is a whole copy of it for validation and for the final folder. Where the weights are sharded, the
first process alone holds that copy.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from flowkit.model.network import DiT
from flowkit.training.world import local, whole


class WeightAverage:
    """The averaged weights of a network."""

    def __init__(self, network: DiT, decay: float) -> None:
        """Take a copy of `network` before it is sharded or compiled."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay
        self._names = [name for name, _ in network.named_parameters()]
        self._live: list[Tensor] = list(network.parameters())
        self._average: list[Tensor] = list(self.network.parameters())
        self._is_sharded = False

    def follow_shards(self, network: DiT, *, keep_whole: bool) -> None:
        """Average the shards of `network`, which is the copied network after sharding; `keep_whole` the copy, too."""
        self._live = list(network.parameters())
        self._average = [parameter.detach().clone() for parameter in self._live]
        self._is_sharded = True
        if not keep_whole:
            self.network.to("meta")

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the live weights after step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(map(local, self._average)), list(map(local, self._live)), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights by name, laid out as the weights are."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def gather(self) -> None:
        """Bring `network` up to date; every process must call it."""
        if self._is_sharded:
            for parameter, average in zip(self.network.parameters(), self._average, strict=True):
                full = whole(average)
                if not parameter.is_meta:
                    parameter.copy_(full)
