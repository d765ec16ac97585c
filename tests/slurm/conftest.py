"""A Slurm of its own for the tests of this folder, or a reason why there is none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; it ends with the session. Every folder above munge's socket must be open to all users."""
    if missing := missing_programs():
        pytest.skip(f"no Slurm to start: {', '.join(missing)} missing")
    folder = Path(tempfile.mkdtemp(prefix="flowkit-slurm-"))
    folder.chmod(0o755)
    made = Cluster(folder / "cluster")
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)
