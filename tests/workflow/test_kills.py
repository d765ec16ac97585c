"""kill -9 at any moment, then the same command again: the same results, and nobody left at work."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import copy_project

from flowkit.runtime import process_identity

RUN = [sys.executable, "-m", "flowkit", "run", "--parent", "{parent}", "--", "--profile", "profiles/local"]
RUN += ["--configfile", "tiny.yaml"]
KILLS = 6
SECONDS_TO_END = 10


def _processes_of(folder: Path) -> list[int]:
    """Return the living processes whose working directory is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                works_here = os.readlink(entry / "cwd") == str(folder)
            except OSError:
                continue
            if works_here and process_identity(int(entry.name)):
                found.append(int(entry.name))
    return found


def _manifests(folder: Path) -> dict[str, str]:
    """Return every manifest but that of the pages, which show how long each stage took."""
    found = sorted(
        set(folder.rglob("results/**/manifest.json"))
        - set(folder.rglob("results/*/site/manifest.json"))
        - set(folder.rglob("results/*/runs/*/page/manifest.json"))
    )
    return {str(path.relative_to(folder)): path.read_text() for path in found}


class Driver:
    """The workflow under a stand-in for make: a shell that is its parent."""

    def __init__(self, project) -> None:
        command = " ".join(RUN).format(parent="$$")
        self.shell = subprocess.Popen(
            ["bash", "-c", f"{command} > driver.log 2>&1; exit $?"],
            cwd=project.folder,
            env=project.environment,
        )
        self.folder = project.folder

    def kill(self, whom: str) -> bool:
        """Kill -9 the shell that stands for make, or Snakemake; False if the workflow had already ended."""
        while self.shell.poll() is None:
            victims = (
                [self.shell.pid] if whom == "make" else [*filter(_is_snakemake, _processes_of(self.folder))]
            )
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            if victims:
                return True
            time.sleep(0.1)  # the driver has not started Snakemake yet
        return False


def _is_snakemake(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"snakemake" in words and b"--unlock" not in words


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["make", "snakemake"])
def test_killed_workflow_finishes_with_the_same_results(finished, tmp_path: Path, whom: str) -> None:
    project = type(finished)(copy_project(tmp_path / "project"))
    dice = random.Random(whom)
    kills = 0
    for _ in range(KILLS):
        driver = Driver(project)
        time.sleep(dice.uniform(3, 18))
        kills += driver.kill(whom)
        driver.shell.wait(timeout=300)
        deadline = time.monotonic() + SECONDS_TO_END
        while (left := _processes_of(project.folder)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, "processes work on after the kill"
    assert kills >= 2
    done = project.run([word.format(parent="0") for word in RUN])
    assert "Traceback" not in done
    assert project.planned() == {}
    assert _manifests(project.folder) == _manifests(finished.folder)


def test_a_second_driver_is_refused_while_the_first_lives(finished) -> None:
    """Holding the lock of the working directory is what makes unlocking safe."""
    code = (
        "from flowkit.driver import hold_driver_lock; hold_driver_lock(); print('held', flush=True); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=finished.folder,
        env=finished.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        said = finished.run([sys.executable, "-c", code.replace("()", "(wait_seconds=0.5)", 1)], check=False)
        assert f"process {first.pid} drives this folder" in said
    finally:
        first.kill()
        first.wait()


def test_threads_of_a_rule_are_the_threads_of_its_libraries(finished) -> None:
    """A stage process sets what it is given, and every rule passes on what Snakemake gives it."""
    code = (
        "import sys; from flowkit.runtime import set_threads; set_threads(1); import torch; "
        "print(torch.get_num_threads())"
    )
    environment = {
        key: value for key, value in finished.environment.items() if not key.endswith("_NUM_THREADS")
    }
    said = subprocess.check_output(
        [sys.executable, "-c", code], env=environment, cwd=finished.folder, text=True
    )
    assert said.strip() == "1"  # without set_threads: one for each core
    shells = re.findall(
        r"python -m flowkit (\w+) .*--threads (\d+) --parent", finished.snakemake("-n", "-F", "-p")
    )
    assert {stage for stage, _ in shells} >= {"extract", "train", "sample", "evaluate", "report"}
    assert {threads for _, threads in shells} == {"1"}
    more = finished.snakemake("-n", "-F", "-p", "--set-threads", "summary=2")
    assert "python -m flowkit summary" in more
    assert re.findall(r"python -m flowkit summary .*--threads (\d+) --parent", more) == ["2"]


def test_driver_does_not_start_for_a_parent_that_is_gone(finished) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    words = [word.format(parent=gone.pid) for word in RUN]
    done = subprocess.run(
        words, cwd=finished.folder, env=finished.environment, capture_output=True, text=True
    )
    assert done.returncode == 113
    assert "Building DAG" not in done.stdout + done.stderr
