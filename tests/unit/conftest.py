"""Fixtures that several unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from features_material import BATCHES, ORIGIN, write_batches

from flowkit.shards.retries import Patience


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    """Notes its waits instead of waiting."""
    return Patience(failures_in_a_row=4, timeout_seconds=5, sleep=waits.append)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store of `BATCHES` batches; tests copy it before they damage it."""
    return write_batches(tmp_path_factory.mktemp("store") / "00000", BATCHES, **ORIGIN)
