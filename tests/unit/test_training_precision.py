"""The scale of float16 losses."""

from __future__ import annotations

import math

import pytest

from flowkit.training.precision import FIRST_SCALE, GROWTH_STEPS, LARGEST_SCALE, SMALLEST_SCALE, LossScale


def test_the_scale_falls_after_an_overflow_and_grows_after_good_steps() -> None:
    scale = LossScale.of("fp16")
    assert scale.is_overflow(1.0, math.inf)
    assert not scale.is_overflow(math.nan, math.nan), "a broken loss is no matter of scale"
    scale.update(overflow=True)
    assert scale.scale == FIRST_SCALE / 2
    for _ in range(GROWTH_STEPS):
        scale.update(overflow=False)
    assert scale.scale == FIRST_SCALE


def test_the_scale_has_ends() -> None:
    scale = LossScale(SMALLEST_SCALE, is_dynamic=True)
    assert not scale.is_overflow(1.0, math.inf), "at scale 1 the gradient itself is infinite"
    scale = LossScale(LARGEST_SCALE, GROWTH_STEPS - 1, is_dynamic=True)
    scale.update(overflow=False)
    assert scale.scale == LARGEST_SCALE


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_not_scaled(precision: str) -> None:
    scale = LossScale.of(precision)
    scale.update(overflow=False)
    assert scale.scale == 1
    assert not scale.is_overflow(1.0, math.inf)
