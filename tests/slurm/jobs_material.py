"""Trainings of the tiny workflow as jobs: how tests start them, wait for a step, and compare what they leave."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import ACCOUNT, Cluster
from support import Project

JOBS = {
    "executor": "slurm",
    "partition": "gpu_h100",
    "account": ACCOUNT,
    "gpus_per_node": 1,
    "cpus_per_task": 1,
    "memory_gb": 4,
    "minutes": 5,
    "poll_seconds": 1,
    "warn_seconds": 10,
}
SAME = ("model.safetensors", "statistics.safetensors", "config.json")
LOOP, STEP = "flowkit/training/loop.py", "        started = time.perf_counter()\n"
EVENT_SECONDS = 60
"""Within this time of an event a training must have said so."""


@dataclass(frozen=True)
class Training:
    """One run of an experiment in a project, trained as a job."""

    project: Project
    run: str = "flow"

    def command(self, **jobs: Any) -> list[str]:
        """Return the command line; `jobs` are settings of the job."""
        asked = json.dumps(JOBS | jobs)
        return ["train", "--config", "tiny.yaml", "--run", self.run, "--jobs", asked]

    def finish(self, *, check: bool = True, **jobs: Any) -> str:
        """Submit or attach, wait for the end, and return what was printed."""
        return self.project.flowkit(*self.command(**jobs), check=check)

    def start(self, **jobs: Any) -> Follower:
        """Submit or attach in a process of its own."""
        return Follower.start(self.project, [sys.executable, "-m", "flowkit", *self.command(**jobs)])

    def orphan(self) -> int:
        """Leave a job at work whose follower was killed with -9, and return its number."""
        follower = self.start()
        self.wait_for_step(3)
        follower.kill()
        return self.job

    @property
    def folder(self) -> Path:
        """Result folder of the training."""
        return self.project.folder / f"results/tiny/runs/{self.run}/train"

    @property
    def job(self) -> int:
        """Number of the job that was submitted last."""
        return int(json.loads((self.folder / "state/job.json").read_text())["job_id"])

    @property
    def step(self) -> int:
        """Steps done by the work under way, 0 if there is none."""
        files = self.folder.glob("state/work-*/metrics.jsonl")
        return max((len(file.read_text().splitlines()) for file in files), default=0)

    def wait_for_step(self, step: int, seconds: float = 300) -> None:
        """Return when that many steps are done; raises `TimeoutError`."""
        wait_until(f"step {step} of {self.run}", lambda: self.step >= step, seconds)

    @property
    def result(self) -> dict[str, bytes]:
        """The files that identical trainings share, by name; raises `FileNotFoundError` if none is committed."""
        manifest = json.loads((self.folder / "manifest.json").read_text())
        content = self.folder / manifest["content"]
        return {name: (content / name).read_bytes() for name in SAME}

    @property
    def is_committed(self) -> bool:
        """Whether there is a result."""
        return (self.folder / "manifest.json").exists()


@dataclass(frozen=True)
class Follower:
    """A process that waits for a job, and all that it has printed, in a file: a full pipe would stop it."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, project: Project, command: list[str], umask: int = 0o022) -> Follower:
        """Run a command in a project."""
        log = project.folder / f"follower-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=project.folder,
                env=project.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=umask,
            )
        return cls(process, log)

    @property
    def printed(self) -> str:
        """What it has printed until now."""
        return self.log.read_text()

    def end(self, seconds: float = 300) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end within {seconds} s: {self.printed[-3000:]}") from None

    def kill(self) -> None:
        """Kill it with -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def wait_until(what: str, is_so: Any, seconds: float = 120) -> None:
    """Return when something holds; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.2)


def errors(printed: str) -> list[str]:
    """Return the lines in which flowkit says what went wrong."""
    return [line for line in printed.splitlines() if line.startswith("flowkit: error:")]


def restarts(cluster: Cluster, job: int) -> int:
    """Return how often Slurm has put a job back into the queue."""
    found = re.search(r"Restarts=(\d+)", cluster.ask("scontrol", "show", "job", str(job)))
    assert found is not None
    return int(found[1])


def set_steps(project: Project, steps: int, seconds_per_step: float = 0.0) -> None:
    """Train longer; `seconds_per_step` of sleep leave time for events without using the processors."""
    config = project.folder / "tiny.yaml"
    config.write_text(re.sub(r"steps: \d+,", f"steps: {steps},", config.read_text(), count=1))
    loop = project.folder / LOOP
    slow = f"{STEP}        time.sleep({seconds_per_step})\n" if seconds_per_step else STEP
    loop.write_text(re.sub(re.escape(STEP) + r"(        time\.sleep\(.*\)\n)?", slow, loop.read_text()))
