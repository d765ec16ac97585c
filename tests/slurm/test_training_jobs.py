"""Trainings as jobs of a real Slurm: submitted, attached to, cancelled, refused; their files are the owner's."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import ACCOUNT, Cluster
from jobs_material import EVENT_SECONDS, Training, errors, set_steps, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_cluster_has_fake_gpus_and_refuses_unknown_accounts(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = cluster.ask("sbatch", "--parsable", f"-A{ACCOUNT}", f"-o{out}", "--gpus=2", "-pgpu_a100",
                      "--wait", "--wrap", "echo $CUDA_VISIBLE_DEVICES on $SLURMD_NODENAME")  # fmt: skip
    assert cluster.jobs()[int(job)] == "COMPLETED"
    assert out.read_text().split()[0] == "0,1"
    assert out.read_text().split()[2] in ("node1", "node2")
    refused = cluster.call("sbatch", "-Anobody", "--wrap", "true", check=False)
    assert "Invalid account" in refused.stderr


def test_a_training_job_leaves_what_a_local_one_leaves(training: Training) -> None:
    said = training.finish()
    assert "submitted run=flow executor=slurm" in said
    assert "state=COMPLETED" in said
    submitted = training.result
    shutil.rmtree(training.folder)
    training.project.flowkit("train", "--config", "tiny.yaml", "--run", "flow")
    assert training.result == submitted


@pytest.mark.parametrize("executor", ["local", "debug"])
def test_the_stand_ins_for_slurm_train_too(training: Training, executor: str) -> None:
    assert f"executor={executor}" in training.finish(executor=executor)
    assert training.is_committed


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"account": "nobody"}, "Invalid account"),
        ({"minutes": 100_000}, "asks for more minutes than its partition gives, correct training.minutes"),
        ({"constraint": "fast"}, "feature"),
        ({"gpus_per_node": 9}, "node configuration"),
        ({"executor": "cloud"}, "training.executor='cloud': expected one of"),
        ({"minutes": 0}, "training.minutes=0: expected a whole number"),
    ],
)
def test_settings_that_slurm_refuses_end_in_one_line(
    training: Training, jobs: dict[str, Any], says: str
) -> None:
    began = time.monotonic()
    (error,) = errors(training.finish(check=False, **jobs))
    assert time.monotonic() - began < EVENT_SECONDS
    assert says in error
    assert not training.is_committed


def test_a_killed_follower_leaves_the_job_and_the_next_one_attaches(
    training: Training, cluster: Cluster
) -> None:
    set_steps(training.project, 60, seconds_per_step=0.2)
    job = training.orphan()
    assert cluster.jobs()[job] == "RUNNING"
    said = training.finish()
    assert f"job={job} attached state=RUNNING" in said
    assert training.job == job
    assert training.is_committed


def test_a_job_is_found_though_its_submitter_was_killed_before_it_could_note_it(
    training: Training, cluster: Cluster
) -> None:
    set_steps(training.project, 40, seconds_per_step=0.2)
    job = training.orphan()
    (training.folder / "state/job.json").unlink()
    said = training.finish()
    assert f"job={job} was submitted by a process that was killed" in said
    assert f"job={job} attached" in said
    assert training.job == job
    assert len([one for one in cluster.jobs() if one >= job]) == 1, "one job only"
    assert training.is_committed


def test_a_job_of_other_values_is_cancelled_before_another_is_submitted(
    training: Training, cluster: Cluster
) -> None:
    set_steps(training.project, 300, seconds_per_step=0.2)
    job = training.orphan()
    set_steps(training.project, 5)
    said = training.finish()
    assert f"job={job} trains other values or other code, cancelling it" in said
    assert cluster.jobs()[job] == "CANCELLED"
    assert training.job != job
    assert training.is_committed


def test_a_cancelled_job_ends_in_one_line_and_the_next_call_goes_on(
    training: Training, cluster: Cluster
) -> None:
    set_steps(training.project, 60, seconds_per_step=0.2)
    training.project.edit("tiny.yaml", "checkpoint_every: 2", "checkpoint_every: 1000")
    follower = training.start()
    training.wait_for_step(5)
    cancelled = time.monotonic()
    cluster.call("scancel", str(training.job))
    assert follower.end() == 1
    assert time.monotonic() - cancelled < EVENT_SECONDS
    (error,) = errors(follower.printed)
    assert "was cancelled from outside" in error
    assert "log " in error
    resumed = re.search(r"training resumed step=(\d+)", training.finish())
    assert resumed is not None
    assert int(resumed[1]) >= 5, "it was saved when it was cancelled"
    assert training.is_committed


def test_flowkit_status_and_cancel(training: Training, cluster: Cluster) -> None:
    set_steps(training.project, 300, seconds_per_step=0.2)
    follower = training.start()
    training.wait_for_step(6)
    job = training.job
    shown = training.project.flowkit("status", "--config", "tiny.yaml").splitlines()
    title, header, flow, regression = shown
    assert title == "experiment tiny in results/tiny"
    assert header.split()[:4] == ["run", "job", "state", "step"]
    assert flow.split()[:3] == ["flow", str(job), "running"]
    assert " of 300" in flow
    assert regression.split()[:4] == ["regression", "-", "not", "started"]
    assert f"job {job} is cancelled" in training.project.flowkit("cancel", "flow", "--config", "tiny.yaml")
    assert follower.end(EVENT_SECONDS) == 1
    assert cluster.jobs()[job] == "CANCELLED"
    said = training.project.flowkit("cancel", "flow", "--config", "tiny.yaml", check=False)
    assert "flow: experiment tiny has no job under way" in said
    assert "no such run" in training.project.flowkit("cancel", "other", "--config", "tiny.yaml", check=False)


def test_the_folder_of_pickles_is_the_owners_alone(training: Training) -> None:
    training.finish()
    state = training.folder / "state"
    assert (state / "jobs").stat().st_mode & 0o777 == 0o700
    os.chown(state / "jobs", 12345, -1)
    assert "belongs to user 12345" in training.finish(check=False)
    os.chown(state / "jobs", os.getuid(), -1)
    (state / "jobs").chmod(0o777)
    assert "another user could have put a job there" in training.finish(check=False)


def test_a_job_reads_no_pickle_from_a_folder_that_another_user_came_to_write_in(
    training: Training, cluster: Cluster
) -> None:
    follower = training.start(partition="held")
    wait_until("a job", lambda: (training.folder / "state/job.json").exists())
    jobs, job = training.folder / "state/jobs", training.job
    os.chown(jobs / f"{job}_submitted.pkl", 12345, -1)
    cluster.call("scontrol", "update", f"JobId={job}", "Partition=gpu_h100")
    assert follower.end(120) == 1
    assert "is open to other users, nothing is read from it" in follower.printed + (
        (jobs / f"{job}_0_log.err").read_text() if (jobs / f"{job}_0_log.err").exists() else ""
    ) + "".join(file.read_text() for file in jobs.glob("*.err"))
    assert cluster.jobs()[job] == "FAILED"
    assert not training.is_committed
