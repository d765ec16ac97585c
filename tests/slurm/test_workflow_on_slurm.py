"""The whole workflow through Slurm: equal to a local one, one line for each failure, nothing left open to others."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from jobs_material import Follower, errors, restarts, wait_until
from support import Project, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SECRET = "hf_never_to_be_written_down"
STAGE = "def run(spec: Spec) -> None:\n"
POLL_SECONDS = 180
"""The executor plugin asks Slurm at least this often."""
HOLD_TIMES = {"site", "page"}
"""The pages of runs say how long each stage took, and the report holds them."""


def _profile(project: Project, name: str, **stages: dict[str, Any]) -> str:
    """Write a copy of the test profile with other settings of some stages, and return its path."""
    settings = yaml.safe_load((project.folder / "profiles/slurm-test/config.yaml").read_text())
    for stage, changed in stages.items():
        settings["config"]["stages"][stage] = settings["config"]["stages"].get(stage, {}) | changed
    folder = project.folder / "profiles" / name
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return f"profiles/{name}"


def _drive(project: Project, *arguments: str, profile: str = "profiles/slurm-test") -> Follower:
    return Follower.start(project, [sys.executable, "-m", "snakemake", *_options(profile), *arguments])


def _options(profile: str) -> tuple[str, ...]:
    return "--profile", profile, "--configfile", "tiny.yaml"


def _manifests(folder: Path) -> dict[str, Any]:
    return {
        str(file.relative_to(folder)): json.loads(file.read_text())
        for file in folder.rglob("manifest.json")
        if not HOLD_TIMES & set(file.parts)
    }


@pytest.fixture(scope="module")
def through_slurm(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the whole workflow has run through Slurm, by a user who has a token."""
    folder = copy_project(tmp_path_factory.mktemp("slurm") / "project")
    project = Project(
        folder, variables=cluster.environment | {"HF_TOKEN": SECRET, "HUGGING_FACE_HUB_TOKEN": SECRET}
    )
    # a --config makes Snakemake forget the profile's own, which the workflow then reads itself
    overrides = ("--config", "set=report.gallery_images=6")
    command = [sys.executable, "-m", "flowkit", "run", "--", *_options("profiles/slurm-test"), *overrides]
    driver = Follower.start(project, command, umask=0)
    assert driver.end(900) == 0, driver.printed[-6000:]
    return project


def test_the_workflow_through_slurm_equals_the_local_one(through_slurm: Project, finished: Project) -> None:
    ours, theirs = (_manifests(project.folder / "results") for project in (through_slurm, finished))
    assert len(ours) > 20
    assert ours == theirs


def test_a_second_call_does_nothing(through_slurm: Project) -> None:
    driver = _drive(through_slurm)
    assert driver.end(120) == 0
    assert "Nothing to be done" in driver.printed


