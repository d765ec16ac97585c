"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# before any test imports a numeric library: two busy test processes must not use four threads
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

ROOT = Path(__file__).parents[1]
PROJECT_PARTS = ("flowkit", "rules", "workflow", "profiles", "envs")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


def copy_project(to: Path) -> Path:
    """Copy what the workflow needs, so that a test may edit it; results are not copied."""
    to.mkdir(parents=True, exist_ok=True)
    for part in PROJECT_PARTS:
        shutil.copytree(ROOT / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/workflow/tiny.yaml", to / "tiny.yaml")
    return to
