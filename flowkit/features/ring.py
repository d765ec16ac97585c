"""Buffers that are used again for every batch, and their way to a GPU.

A thread fills slots in turn, the consumer takes them in turn. With one slot more than batches are made ahead, batch
k + slots is begun only after the consumer asked for batch k + 1, so the slot of batch k is free by then. On the CPU
nothing is copied. For a GPU the filling thread starts the copy in a stream of its own, and fills a slot again only
when its copy is done.

    slot(turn) -> fill it -> send(turn)        in the filling thread
    receive(turn)                              in the consumer's thread
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Buffers = tuple[Tensor, ...]


class Ring:
    """`slots` sets of float16 buffers of `shapes`; pinned where CUDA is available, for whoever copies them on."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], slots: int) -> None:
        self._slots = [tuple(_pinned_buffer(shape) for shape in shapes) for _ in range(slots)]

    def slot(self, turn: int) -> Buffers:
        """The buffers to fill for this turn."""
        return self._slots[turn % len(self._slots)]

    def send(self, turn: int) -> None:
        """Say that the slot of this turn is filled."""

    def receive(self, turn: int) -> Buffers:
        """The filled buffers of this turn, valid until the next turn is received."""
        return self._slots[turn % len(self._slots)]


class CudaRing(Ring):
    """A ring whose batches arrive on a GPU as new tensors, ordered before the consumer's next kernels."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], slots: int, device: torch.device) -> None:
        with torch.cuda.device(device):  # pinning memory opens a context on the current device
            super().__init__(shapes, slots)
        self._stream = torch.cuda.Stream(device)
        self._device = self._stream.device  # with its number, also where `device` has none
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(slots)]
        self._sent: list[Buffers] = [()] * slots

    def slot(self, turn: int) -> Buffers:
        self._copied[turn % len(self._copied)].synchronize()
        return super().slot(turn)

    def send(self, turn: int) -> None:
        place = turn % len(self._sent)
        with torch.cuda.stream(self._stream):
            self._sent[place] = tuple(
                buffer.to(self._device, non_blocking=True) for buffer in self._slots[place]
            )
            self._copied[place].record(self._stream)

    def receive(self, turn: int) -> Buffers:
        place = turn % len(self._sent)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._copied[place])
        sent, self._sent[place] = self._sent[place], ()
        for tensor in sent:
            tensor.record_stream(stream)
        return sent


def half_buffer(shape: tuple[int, ...]) -> Tensor:
    """A new float16 tensor in numpy's memory, which comes in huge pages: several times faster to fill first."""
    return torch.from_numpy(np.empty(shape, dtype=np.float16))


def _pinned_buffer(shape: tuple[int, ...]) -> Tensor:
    if torch.cuda.is_available():
        return torch.empty(shape, dtype=torch.float16, pin_memory=True)
    return half_buffer(shape)


def build_ring(shapes: Sequence[tuple[int, ...]], slots: int, device: torch.device) -> Ring:
    """The ring for a consumer on `device`, "cpu" or "cuda"."""
    if device.type == "cuda":
        return CudaRing(shapes, slots, device)
    if device.type == "cpu":
        return Ring(shapes, slots)
    raise ValueError(
        f"device is {device}, expected cpu or cuda; take the batches on the cpu and copy them on"
    )
