"""A Slurm of its own for the tests of this folder, or a reason why there is none, and a project to train in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing_programs
from jobs_material import Training
from support import Project, copy_project

from flowkit.runtime import exclusive


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; it ends with the session. Every folder above munge's socket must be open to all users."""
    if missing := missing_programs():
        reason = f"no Slurm to start: {', '.join(missing)} missing"
        if os.environ.get("FLOWKIT_TESTS_NEED_SLURM"):  # where it was installed on purpose
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="flowkit-slurm-"))
    folder.chmod(0o755)
    made = Cluster(folder / "cluster")
    try:
        with exclusive(Path(tempfile.gettempdir()) / "flowkit-slurm.lock", wait_seconds=120):
            made.start()  # two databases that are made at the same moment disturb each other
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


@pytest.fixture
def project(cluster: Cluster, finished: Project, tmp_path: Path) -> Project:
    """A copy of the project on the cluster, with all features made and nothing trained."""
    folder = copy_project(tmp_path / "project")
    shutil.copytree(finished.folder / "results/data", folder / "results/data", symlinks=True)
    return Project(folder, variables=cluster.environment)


@pytest.fixture
def training(project: Project) -> Training:
    """The run called flow."""
    return Training(project)