def test_nothing_that_it_leaves_holds_the_token_or_is_open_to_others(through_slurm: Project) -> None:
    files = [path for path in through_slurm.folder.rglob("*") if not path.is_symlink()]
    assert len(files) > 200
    assert not [path for path in files if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH]
    assert not [path for path in files if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.fixture
def failing(through_slurm: Project) -> Project:
    """The finished project; a test gives back every file of the package that it changes."""
    return through_slurm


def test_every_failure_ends_in_one_line_and_the_next_call_recovers(
    failing: Project, cluster: Cluster
) -> None:
    sample = failing.folder / "flowkit/stages/sample.py"
    evaluate = failing.folder / "flowkit/stages/evaluate.py"
    kept = {file: file.read_text() for file in (sample, evaluate)}
    sample.write_text(kept[sample].replace(STAGE, STAGE + "    if spec.target['run'] == 'flow':\n"
        "        raise RuntimeError('the disk is odd')\n"
        "    import time\n"
        "    ballast = bytearray(3 << 30)\n"
        "    time.sleep(60)\n"))  # fmt: skip
    evaluate.write_text(kept[evaluate].replace(STAGE, STAGE + "    import time\n    time.sleep(120)\n"))
    profile = _profile(
        failing,
        "faults",
        texts={"partition": "nowhere"},
        head={"account": "nobody"},
        sample={"memory_gb": 1},
    )
    forced = ("-R", "texts_test", "head_demo_vit", "sample_flow", "sample_regression", "--retries", "0")
    driver = _drive(failing, *forced, profile=profile)
    try:
        assert driver.end(300) == 1
        lines = {line.split(": ")[2]: line for line in errors(driver.printed)}
        assert set(lines) == {"texts_test", "head_demo_vit", "sample_flow", "sample_regression"}
        assert "invalid partition specified: nowhere" in lines["texts_test"]
        assert "nobody" in lines["head_demo_vit"]
        assert "RuntimeError: the disk is odd; log results/tiny/logs/sample_flow.log" in lines["sample_flow"]
        assert "ran out of memory (used " in lines["sample_regression"]

        sample.write_text(kept[sample])
        second = _drive(failing, "--retries", "0")
        wait_until("an evaluation", lambda: _running(cluster, "rule_evaluate_flow"))
        cluster.call("scancel", _running(cluster, "rule_evaluate_flow"))
        said = "flowkit: failed: evaluate_flow: job "
        wait_until("word of it", lambda: said in second.printed, POLL_SECONDS)
        assert second.end(400) == 1
        (cancelled,) = [line for line in errors(second.printed) if "evaluate_flow" in line]
        assert "was cancelled from outside; log " in cancelled
    finally:
        for file, text in kept.items():
            file.write_text(text)
    third = _drive(failing)
    assert third.end(600) == 0, third.printed[-4000:]


def test_a_stage_whose_node_goes_down_is_run_again(failing: Project, cluster: Cluster) -> None:
    sample = failing.folder / "flowkit/stages/sample.py"
    kept = sample.read_text()
    sample.write_text(kept.replace(STAGE, STAGE + "    import time\n    time.sleep(15)\n"))
    try:
        driver = _drive(failing, "--", "results/tiny/runs/flow/samples/test/manifest.json")
        wait_until("a job", lambda: _running(cluster, "rule_sample_flow"))
        job = _running(cluster, "rule_sample_flow")
        with cluster.without_node_of(int(job)):
            assert driver.end(300) == 0, driver.printed[-3000:]
        assert restarts(cluster, int(job)) == 1
    finally:
        sample.write_text(kept)


def test_driving_two_hundred_jobs_takes_little(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(copy_project(tmp_path / "project"), variables=cluster.environment)
    project.edit("tiny.yaml", "images: 120, images_per_shard: 40", "images: 320, images_per_shard: 2")
    project.snakemake("--", "results/data/shards/train/manifest.json")
    profile = _profile(project, "held", extract={"partition": "held"})
    config = project.folder / profile / "config.yaml"
    settings = yaml.safe_load(config.read_text()) | {"jobs": 200}
    settings["config"]["shards_per_job"] = 1
    config.write_text(yaml.safe_dump(settings))
    driver = _drive(project, profile=profile)
    wait_until(
        "200 jobs in the queue",
        lambda: len(cluster.ask("squeue", "-h", "-pheld", "-o%A").split()) >= 200,
        400,
    )
    seconds = _processor_seconds(driver.process.pid)
    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.end(120) == 1
    wait_until("an empty queue", lambda: not cluster.ask("squeue", "-h", "-pheld", "-o%A"))
    assert seconds < 20, "one second for ten jobs"


def _running(cluster: Cluster, comment: str) -> str:
    """Number of the running job with this comment, "" if there is none."""
    lines = cluster.ask("squeue", "-h", "-tR", "-o%A %k").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f" {comment}")), "")


def _processor_seconds(process: int) -> float:
    """Processor time of a process and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
