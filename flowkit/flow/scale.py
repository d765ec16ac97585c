"""Bring features to unit scale for the network and back to their raw scale after sampling.

    none: x        factor: x / rms        standardize: (x - mean_c) / sd_c

The statistics come from training features alone, are saved with the checkpoint and undone after sampling. Shapes:
B images, T tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEATURE_SCALES = ("none", "factor", "standardize")
SMALLEST_SPREAD = 1e-6
"""A channel that varies less than this is left at its own scale: dividing by it would amplify rounding."""


@dataclass(frozen=True)
class FeatureScale:
    """The affine map (x - shift_C) / spread_C and its inverse."""

    shift_C: Tensor
    spread_C: Tensor

    def apply(self, raw_BTC: Tensor) -> Tensor:
        """Return raw features at the scale of the network."""
        return (raw_BTC - self.shift_C) / self.spread_C

    def undo(self, scaled_BTC: Tensor) -> Tensor:
        """Return network features at their raw scale."""
        return scaled_BTC * self.spread_C + self.shift_C

    def to(self, device: torch.device | str) -> FeatureScale:
        """Return the same map on `device`."""
        return FeatureScale(self.shift_C.to(device), self.spread_C.to(device))


def fit_scale(kind: str, mean_C: Tensor, second_moment_C: Tensor) -> FeatureScale:
    """Return the scale `kind` for channels with these means of x and x^2.

    Raises `ValueError` for an unknown kind.
    """
    zero_C, one_C = torch.zeros_like(mean_C), torch.ones_like(mean_C)
    if kind == "none":
        return FeatureScale(zero_C, one_C)
    if kind == "factor":
        return FeatureScale(zero_C, one_C * _spread(second_moment_C.mean()))
    if kind == "standardize":
        return FeatureScale(mean_C, _spread(second_moment_C - mean_C.square()))
    raise ValueError(
        f"feature scale is {kind!r}, expected one of {list(FEATURE_SCALES)}; choose one of these"
    )


def _spread(variance: Tensor) -> Tensor:
    spread = variance.clamp(min=0).sqrt()
    return torch.where(spread > SMALLEST_SPREAD, spread, torch.ones_like(spread))
