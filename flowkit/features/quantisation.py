"""Int8 tokens: each channel standardised by the store's mean and standard deviation, then one scale per token.

    z = (x - mean_D) / std_D    scale_T = max |z| / 127    q = round(z / scale_T)    x' = q scale_T std_D + mean_D

Without the first step a few channels with huge values would take the whole range of int8 and leave the others a
handful of steps. Single precision, one rounding after the other, so that every machine gets the same bits.
Shapes: T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.features.records import HALF_LIMIT, HalfArray, RecordLayout, RecordReader, Rows

STEPS = 127
HALF_PRECISION = 2.0**-11
"""Relative rounding error of float16: a channel that varies less than that around its mean is called constant."""


@dataclass(frozen=True)
class Channels:
    """Mean and standard deviation [D] float32 of every channel."""

    mean_D: NDArray[np.float32]
    std_D: NDArray[np.float32]

    def as_array(self) -> NDArray[np.float32]:
        """[2, D]: means, then standard deviations."""
        return np.stack([self.mean_D, self.std_D])

    def standardise(self, values_TD: NDArray[np.floating]) -> NDArray[np.float32]:
        """(x - mean) / std."""
        values = torch.from_numpy(np.ascontiguousarray(values_TD)).to(torch.float32)
        return ((values - torch.from_numpy(self.mean_D)) / torch.from_numpy(self.std_D)).numpy()


def channels_of(records: Iterable[HalfArray], width: int) -> Channels:
    """The moments of all tokens in `records` [T, D], in one pass; a constant channel gets a spread that is no zero."""
    count, mean_D, squares_D = 0, np.zeros(width), np.zeros(width)
    for record_TD in records:
        values_TD = torch.from_numpy(record_TD).to(torch.float64).numpy()
        own_mean_D = values_TD.mean(axis=0)
        centred_TD = values_TD - own_mean_D
        own_squares_D = np.einsum("td,td->d", centred_TD, centred_TD)
        total = count + len(values_TD)
        shift_D = own_mean_D - mean_D
        mean_D += shift_D * (len(values_TD) / total)
        squares_D += own_squares_D + np.square(shift_D) * (count * len(values_TD) / total)
        count = total
    std_D = np.maximum(np.sqrt(squares_D / max(count, 1)), np.abs(mean_D) * HALF_PRECISION)
    std_D[std_D == 0] = 1
    return Channels(mean_D.astype(np.float32), std_D.astype(np.float32))


def quantise(values_TD: HalfArray, channels: Channels) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Tokens [T, D] int8 and their scales [T] float32, in standard deviations; a token of means alone has scale 0."""
    standardised_TD = torch.from_numpy(channels.standardise(values_TD))
    scale_T = standardised_TD.abs().amax(dim=1) / STEPS
    steps_TD = standardised_TD / torch.where(scale_T == 0, 1, scale_T)[:, None]
    return steps_TD.round().clamp(-STEPS, STEPS).to(torch.int8).numpy(), scale_T.numpy()


def dequantise(
    steps_TD: NDArray[np.int8], scale_T: NDArray[np.float32], channels: Channels, out_TD: HalfArray
) -> None:
    """Fill `out_TD` with the float16 nearest to what the steps stand for."""
    values = torch.from_numpy(steps_TD).to(torch.float32)
    values *= torch.from_numpy(scale_T)[:, None]
    values *= torch.from_numpy(channels.std_D)
    values += torch.from_numpy(channels.mean_D)
    torch.from_numpy(out_TD).copy_(
        values.clamp_(-HALF_LIMIT, HALF_LIMIT)
    )  # the step next to 65504 may be beyond


class QuantisedReader:
    """Reads int8 tokens as the float16 that they stand for, with the methods of `RecordReader`."""

    def __init__(self, steps: RecordReader, scales: RecordReader, channels: RecordReader) -> None:
        self.layout = RecordLayout(steps.layout.shape)
        self.count = steps.count
        self._steps, self._scales = steps, scales
        self._channels = Channels(*channels.read([0, 1]))

    def read(self, rows: Rows, out: HalfArray | None = None) -> HalfArray:
        """Records `rows` as float16 [n, T, D], checksums verified; see `RecordReader.read`."""
        if out is None:
            out = np.empty((len(rows), *self.layout.shape), dtype=np.float16)
        self.read_into(rows, out, range(len(rows)))
        return out

    def read_into(self, rows: Rows, out: HalfArray, slots: Rows, *, check: bool = True) -> None:
        """Read record `rows[k]` into `out[slots[k]]` for every k; see `RecordReader.read_into`."""
        self.layout.demand_room(out)
        steps_1TD = np.empty((1, *self.layout.shape), np.int8)
        scale_1T = np.empty((1, self.layout.shape[0]), np.float32)
        for row, slot in zip(rows, slots, strict=True):
            self._steps.read_into([row], steps_1TD, [0], check=check)
            self._scales.read_into([row], scale_1T, [0], check=check)
            dequantise(steps_1TD[0], scale_1T[0], self._channels, out[slot])
