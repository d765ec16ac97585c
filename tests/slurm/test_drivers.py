"""Snakemake in front of a running training: killed, interrupted, called twice; the training has one job throughout."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from cluster import Cluster
from jobs_material import Follower, Training, errors, set_steps, wait_until
from support import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SNAKEMAKE = ("--profile", "profiles/slurm-test", "--configfile", "tiny.yaml")
ONLY_TRAINING = ("--", "results/tiny/runs/flow/train/manifest.json")


def _drive(project: Project, *targets: str) -> Follower:
    """Run the workflow as a user does who may find a lock of a killed driver."""
    command = [sys.executable, "-m", "flowkit", "run", "--", *SNAKEMAKE, *(targets or ONLY_TRAINING)]
    return Follower.start(project, command)


def _jobs_of(cluster: Cluster, run: str) -> list[int]:
    """Numbers of all jobs that a run ever had."""
    return [int(job) for job in cluster.ask("squeue", "-h", "-tall", f"-nflowkit-tiny-{run}", "-o%A").split()]


@pytest.fixture
def slow(training: Training, cluster: Cluster) -> Training:
    """A training of half a minute, and no job of an earlier test under its name."""
    set_steps(training.project, 100, 0.25)
    return training


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_snakemake_ends_and_the_next_call_attaches(
    slow: Training, cluster: Cluster, how: signal.Signals
) -> None:
    before = _jobs_of(cluster, "flow")
    first = _drive(slow.project)
    slow.wait_for_step(4)
    if how == signal.SIGINT:
        os.killpg(first.process.pid, how)  # a terminal sends it to the whole group
    else:
        first.process.kill()
    assert first.end(60) != 0
    job = slow.job
    assert cluster.jobs()[job] == "RUNNING"
    second = _drive(slow.project)
    assert second.end() == 0, second.printed[-3000:]
    log = (slow.project.folder / "results/tiny/logs/train_flow.log").read_text()
    assert f"job={job} attached" in log
    assert slow.is_committed
    assert sorted(set(_jobs_of(cluster, "flow")) - set(before)) == [job]


def test_a_second_driver_is_refused_and_the_first_one_finishes(slow: Training, cluster: Cluster) -> None:
    before = _jobs_of(cluster, "flow")
    first = _drive(slow.project)
    slow.wait_for_step(4)
    by_hand = slow.finish(check=False)
    assert "held by process" in errors(by_hand)[0]
    second = _drive(slow.project)
    assert second.end(120) == 1
    assert "drives this folder, wait for it or stop it" in second.printed
    assert first.end() == 0, first.printed[-3000:]
    assert len(set(_jobs_of(cluster, "flow")) - set(before)) == 1
    assert slow.is_committed


def test_runs_train_side_by_side(slow: Training, cluster: Cluster) -> None:
    both = [f"results/tiny/runs/{run}/train/manifest.json" for run in ("flow", "regression")]
    driver = _drive(slow.project, "--", *both)
    runs = [slow, Training(slow.project, "regression")]
    wait_until("a step of both runs", lambda: all(run.step >= 2 for run in runs))
    assert {cluster.jobs()[run.job] for run in runs} == {"RUNNING"}
    assert driver.end() == 0, driver.printed[-3000:]
    assert all(run.is_committed for run in runs)
