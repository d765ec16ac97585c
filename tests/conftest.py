"""Settings for all tests."""

from __future__ import annotations

import os

import pytest
from support import Project, copy_project

# before any test imports a numeric library: two busy test processes must not use four threads
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the tiny workflow has run to its end. Tests must leave it as they found it."""
    project = Project(copy_project(tmp_path_factory.mktemp("finished") / "project"))
    project.snakemake()
    return project
