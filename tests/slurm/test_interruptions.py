"""What can happen to a training job, made to happen: time limit, preemption, a lost node, memory, errors, waiting."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest
from cluster import ACCOUNT, Cluster
from jobs_material import EVENT_SECONDS, LOOP, STEP, Training, errors, restarts, set_steps, wait_until
from support import Project, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, SECONDS_PER_STEP = 160, 0.35
"""About a minute without interruption: longer than Slurm takes to notice a limit of one minute."""


@pytest.fixture
def slow(training: Training) -> Iterator[Training]:
    """A training that takes about a minute; at the end of the test no job of it is left."""
    set_steps(training.project, STEPS, SECONDS_PER_STEP)
    yield training
    training.project.flowkit("cancel", "flow", "--config", "tiny.yaml", check=False)


@pytest.fixture(scope="module")
def uninterrupted(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, finished: Project
) -> dict[str, bytes]:
    """What the same training leaves that nothing happens to, in this process, at full speed."""
    folder = copy_project(tmp_path_factory.mktemp("uninterrupted") / "project")
    shutil.copytree(finished.folder / "results/data", folder / "results/data", symlinks=True)
    alone = Training(Project(folder))
    set_steps(alone.project, STEPS)
    alone.project.flowkit("train", "--config", "tiny.yaml", "--run", "flow")
    return alone.result


def test_at_the_time_limit_a_training_is_queued_again_and_ends_with_the_same_bits(
    slow: Training, cluster: Cluster, uninterrupted: dict[str, bytes]
) -> None:
    said = slow.finish(partition="short", minutes=1)
    assert "asked to stop: step" in said
    assert "training resumed step=" in said
    assert restarts(cluster, slow.job) >= 1
    assert slow.result == uninterrupted


@pytest.mark.parametrize("is_warned", [True, False], ids=["warned", "SIGTERM alone"])
def test_a_preempted_training_is_queued_again_and_ends_with_the_same_bits(
    slow: Training, cluster: Cluster, uninterrupted: dict[str, bytes], is_warned: bool
) -> None:
    """Only some clusters send a preempted job the warning that it asked for; all send SIGTERM and give it time."""
    cluster.warn_preempted(is_warned)
    try:
        follower = slow.start(partition="spare")
        slow.wait_for_step(5)
        everything = ("--exclusive", "--nodes=2", "-pgpu_a100", f"-A{ACCOUNT}", "-o/dev/null")
        urgent = cluster.ask("sbatch", "--parsable", *everything, "--wrap", "sleep 5")
        wait_until("the urgent job", lambda: cluster.jobs()[int(urgent)] == "COMPLETED")
        assert follower.end() == 0, follower.printed[-3000:]
    finally:
        cluster.warn_preempted(True)
    assert "asked to stop: step" in follower.printed
    assert restarts(cluster, slow.job) >= 1
    assert slow.result == uninterrupted


def test_a_training_whose_node_goes_down_resumes_on_another(
    slow: Training, cluster: Cluster, uninterrupted: dict[str, bytes]
) -> None:
    follower = slow.start()
    slow.wait_for_step(5)
    with cluster.without_node_of(slow.job):
        assert follower.end() == 0, follower.printed[-3000:]
    assert restarts(cluster, slow.job) >= 1
    assert "training resumed step=" in follower.printed
    assert slow.result == uninterrupted


def test_requeues_are_limited(slow: Training) -> None:
    set_steps(slow.project, 100_000, 0.2)
    follower = slow.start(partition="short", minutes=1, requeues=1)
    assert follower.end() == 1
    (error,) = errors(follower.printed)
    assert "training.requeues" in error
    assert "training resumed step=" in follower.printed


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("raise RuntimeError('the disk is odd')", ": RuntimeError: the disk is odd; log "),
        ("x = bytearray(3 << 30); time.sleep(60)", " ran out of memory (used "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", " failed; it last said: "),
    ],
    ids=["exception", "memory", "killed"],
)
def test_a_job_that_fails_ends_in_one_line_and_the_next_call_recovers(
    training: Training, cluster: Cluster, what: str, says: str
) -> None:
    training.project.edit(LOOP, STEP, f"{STEP}        {what}\n")
    follower = training.start(memory_gb=2)
    wait_until("a job", lambda: (training.folder / "state/job.json").exists())
    wait_until("its end", lambda: cluster.jobs()[training.job] not in ("PENDING", "RUNNING"))
    assert follower.end(EVENT_SECONDS) == 1
    (error,) = errors(follower.printed)
    assert f"job {training.job}{says}" in error
    assert "log " in error
    assert not training.is_committed
    training.project.edit(LOOP, f"{STEP}        {what}\n", STEP)
    training.finish()
    assert training.is_committed


def test_a_job_that_dies_before_python_begins_ends_in_one_line(training: Training) -> None:
    began = time.monotonic()
    (error,) = errors(training.finish(check=False, setup=["exit 7"]))
    assert time.monotonic() - began < EVENT_SECONDS
    assert error.endswith(f"job {training.job} failed; it left no log, so it died before Python began")
    assert not training.is_committed


def test_a_job_that_waits_is_told_with_its_reason_and_can_be_cancelled(
    training: Training, cluster: Cluster
) -> None:
    follower = training.start(partition="held")
    wait_until("the reason", lambda: "state=PENDING" in follower.printed)
    wait_until("PartitionDown", lambda: "Partition" in follower.printed, 30)
    began = time.monotonic()
    cluster.call("scancel", str(training.job))
    assert follower.end(EVENT_SECONDS) == 1
    assert time.monotonic() - began < EVENT_SECONDS
    assert "was cancelled from outside" in errors(follower.printed)[0]
