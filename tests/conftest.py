"""Settings for all tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from support import Project, copy_project

from flowkit.runtime import exclusive

# before any test imports a numeric library: two busy test processes must not use four threads
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# a shell makes what it starts in the background deaf to Ctrl-C, and so would be the drivers that tests press it on
signal.signal(signal.SIGINT, signal.default_int_handler)


OFFLINE = "HF_HUB_OFFLINE"


@pytest.fixture(autouse=True)
def _network_as_before() -> Iterator[None]:
    """A command that a test runs in this process forbids the network for good; the next test may need it."""
    before = os.environ.get(OFFLINE)
    yield
    os.environ.pop(OFFLINE, None)
    if before is not None:
        os.environ[OFFLINE] = before


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the tiny workflow has run to its end. Tests must leave it as they found it.

    It is made once; each test process has a copy of its own, because some tests edit it and put it back.
    """
    own = tmp_path_factory.mktemp("finished") / "project"
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = shared / "finished-by-all"
    with exclusive(shared / "finished.lock", wait_seconds=900):
        if not (made / "done").exists():
            Project(copy_project(made / "project")).snakemake()
            (made / "done").touch()
    shutil.copytree(made / "project", own, symlinks=True)
    return Project(own)
