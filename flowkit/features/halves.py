"""Float16: how values become half precision numbers, and why some cannot.

A sample with a value that is not finite, or beyond +- 65504, is refused as a whole; nothing is ever clamped.
Whether a half is finite is read off its bits, which takes a hundredth of the time of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.features.records import HALF_LIMIT, LARGEST_BITS, HalfArray, largest_bits

Floats = NDArray[np.floating]


def to_half(values: Floats, room: Callable[[], HalfArray]) -> HalfArray:
    """`values` themselves if they are float16, else converted into `room()`; what does not fit gets infinite."""
    if values.dtype == np.float16:
        return values
    out = room()
    if values.dtype == np.float32 and values.flags.writeable:
        torch.from_numpy(out).copy_(torch.from_numpy(values))  # twenty times faster than numpy
    else:
        with np.errstate(over="ignore"):
            out[...] = values
    return out


def refusal_of(name: str, values: Floats, halves: HalfArray) -> str | None:
    """Why `values` of the array `name`, which became `halves`, cannot be stored; None if they can."""
    largest = largest_bits(halves)
    if largest < LARGEST_BITS or (largest == LARGEST_BITS and values.dtype == np.float16):
        return None
    not_finite = int(values.size - np.isfinite(values).sum())
    if not_finite:
        return not_finite_reason(name, not_finite, values.size)
    reach = float(np.abs(values).max())
    return beyond_reason(name, reach) if reach > HALF_LIMIT else None


def not_finite_reason(name: str, count: int, size: int) -> str:
    """The reason for refusing a sample with `count` of `size` values of `name` infinite or not a number."""
    return f"not finite: {count} of {size} values of {name}"


def beyond_reason(name: str, reach: float) -> str:
    """The reason for refusing a sample whose largest absolute value of `name` is `reach`."""
    return f"beyond float16: {name} reach {reach:.6g}, the limit is {HALF_LIMIT:g}"
