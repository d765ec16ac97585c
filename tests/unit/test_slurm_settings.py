"""What a profile says of jobs: read, checked, turned into what Snakemake and submitit are told."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from flowkit.config import load_config
from flowkit.errors import ConfigError, StageError
from flowkit.machine import as_environment, machine_of, named_profile, split_machine_settings, with_profile
from flowkit.paths import Places
from flowkit.slurm.failures import Failures
from flowkit.slurm.handle import Handle, JobFolder
from flowkit.slurm.job_requests import JobRequests
from flowkit.slurm.queue import JobState
from flowkit.slurm.settings import StageJob, TrainingJobs
from flowkit.stages.jobs import STAGES, Job
from flowkit.stages.specs import Plan

PROFILES = ("snellius", "slurm-test", "local")
QUARTERS = {"gpu_h100": (16, 1, 180), "gpu_a100": (18, 1, 120)}
"""Cores, GPUs and GiB of a quarter of a node."""


@pytest.fixture(scope="module")
def jobs() -> dict[str, Job]:
    """The jobs of the demo."""
    return Plan(load_config(ROOT / "workflow/config/demo.yaml"), Places("demo", Path("r"), Path("d"))).jobs


def _requests(profile: str, monkeypatch: pytest.MonkeyPatch) -> JobRequests:
    monkeypatch.setenv("USER", "somebody")
    machine = machine_of(ROOT / "profiles" / profile)
    return JobRequests(machine.stages, machine.training, machine.account)


@pytest.mark.parametrize("profile", PROFILES)
def test_shipped_profiles_are_readable_and_name_known_settings(
    profile: str, jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = _requests(profile, monkeypatch)
    for job in jobs.values():
        assert requests.of(job)["mem_mb"](None, attempt=2) == 2 * requests.of(job)["mem_mb"](None, attempt=1)
        assert requests.threads(job) >= 1


def test_snellius_asks_for_quarters_of_gpu_nodes(
    jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = _requests("snellius", monkeypatch)
    with_gpu = {stage for stage in STAGES if requests.stage(stage).gpus}
    assert with_gpu == {"extract", "texts", "sample", "ceilings"}
    for stage in with_gpu:
        asked = requests.stage(stage)
        assert (asked.cpus, asked.gpus, asked.memory_gb) == QUARTERS[asked.partition]
    asked = requests.training_of("flow")
    assert (asked.cpus_per_task, asked.gpus_per_node, asked.memory_gb) == QUARTERS[asked.partition]
    by_place = {job.spec.stage: requests.runs_here(job) for job in jobs.values()}
    assert {stage for stage, here in by_place.items() if here} == {"train", "summary", "page", "report"}
    train = next(job for job in jobs.values() if job.spec.stage == "train")
    assert (requests.threads(train), requests.retries(train)) == (1, 0)
    assert "gpu" not in requests.of(train), "who waits for a training holds no GPU"


def test_on_a_laptop_trainings_run_in_their_rule(
    jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = _requests("local", monkeypatch)
    train = next(job for job in jobs.values() if job.spec.stage == "train")
    assert not requests.runs_here(train)
    assert requests.retries(train) is None


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"extrakt": {}}, "stages.extrakt: no such stage, expected default or one of fetch"),
        ({"extract": 3}, "stages.extract=3: expected names with values"),
        ({"extract": {"gpu": 1}}, "stages.extract.gpu: unknown setting, expected one of account"),
        ({"extract": {"cpus": "many"}}, "stages.extract.cpus='many': expected a whole number of at least 1"),
        ({"default": {"memory_gb": 0}}, "stages.default.memory_gb=0: expected a whole number of at least 1"),
        ({"extract": {"partition": 7}}, "stages.extract.partition=7: expected a text"),
    ],
)
def test_wrong_stage_settings_are_named(stages: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        StageJob.of(stages, "extract")


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"gpus": 1}, "training.gpus: unknown setting"),
        ({"partition": "gpu"}, "training.partition: not read while trainings run where they are asked"),
        (
            {"executor": "slurm", "warn_seconds": 0},
            "training.warn_seconds=0: expected a whole number of at least 1",
        ),
        ({"nodes": "two"}, "training.nodes='two': expected a whole number"),
        ({"setup": "module load x"}, "training.setup='module load x': expected a list of shell lines"),
        ({"runs": ["flow"]}, "training.runs=.*expected names of runs"),
        ({"runs": {"flow": {"node": 1}}}, "training.runs.flow.node: unknown setting"),
        (
            {"executor": "slurm", "minutes": 2, "warn_seconds": 120},
            "training.warn_seconds=120: a job of 2 minutes would be warned",
        ),
    ],
)
def test_wrong_training_settings_are_named(training: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainingJobs.of(training)


def test_runs_have_settings_of_their_own_and_numbers_may_be_text() -> None:
    settings = {"executor": "slurm", "nodes": "1", "runs": {"large": {"nodes": "4"}}}
    assert TrainingJobs.of(settings, run="small", account="mine").nodes == 1
    large = TrainingJobs.of(settings, run="large", account="mine")
    assert (large.nodes, large.executor, large.account) == (4, "slurm", "mine")


def test_a_profile_holds_when_config_is_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("config: {data_root: /scratch/me, training: {executor: slurm}}\n")
    arguments = ["snakemake", "--profile", str(tmp_path), "--config", "set=train.steps=3"]
    assert named_profile(arguments, {}) == str(tmp_path)
    assert named_profile([f"--profile={tmp_path}"], {}) == str(tmp_path)
    assert named_profile(["snakemake"], {"SNAKEMAKE_PROFILE": "mine"}) == "mine"
    file = tmp_path / "config.yaml"
    settings = with_profile({"set": "train.steps=3", "experiment": "x"}, file)
    machine, values, overrides = split_machine_settings(settings, {})
    assert (machine.data_root, machine.training["executor"]) == (Path("/scratch/me"), "slurm")
    assert (values, overrides) == ({"experiment": "x"}, ("train.steps=3",))
    assert with_profile({"data_root": "/mine"}, file)["data_root"] == "/mine"
    assert with_profile({"experiment": "x"}, None) == {"experiment": "x"}
    elsewhere, _, _ = split_machine_settings({}, as_environment(settings))
    assert elsewhere == machine, "a job that sees no profile has the same settings"


def test_folders_may_name_variables_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "me")
    monkeypatch.delenv("NOBODY", raising=False)
    assert split_machine_settings({"data_root": "/scratch/$WHO/x"}, {})[0].data_root == Path("/scratch/me/x")
    with pytest.raises(ConfigError, match=r"data_root=/scratch/\$NOBODY: the environment has no NOBODY"):
        split_machine_settings({"data_root": "/scratch/$NOBODY"}, {})


def test_the_account_is_flowkits_or_slurms_own_setting() -> None:
    assert split_machine_settings({}, {"SBATCH_ACCOUNT": "a"})[0].account == "a"
    assert split_machine_settings({"account": "b"}, {"SBATCH_ACCOUNT": "a"})[0].account == "b"


def test_a_waiting_job_is_hopeless_only_for_reasons_that_no_waiting_ends() -> None:
    assert "training.minutes" in JobState("PENDING", "PartitionTimeLimit").hopeless
    assert not JobState("PENDING", "Priority").hopeless
    assert not JobState("RUNNING", "None").hopeless


def _failed(failures: Failures, rule: str, message: str, log: Path, jobid: int = 1) -> None:
    record = logging.makeLogRecord(
        {"event": "job_error", "rule_name": rule, "rule_msg": message, "jobid": jobid, "log": [str(log)]}
    )
    failures.emit(record)


def test_each_failure_is_one_line(tmp_path: Path) -> None:
    failures, log = Failures(), tmp_path / "x.log"
    log.write_text("12:00:00 started\nflowkit: error: tars/1.tar: damaged, remove it\n")
    _failed(failures, "extract_a", "SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. More.", log)
    _failed(failures, "pairs", "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition\n"
            "sbatch: error: Batch job submission failed'.\n   sbatch call:\n", log, 2)  # fmt: skip
    _failed(failures, "head", "SLURM-job '9' failed, SLURM status is: 'FAILED'.", tmp_path / "none.log", 3)
    _failed(failures, "again", "SLURM-job '8' failed, SLURM status is: 'FAILED'.", log, 4)
    failures.emit(logging.makeLogRecord({"event": "job_finished", "job_id": 4}))
    extract, pairs, head = failures.lines()
    assert extract == (
        "flowkit: error: extract_a: job 7 reached its time limit and was not queued again: "
        f"tars/1.tar: damaged, remove it; log {log}"
    )
    assert pairs.startswith("flowkit: error: pairs: Slurm did not take the job: invalid partition Batch job")
    assert "\n" not in pairs
    assert head.endswith("job 9 failed; it left no log, so it ended before Python began")


def test_settings_travel_to_the_rule_as_json() -> None:
    from dataclasses import asdict

    jobs = TrainingJobs.of({"executor": "slurm", "setup": ["module load x"]})
    assert TrainingJobs.of(json.loads(json.dumps(asdict(jobs)))) == jobs


def test_a_handle_of_another_user_is_read_but_not_acted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path / "state")
    folder.open()
    before = os.umask(0o002)
    try:
        folder.remember(Handle("7", "key", "slurm"))
    finally:
        os.umask(before)
    assert folder.own_handle() == folder.handle() == Handle("7", "key", "slurm")
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert folder.handle() is not None
    with pytest.raises(StageError, match="trains this run, not you"):
        folder.own_handle()


def test_a_folder_that_was_open_to_others_is_refused_unless_it_is_empty(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "state")
    folder.jobs.mkdir(parents=True)
    folder.jobs.chmod(0o777)
    folder.open()
    assert folder.jobs.stat().st_mode & 0o777 == 0o700
    (folder.jobs / "7_submitted.pkl").touch()
    folder.jobs.chmod(0o770)
    with pytest.raises(StageError, match="another user could have put a job there"):
        folder.open()


@pytest.mark.parametrize(("mode", "code"), [(0o700, 0), (0o720, 1), (0o702, 1)])
def test_a_job_checks_the_folder_before_it_reads_from_it(tmp_path: Path, mode: int, code: int) -> None:
    folder = JobFolder(tmp_path / "state of 'mine'")
    folder.open()
    (folder.jobs / "7_submitted.pkl").touch()
    folder.jobs.chmod(mode)
    assert subprocess.run(["bash", "-c", folder.check], capture_output=True).returncode == code
