"""Batches on their way through the encoder: pixels to its device, float16 back, the writer one step behind.

Each batch travels in a slot of reused host buffers, pinned where the encoder sits on a GPU. Values become float16 on
the encoder's device; which samples do not fit is counted there too. While a thread writes the slots of earlier
batches, the encoder works on the next: only that thread waits for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from flowkit.encoders.contract import FrozenEncoder
from flowkit.errors import EncoderError
from flowkit.features.decoding import DecodedBatch
from flowkit.features.halves import HALF_LIMIT, beyond_reason, not_finite_reason
from flowkit.features.metadata import POOLED, TOKENS
from flowkit.features.writer import TokenStoreWriter

WRITES_BEHIND = 2


class _Rows:
    """Host buffer [B, ...] of one array, float16, with what is known of each row."""

    def __init__(self, name: str, batch_size: int, shape: tuple[int, ...], *, pinned: bool) -> None:
        self.name, self.size = name, torch.Size(shape).numel()
        self.halves = torch.empty(batch_size, *shape, dtype=torch.float16, pin_memory=pinned)
        self._not_finite = torch.empty(batch_size, dtype=torch.int64, pin_memory=pinned)
        self._reach = torch.empty(batch_size, dtype=torch.float32, pin_memory=pinned)

    def fill(self, values: Tensor) -> None:
        """Begin to copy float32 values [n, ...] here from any device."""
        count = len(values)
        if values.shape[1:] != self.halves.shape[1:]:
            raise EncoderError(
                f"the encoder returned {self.name} {tuple(values.shape)}, "
                f"expected {(count, *self.halves.shape[1:])}; its declared sizes are wrong"
            )
        flat = values.flatten(1)
        self._not_finite[:count].copy_(self.size - flat.isfinite().count_nonzero(1), non_blocking=True)
        self._reach[:count].copy_(torch.linalg.vector_norm(flat, torch.inf, dim=1), non_blocking=True)
        halves = values if values.device.type == "cpu" else values.to(torch.float16)
        self.halves[:count].copy_(halves, non_blocking=True)

    def reason(self, row: int) -> str | None:
        """Why a row cannot be stored, or None."""
        if not_finite := int(self._not_finite[row]):
            return not_finite_reason(self.name, not_finite, self.size)
        reach = float(self._reach[row])
        return beyond_reason(self.name, reach) if reach > HALF_LIMIT else None


class _Slot:
    """Host buffers for the results of one batch."""

    def __init__(self, encoder: FrozenEncoder, batch_size: int) -> None:
        pinned = encoder.device.type == "cuda"
        shapes = {TOKENS: (encoder.token_count, encoder.token_width), POOLED: (encoder.pooled_width,)}
        self.arrays = [_Rows(name, batch_size, shape, pinned=pinned) for name, shape in shapes.items()]
        self._copied = torch.cuda.Event() if pinned else None

    def encode(self, encoder: FrozenEncoder, pixels_NCHW: Tensor) -> None:
        """Start the forward pass and the copies back; on a GPU this returns before they are done."""
        for array, values in zip(self.arrays, encoder.encode(pixels_NCHW), strict=True):
            array.fill(values)
        if self._copied is not None:
            self._copied.record()

    def write(self, writer: TokenStoreWriter, batch: DecodedBatch) -> int:
        """Wait for the copies and append the batch; returns how many members that were."""
        if self._copied is not None:
            self._copied.synchronize()
        batch.release()
        count, before = len(batch.rows), writer.next_index
        tokens, pooled = (array.halves[:count].numpy() for array in self.arrays)
        found = {row: [array.reason(row) for array in self.arrays] for row in range(count)}
        reasons = {row: next(filter(None, texts)) for row, texts in found.items() if any(texts)}
        writer.append(
            tokens, pooled, batch.rows, rejects=batch.rejects, reasons=reasons, next_index=batch.next_index
        )
        return batch.next_index - before


class WriteBehind:
    """Encodes batches and writes them in a thread of its own, in order, at most `WRITES_BEHIND` of them behind.

    Leaving the `with` block waits for the writes. An error of a write is raised by a later call, at the latest by
    `drain`; the writer refuses everything after it. `progress` is called with the number of members just written.
    """

    def __init__(
        self,
        writer: TokenStoreWriter,
        encoder: FrozenEncoder,
        batch_size: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._writer, self._encoder, self._progress = writer, encoder, progress
        self._slots = deque(_Slot(encoder, batch_size) for _ in range(WRITES_BEHIND + 1))
        self._pool = ThreadPoolExecutor(1, "write")
        self._pending: deque[Future[int]] = deque()

    def add(self, batch: DecodedBatch) -> None:
        """Encode a batch and hand it to the writing thread."""
        slot = self._slots[0]
        self._slots.rotate(-1)
        if batch.rows:
            with torch.inference_mode():
                slot.encode(self._encoder, batch.pixels_NCHW)
        self._pending.append(self._pool.submit(slot.write, self._writer, batch))
        self._wait_until(WRITES_BEHIND)

    def drain(self) -> None:
        """Wait for all writes."""
        self._wait_until(0)

    def _wait_until(self, waiting: int) -> None:
        while len(self._pending) > waiting:
            done = self._pending.popleft().result()
            if self._progress is not None:
                self._progress(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
