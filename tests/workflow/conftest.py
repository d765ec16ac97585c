"""The project that the tests of the workflow share."""

from __future__ import annotations

import pytest
from support import Project, copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the tiny workflow has run to its end. Tests must leave it as they found it."""
    project = Project(copy_project(tmp_path_factory.mktemp("finished") / "project"))
    project.snakemake()
    return project
