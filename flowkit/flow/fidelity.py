"""How close predicted tokens are to true ones, summed over batches.

    tok_cos = mean over images and tokens of <p, b> / (|p| |b|)
    r2      = 1 - sum |p - b|^2 / sum |b - mean_l|^2,   mean_l = training mean of position l

These two numbers steer training. The metrics of the report, with intervals, live in the evaluation.
Shapes: B images, T tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FidelitySums:
    """Running sums from which token cosine and explained variance follow."""

    mean_TC: Tensor
    """Training mean of every position and channel."""
    tokens: int = 0
    cosine: float = 0.0
    squared_error: float = 0.0
    energy: float = 0.0

    def add(self, predicted_BTC: Tensor, target_BTC: Tensor) -> None:
        """Count a batch in; sums are kept in float64."""
        cosine_BT = torch.cosine_similarity(predicted_BTC, target_BTC, dim=-1)
        self.tokens += cosine_BT.numel()
        self.cosine += float(cosine_BT.sum(dtype=torch.float64))
        self.squared_error += float((predicted_BTC - target_BTC).square().sum(dtype=torch.float64))
        self.energy += float((target_BTC - self.mean_TC).square().sum(dtype=torch.float64))

    @property
    def tok_cos(self) -> float:
        """Mean cosine over all tokens; NaN before the first batch."""
        return self.cosine / self.tokens if self.tokens else float("nan")

    @property
    def r2(self) -> float:
        """Share of the targets' variance that the prediction explains; NaN when they have none."""
        return 1 - self.squared_error / self.energy if self.energy else float("nan")
