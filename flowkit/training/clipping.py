"""The limit of the gradient norm: halved while norms run high, that is while their running mean is above the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RUNNING_MEAN_DECAY = 0.98
HIGH_NORMS_FACTOR = 0.5


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
