"""Trainings as jobs of a real Slurm: submitted, attached to, warned, requeued, cancelled, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import ACCOUNT, Cluster
from support import Project, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOBS = {
    "executor": "slurm",
    "partition": "gpu_h100",
    "account": ACCOUNT,
    "gpus_per_node": 1,
    "cpus_per_task": 1,
    "memory_gb": 4,
    "minutes": 5,
    "poll_seconds": 1,
    "warn_seconds": 30,
}
SAME = ("model.safetensors", "statistics.safetensors", "config.json")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Project:
    """A project whose features are there; nothing is trained."""
    folder = copy_project(tmp_path_factory.mktemp("prepared") / "project")
    project = Project(folder, variables=cluster.environment)
    project.snakemake("--until", "pairs_train")
    return project


@pytest.fixture
def project(prepared: Project) -> Iterator[Project]:
    """The prepared project without any training."""
    yield prepared
    shutil.rmtree(prepared.folder / "results/tiny/runs", ignore_errors=True)


def _train(run: str = "flow", *overrides: str, **jobs: Any) -> list[str]:
    """The command line of a training; `overrides` make an experiment of their own."""
    named = [f"--set={one}" for one in ("experiment=tiny", *overrides)] if overrides else []
    return ["train", "--config", "tiny.yaml", "--run", run, *named, "--jobs", json.dumps(JOBS | jobs)]


def _start(project: Project, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flowkit", *command],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _handle(project: Project, run: str = "flow") -> dict[str, str]:
    return json.loads((project.folder / f"results/tiny/runs/{run}/train/state/job.json").read_text())


def _wait_for_step(project: Project, step: int, run: str = "flow", seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for file in project.folder.glob(f"results/tiny/runs/{run}/train/state/work-*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= step:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{run} did not reach step {step} within {seconds} s")


def _result(project: Project, run: str = "flow") -> dict[str, bytes]:
    (manifest,) = project.folder.glob(f"results/tiny/runs/{run}/train/manifest.json")
    content = manifest.parent / json.loads(manifest.read_text())["content"]
    return {name: (content / name).read_bytes() for name in SAME}


def test_a_cluster_has_fake_gpus_and_refuses_unknown_accounts(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = cluster.ask("sbatch", "--parsable", f"-A{ACCOUNT}", f"-o{out}", "--gpus=2", "-pgpu_a100",
                      "--wait", "--wrap", "echo $CUDA_VISIBLE_DEVICES on $SLURMD_NODENAME")  # fmt: skip
    assert cluster.jobs()[int(job)] == "COMPLETED"
    assert out.read_text().split()[0] == "0,1"
    assert out.read_text().split()[2] in ("node1", "node2")
    refused = cluster.call("sbatch", "-Anobody", "--wrap", "true", check=False)
    assert "Invalid account" in refused.stderr


def test_a_training_job_leaves_what_a_local_one_leaves(project: Project) -> None:
    said = project.flowkit(*_train())
    assert "submitted run=flow executor=slurm" in said
    assert "state=COMPLETED" in said
    submitted = _result(project)
    shutil.rmtree(project.folder / "results/tiny/runs")
    project.flowkit("train", "--config", "tiny.yaml", "--run", "flow")
    assert _result(project) == submitted


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"account": "nobody"}, "Invalid account"),
        ({"executor": "cloud"}, "training.executor='cloud': expected one of"),
        ({"minutes": 0}, "training.minutes=0: expected a whole number"),
    ],
)
def test_settings_that_slurm_refuses_end_in_one_line(
    project: Project, jobs: dict[str, Any], says: str
) -> None:
    said = project.flowkit(*_train(**jobs), check=False)
    errors = [line for line in said.splitlines() if line.startswith("flowkit: error:")]
    assert len(errors) == 1
    assert says in errors[0]
    assert not list(project.folder.glob("results/tiny/runs/flow/train/manifest.json"))


def test_a_killed_follower_leaves_the_job_and_the_next_one_attaches(
    project: Project, cluster: Cluster
) -> None:
    project.edit("tiny.yaml", "steps: 6", "steps: 400")
    try:
        first = _start(project, _train())
        _wait_for_step(project, 3)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        job = _handle(project)["job_id"]
        assert cluster.jobs()[int(job)] == "RUNNING"
        said = project.flowkit(*_train())
        assert f"job={job} attached state=RUNNING" in said
        assert _handle(project)["job_id"] == job
        assert _result(project)
    finally:
        project.edit("tiny.yaml", "steps: 400", "steps: 6")


def test_a_cancelled_job_ends_in_one_line_and_the_next_call_goes_on(
    project: Project, cluster: Cluster
) -> None:
    project.edit("tiny.yaml", "steps: 6", "steps: 400")
    try:
        follower = _start(project, _train())
        _wait_for_step(project, 5)
        cancelled = time.monotonic()
        cluster.call("scancel", _handle(project)["job_id"])
        said, _ = follower.communicate(timeout=60)
        assert time.monotonic() - cancelled < 60
        assert follower.returncode == 1
        (error,) = [line for line in said.splitlines() if line.startswith("flowkit: error:")]
        assert "was cancelled from outside" in error
        assert "log " in error
        assert "training resumed step=" in project.flowkit(*_train())
    finally:
        project.edit("tiny.yaml", "steps: 400", "steps: 6")


def test_the_folder_of_pickles_is_the_owners_alone(project: Project) -> None:
    project.flowkit(*_train())
    state = project.folder / "results/tiny/runs/flow/train/state"
    assert (state / "jobs").stat().st_mode & 0o777 == 0o700
    assert not (state / "job.json").stat().st_mode & 0o022
    os.chown(state / "jobs", 12345, -1)
    (state.parent / "manifest.json").unlink()
    said = project.flowkit(*_train(), check=False)
    assert "belongs to user 12345" in said
    os.chown(state / "jobs", os.getuid(), -1)
