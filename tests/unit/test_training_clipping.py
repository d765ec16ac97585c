"""The limit of the gradient norm."""

from __future__ import annotations

import pytest

from flowkit.training.clipping import AdaptiveClip


def test_the_limit_is_halved_while_norms_run_high_and_comes_back() -> None:
    clip = AdaptiveClip(1.0, is_adaptive=True)
    assert clip.share(0.8) == 1
    for _ in range(50):
        clip.share(4.0)
    assert clip.current == 0.5
    assert clip.share(4.0) == pytest.approx(0.125)
    for _ in range(200):
        clip.share(0.1)
    assert clip.current == 1.0
    assert clip.share(2.0) == pytest.approx(0.5)


def test_one_high_norm_among_low_ones_does_not_halve_the_limit() -> None:
    clip = AdaptiveClip(1.0, is_adaptive=True)
    for _ in range(50):
        clip.share(0.5)
    clip.share(9.0)
    assert clip.current == 1.0


def test_a_fixed_limit_stays() -> None:
    clip = AdaptiveClip(1.0, is_adaptive=False)
    for _ in range(50):
        clip.share(10.0)
    assert clip.current == 1.0


def test_a_restored_limit_goes_on_as_the_saved_one() -> None:
    clip, restored = (AdaptiveClip(1.0, is_adaptive=True) for _ in range(2))
    for norm in (3.0, 0.2, 5.0):
        clip.share(norm)
    restored.restore(clip.state())
    assert [clip.share(norm) for norm in (1.5, 0.9)] == [restored.share(norm) for norm in (1.5, 0.9)]
