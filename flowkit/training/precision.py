"""The arithmetic of forward and backward pass, and the scale that keeps float16 gradients from vanishing.

Weights are float32 in every precision. The scale doubles after `GROWTH_STEPS` good steps and halves after an overflow;
it is a power of two, so scaling is exact.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, SMALLEST_SCALE, LARGEST_SCALE = 2.0**16, 1.0, 2.0**24
GROWTH_STEPS = 2000


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of matrix products in `precision`; raises `ValueError` for an unknown one."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}, expected one of {list(PRECISIONS)}; choose one of these"
        )
    return PRECISIONS[precision]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the network runs in `precision`."""
    dtype = dtype_of(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@dataclass
class LossScale:
    """The factor on the loss; 1 for every precision but float16."""

    scale: float = 1.0
    good_steps: int = 0
    is_dynamic: bool = False

    @classmethod
    def of(cls, precision: str) -> LossScale:
        """Return the scale that a training in `precision` starts with."""
        return cls(FIRST_SCALE, is_dynamic=True) if precision == "fp16" else cls()

    def is_overflow(self, loss: float, norm: float) -> bool:
        """Whether a gradient that is not finite comes from the scale: the loss is, and the scale can still fall."""
        return (
            self.is_dynamic
            and math.isfinite(loss)
            and not math.isfinite(norm)
            and self.scale > SMALLEST_SCALE
        )

    def update(self, *, overflow: bool) -> None:
        """Halve after an overflow, double after enough good steps."""
        if not self.is_dynamic:
            return
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.scale = max(SMALLEST_SCALE, self.scale / 2)
        elif self.good_steps == GROWTH_STEPS:
            self.scale, self.good_steps = min(LARGEST_SCALE, self.scale * 2), 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.scale, self.good_steps = state["scale"], state["good_steps"]
