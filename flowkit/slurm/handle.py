"""The note that a submitted training leaves, by which a later call finds its job again.

    <train>/state/job.json              handle: job, key of the work, executor
    <train>/state/jobs/                 submitit's folder: its pickles, the logs, and why a job failed
    <train>/state/driver.lock           one follower at a time

submitit reads pickles from its folder, so nobody but its owner may write there; that is checked before each use.
"""

from __future__ import annotations

import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from flowkit.errors import StageError
from flowkit.provenance import read_json, write_json


@dataclass(frozen=True)
class Handle:
    """A submitted job. `key` is the digest of spec, code and inputs that it works on; `identity` of a local process."""

    job_id: str
    key: str
    executor: str
    identity: str = ""


@dataclass(frozen=True)
class JobFolder:
    """The files of the jobs of one run."""

    state: Path

    @property
    def jobs(self) -> Path:
        """submitit's folder."""
        return self.state / "jobs"

    @property
    def lock(self) -> Path:
        """Lock of the process that follows the job."""
        return self.state / "driver.lock"

    @property
    def _handle(self) -> Path:
        return self.state / "job.json"

    def open(self) -> None:
        """Make the folder of jobs for its owner alone; raises `StageError` if another user could write there."""
        self.jobs.mkdir(parents=True, exist_ok=True)
        found = self.jobs.stat()
        if found.st_uid == os.getuid():
            self.jobs.chmod(0o700)
        self._demand_private(self.jobs)

    def handle(self) -> Handle | None:
        """Return what was submitted last, None if nothing was."""
        if not self._handle.exists():
            return None
        self._demand_private(self._handle)
        return Handle(**read_json(self._handle))

    def remember(self, handle: Handle) -> None:
        """Write the handle."""
        write_json(self._handle, asdict(handle))

    def failure(self, job_id: str) -> Path:
        """File in which a process of a job says why it failed."""
        return self.jobs / f"{job_id}-failure.json"

    def log(self, job_id: str) -> Path:
        """What the first process of a job prints."""
        return self.jobs / f"{job_id}_0_log.out"

    @staticmethod
    def _demand_private(path: Path) -> None:
        found = path.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StageError(
                f"{path}: belongs to user {found.st_uid} with mode {stat.filemode(found.st_mode)}, another user could "
                "have put a job there; remove it, or run with a results folder of your own"
            )
