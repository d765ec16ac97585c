"""Limits on the gradient, and the scale that keeps float16 gradients from vanishing.

Norms are looked at after unscaling. `AdaptiveClip` halves its limit while norms run high, that is while their running
mean is above the limit. `LossScale` doubles after `GROWTH_STEPS` good steps and halves after an overflow, powers of two
only, so scaling is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

RUNNING_MEAN_DECAY = 0.98
HIGH_NORMS_FACTOR = 0.5
FIRST_SCALE, SMALLEST_SCALE, LARGEST_SCALE = 2.0**16, 1.0, 2.0**24
GROWTH_STEPS = 2000


@dataclass
class AdaptiveClip:
    """The limit of the gradient norm, and the running mean of norms that it follows."""

    limit: float
    is_adaptive: bool
    mean_norm: float = 0.0
    steps: int = 0

    @property
    def current(self) -> float:
        """The limit of the next step."""
        runs_high = self.is_adaptive and self.steps > 0 and self._unbiased > self.limit
        return self.limit * HIGH_NORMS_FACTOR if runs_high else self.limit

    def share(self, norm: float) -> float:
        """Return the factor that brings a gradient of this norm to the limit, at most 1; counts the norm in."""
        factor = min(1.0, self.current / norm) if norm > 0 else 1.0
        self.mean_norm = RUNNING_MEAN_DECAY * self.mean_norm + (1 - RUNNING_MEAN_DECAY) * norm
        self.steps += 1
        return factor

    @property
    def _unbiased(self) -> float:
        return self.mean_norm / (1 - RUNNING_MEAN_DECAY**self.steps)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"mean_norm": self.mean_norm, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.mean_norm, self.steps = state["mean_norm"], state["steps"]


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
