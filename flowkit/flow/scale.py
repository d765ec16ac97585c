"""Bring features to unit scale for the network and back to their raw scale after sampling.

    none: x        factor: x / rms        standardize: (x - mean_c) / sd_c        target_norm: w_c x / rms(w x)

w is the weight of the target tower's own final norm: channels count in the loss as they count for whoever reads the
tokens behind that norm. The norm itself also divides each token by its own spread, which no map can undo; this one is
linear and is undone exactly. The statistics come from training features alone and are saved with the checkpoint.

Shapes: B images, T tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEATURE_SCALES = ("none", "factor", "standardize", "target_norm")
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


def fit_scale(
    kind: str, mean_C: Tensor, second_moment_C: Tensor, norm_weight_C: Tensor | None = None
) -> FeatureScale:
    """Return the scale `kind` for channels with these means of x and x^2.

    `norm_weight_C` is needed for "target_norm" of the target; without it, as for the source, that is "factor".
    Raises `ValueError` for an unknown kind or weights of another width.
    """
    if kind == "target_norm":
        weight_C = torch.ones_like(mean_C) if norm_weight_C is None else norm_weight_C.to(mean_C).abs()
        if weight_C.shape != mean_C.shape:
            raise ValueError(
                f"the target's final norm has {len(weight_C)} channels, its tokens have {len(mean_C)}; "
                "extract features and head of one encoder"
            )
        weight_C = torch.where(weight_C > SMALLEST_SPREAD, weight_C, torch.ones_like(weight_C))
        spread_C = _spread((weight_C.square() * second_moment_C).mean()) / weight_C
        return FeatureScale(torch.zeros_like(mean_C), spread_C)
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
