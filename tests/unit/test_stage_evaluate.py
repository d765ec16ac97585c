"""Stage `evaluate`: samples that do not line up with the images are refused, never scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowkit.errors import StoreError
from flowkit.features.samples import write_tokens
from flowkit.stages.evaluate import _read_samples


def test_samples_of_a_diverged_run_are_refused_by_number(tmp_path: Path) -> None:
    tokens = np.ones((5, 3, 2), np.float32)
    tokens[3, 1, 0] = np.nan
    write_tokens(tmp_path / "heun-50", [tokens], {"run": "flow"})
    with pytest.raises(StoreError, match=r"heun-50: 1 of 5 samples .* the first is number 3"):
        _read_samples(tmp_path / "heun-50")


def test_whole_samples_are_read_in_order(tmp_path: Path) -> None:
    tokens = np.arange(30, dtype=np.float32).reshape(5, 3, 2)
    write_tokens(tmp_path / "euler-1", [tokens[:2], tokens[2:]], {"run": "flow"})
    assert np.array_equal(_read_samples(tmp_path / "euler-1"), tokens)
