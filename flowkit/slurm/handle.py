"""The note that a submitted training leaves, by which a later call finds its job again.

    <train>/state/job.json              handle: job, key of the work, executor
    <train>/state/jobs/                 submitit's folder: its pickles, the logs, and why a job failed
    <train>/state/driver.lock           one follower at a time

submitit reads pickles from its folder, so nobody but its owner may write there: whoever submits checks it, and the job
checks it again before it reads one.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from flowkit.errors import StageError
from flowkit.provenance import read_json, write_json


@dataclass(frozen=True)
class Handle:
    """A submitted job. `key` is the digest of spec, code and inputs that it works on, `settings` that of what it asked
    for, `identity` that of a local process."""

    job_id: str
    key: str
    executor: str
    identity: str = ""
    settings: str = ""


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
        """Make the folder of jobs for its owner alone; raises `StageError` if another user could have written there."""
        self.jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = self.jobs.stat()
        was_open = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and any(self.jobs.iterdir())
        if found.st_uid != os.getuid() or was_open:
            raise StageError(
                f"{self.jobs}: belongs to user {found.st_uid} with mode {stat.filemode(found.st_mode)}, another user "
                "could have put a job there; look at it, move it away, or name a results folder of your own"
            )
        self.jobs.chmod(0o700)

    @property
    def check(self) -> str:
        """A line of shell with which a job ends if another user can write in submitit's folder, or has."""
        folder = shlex.quote(str(self.jobs.resolve()))
        theirs = f'find {folder} -maxdepth 1 ! -user "$(id -u)" -print -quit'
        is_open = f"find {folder} -maxdepth 0 -perm /022"
        said = f"flowkit: {self.jobs} is open to other users, nothing is read from it"
        return f'[ -z "$({theirs}; {is_open})" ] || {{ echo {shlex.quote(said)} >&2; exit 1; }}'

    def handle(self) -> Handle | None:
        """Return what was submitted last, None if nothing was."""
        if not self._handle.exists():
            return None
        known = {field.name for field in fields(Handle)}
        return Handle(**{name: value for name, value in read_json(self._handle).items() if name in known})

    def own_handle(self) -> Handle | None:
        """Return the handle to act on; raises `StageError` if another user wrote it."""
        handle = self.handle()
        if handle is not None and self._handle.stat().st_uid != os.getuid():
            raise StageError(f"{self._handle}: user {self._handle.stat().st_uid} trains this run, not you")
        return handle

    def remember(self, handle: Handle) -> None:
        """Write the handle."""
        write_json(self._handle, asdict(handle))

    def failure(self, job_id: str, attempt: int) -> Path:
        """File in which a process of a job says why it failed; `attempt` counts how often the job was queued again."""
        return self.jobs / f"{job_id}-failure-{attempt}.json"

    def log(self, job_id: str) -> Path:
        """What the first process of a job prints."""
        return self.jobs / f"{job_id}_0_log.out"
