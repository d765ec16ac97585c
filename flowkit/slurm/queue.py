"""What Slurm says of a job, asked directly: submitit keeps a state for ten minutes.

squeue knows a job until `MinJobAge` seconds after its end, sacct after that where there is accounting. An answer that
does not come (a controller that restarts) is no state of the job.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from flowkit.errors import StageError

ASK_SECONDS = 60
ENDED = {
    "COMPLETED": "ended",
    "FAILED": "failed",
    "CANCELLED": "was cancelled from outside",
    "TIMEOUT": "reached its time limit and was not queued again",
    "OUT_OF_MEMORY": "ran out of memory; ask for more with training.memory_gb",
    "NODE_FAIL": "lost its node and was not queued again",
    "BOOT_FAIL": "did not start, its node could not boot",
    "DEADLINE": "reached its deadline",
    "PREEMPTED": "was preempted and was not queued again",
    "REVOKED": "was revoked",
}
"""States that a job does not leave by itself, in words."""
FORMAT = "%T|%r|%M|%L|%N"


@dataclass(frozen=True)
class JobState:
    """A state of Slurm, the reason of waiting, time used and left, and nodes, as far as they are known."""

    name: str
    reason: str = ""
    used: str = ""
    left: str = ""
    nodes: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the job will not run again by itself."""
        return self.name in ENDED


def job_state(job_id: str) -> JobState | None:
    """Return the state of a job, or None if Slurm does not answer now; a job that nobody knows is "UNKNOWN"."""
    asked = _ask("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={FORMAT}")
    if asked is None:
        return None
    if asked.returncode == 0 and asked.stdout.strip():
        return JobState(*asked.stdout.strip().splitlines()[0].split("|"))
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    recorded = _ask("sacct", "-nPX", f"--jobs={job_id}", "--format=State,Reason,Elapsed")
    if recorded is None or recorded.returncode or not recorded.stdout.strip():
        return JobState("UNKNOWN")
    state, reason, used = recorded.stdout.strip().splitlines()[-1].split("|")
    return JobState(state.split()[0], reason, used)  # "CANCELLED by 1000"


def cancel_job(job_id: str) -> None:
    """Cancel a job; raises `StageError` with what Slurm said."""
    done = _ask("scancel", job_id)
    if done is None or done.returncode:
        said = " ".join((done.stderr if done else "no answer").split())
        raise StageError(f"job {job_id} could not be cancelled: {said}; try again, or scancel {job_id}")


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
