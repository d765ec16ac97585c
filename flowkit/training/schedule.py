"""Learning-rate factor: linear warm-up, then a half cosine down to a final share.

warm-up: (step + 1) / warmup      after: final + (1 - final) (1 + cos(pi p)) / 2,  p = (step - warmup) / rest
"""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, final_share: float) -> float:
    """Return the factor of step `step` (from 0) of a training of `steps` steps; a pure function."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
