"""Fit, on training features alone, what the network needs to know about their scale and spread.

Two passes over evenly spaced images sum in float64: first the mean and mean square of every channel and the mean
target, then, for the shaped start noise, the covariance of the centred targets over positions and over channels.
Images with a feature that is not finite are left out, counted and named.

Shapes: B images, T tokens, C channels, M = T C.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowkit.errors import TrainingError
from flowkit.flow.noise import StartNoise, fit_target_covariance, isotropic
from flowkit.flow.scale import FeatureScale, fit_scale
from flowkit.translator import Statistics

STATISTICS_IMAGES = 4096
"""At most this many images are read; more would hardly move a scale."""
STATISTICS_BATCH = 256
NAMED_KEYS = 5

log = logging.getLogger(__name__)


class PairedFeatures(Protocol):
    """Source and target tokens of the same images, by row, float32 at raw scale; a row may hold several `views`."""

    @property
    def views(self) -> int: ...

    @property
    def source_shape(self) -> tuple[int, int]: ...

    @property
    def target_shape(self) -> tuple[int, int]: ...

    def __len__(self) -> int: ...

    def batch(self, ids: np.ndarray) -> tuple[Tensor, Tensor]: ...

    def keys(self, ids: np.ndarray) -> list[str]:
        """Return what people call the images `ids`."""
        ...


def finite_batch(data: PairedFeatures, ids: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return those of `ids` whose features are finite, and these features; the others are named in a warning."""
    source_BTC, target_BTC = data.batch(ids)
    is_whole_B = source_BTC.isfinite().flatten(1).all(1) & target_BTC.isfinite().flatten(1).all(1)
    if is_whole_B.all():
        return ids, source_BTC, target_BTC
    broken = ids[~is_whole_B.numpy()]
    named = ", ".join(data.keys(broken[:NAMED_KEYS]))
    log.warning("left_out=%d images whose features are not finite, the first: %s", len(broken), named)
    return ids[is_whole_B.numpy()], source_BTC[is_whole_B], target_BTC[is_whole_B]


def fit_statistics(
    data: PairedFeatures, *, feature_scale: str, start_noise: str, norm_weight_C: Tensor | None = None
) -> Statistics:
    """Return the statistics of `data`; `feature_scale` and `start_noise` are names known to `flowkit.flow`.

    `norm_weight_C` is the weight of the target tower's final norm, which the scale "target_norm" asks for. Raises
    `TrainingError` if no image has finite features.
    """
    source = _Moments(*data.source_shape)
    target = _Moments(*data.target_shape)
    for source_BTC, target_BTC in _chunks(data):
        source.add(source_BTC)
        target.add(target_BTC)
    if not source.images:
        raise TrainingError(
            "no training image has finite features; verify the feature stores and extract them again"
        )
    target_scale = target.scale(feature_scale, norm_weight_C)
    target_mean_TC = (target.sum_TC / target.images).float()
    noise = isotropic(*data.target_shape)
    if start_noise == "target_covariance":
        noise = _shaped_noise(data, target_scale, target_mean_TC)
    return Statistics(source.scale(feature_scale), target_scale, noise, target_mean_TC)


class _Moments:
    """Running sums of x and x^2."""

    def __init__(self, tokens: int, channels: int) -> None:
        self.images = 0
        self.sum_TC = torch.zeros(tokens, channels, dtype=torch.float64)
        self.squares_C = torch.zeros(channels, dtype=torch.float64)

    def add(self, x_BTC: Tensor) -> None:
        self.images += len(x_BTC)
        self.sum_TC += x_BTC.sum(0, dtype=torch.float64)
        self.squares_C += x_BTC.square().sum((0, 1), dtype=torch.float64)

    def scale(self, kind: str, norm_weight_C: Tensor | None = None) -> FeatureScale:
        tokens = self.images * len(self.sum_TC)
        fitted = fit_scale(kind, self.sum_TC.sum(0) / tokens, self.squares_C / tokens, norm_weight_C)
        return FeatureScale(fitted.shift_C.float(), fitted.spread_C.float())


def _shaped_noise(data: PairedFeatures, scale: FeatureScale, mean_TC: Tensor) -> StartNoise:
    tokens, channels = data.target_shape
    covariance_TT = torch.zeros(tokens, tokens, dtype=torch.float64)
    covariance_CC = torch.zeros(channels, channels, dtype=torch.float64)
    images = 0
    for _, target_BTC in _chunks(data):
        centred_BTC = (target_BTC - mean_TC) / scale.spread_C
        images += len(centred_BTC)
        flat_TM = centred_BTC.transpose(0, 1).flatten(1)
        covariance_TT += flat_TM @ flat_TM.T
        flat_MC = centred_BTC.flatten(0, 1)
        covariance_CC += flat_MC.T @ flat_MC
    covariance_TT /= images * channels
    covariance_CC /= images * tokens
    return fit_target_covariance(covariance_TT, covariance_CC, float(covariance_CC.diagonal().mean()))


def _chunks(data: PairedFeatures) -> Iterator[tuple[Tensor, Tensor]]:
    ids = np.unique(np.linspace(0, len(data) - 1, min(len(data), STATISTICS_IMAGES)).astype(np.int64))
    batch = max(1, STATISTICS_BATCH // data.views)
    for first in range(0, len(ids), batch):
        _, *features = finite_batch(data, ids[first : first + batch])
        yield features[0], features[1]
