"""What Slurm says of a job, asked directly: submitit keeps a state for ten minutes.

squeue knows a job until `MinJobAge` seconds after its end, sacct after that where there is accounting. An answer that
does not come (a controller that restarts) is no state of the job.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from flowkit.errors import StageError
from flowkit.progress import logger

ASK_SECONDS = 60
ENDED = {
    "COMPLETED": "ended",
    "FAILED": "failed",
    "CANCELLED": "was cancelled from outside",
    "TIMEOUT": "reached its time limit and was not queued again",
    "OUT_OF_MEMORY": "ran out of memory",
    "NODE_FAIL": "lost its node and was not queued again",
    "BOOT_FAIL": "did not start, its node could not boot",
    "DEADLINE": "reached its deadline",
    "PREEMPTED": "was preempted and was not queued again",
    "REVOKED": "was revoked",
}
"""States that a job does not leave by itself, in words."""
HOPELESS = {
    "PartitionTimeLimit": "asks for more minutes than its partition gives, correct training.minutes",
    "PartitionNodeLimit": "asks for more nodes than its partition gives, correct training.nodes",
    "BadConstraints": "asks for what no node has, correct training.constraint, GPUs, processors or memory",
    "AccountNotAllowed": "may not use its partition with this account, correct account or training.partition",
    "InvalidAccount": "has an account that Slurm does not know, correct account",
    "QOSNotAllowed": "may not use its partition with this quality of service, correct training.qos",
    "InvalidQOS": "has a quality of service that Slurm does not know, correct training.qos",
    "launch failed requeued held": "could not be started on its node and is held, see the node's state with sinfo -R",
}
"""Reasons of a waiting job that no waiting ends, in words."""
FORMAT = "%T|%r|%M|%L|%N|%k"


@dataclass(frozen=True)
class JobState:
    """A state of Slurm, the reason of waiting, time used and left, and nodes, as far as they are known."""

    name: str
    reason: str = ""
    used: str = ""
    left: str = ""
    nodes: str = ""
    comment: str | None = None
    """None where Slurm does not say it."""

    @property
    def is_waiting(self) -> bool:
        """Whether the job is in the queue, for the first time or again."""
        return self.name in ("PENDING", "REQUEUED", "SPECIAL_EXIT", "REQUEUE_HOLD")

    @property
    def hopeless(self) -> str:
        """Why a waiting job will never start, "" for one that may."""
        return HOPELESS.get(self.reason, "") if self.name == "PENDING" else ""

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
        return JobState(*asked.stdout.strip().splitlines()[0].split("|", FORMAT.count("|")))
    if asked.returncode and "Invalid job id" not in asked.stderr:
        logger.info("squeue: %s", " ".join(asked.stderr.split()))
        return None
    recorded = _ask_sacct("-nPX", f"--jobs={job_id}", "--format=State,Reason,Elapsed")
    if recorded is None or recorded.returncode or not recorded.stdout.strip():
        return JobState("UNKNOWN")
    state, reason, used = recorded.stdout.strip().splitlines()[-1].split("|")
    return JobState(state.split()[0], reason, used)  # "CANCELLED by 1000"


def jobs_with_comment(start: str) -> dict[str, str]:
    """Return {number: rest of the comment} of this user's live jobs whose comment begins with `start`."""
    asked = _ask("squeue", "--noheader", "--me", "--format=%A|%k")
    if asked is None or asked.returncode:
        raise StageError(
            "squeue does not answer, so it is not known whether a job is under way; try again later"
        )
    rows = [line.partition("|") for line in asked.stdout.splitlines()]
    return {number: comment.removeprefix(start) for number, _, comment in rows if comment.startswith(start)}


def cancel_job(job_id: str) -> None:
    """Cancel a job; raises `StageError` with what Slurm said."""
    done = _ask("scancel", job_id)
    if done is None or done.returncode:
        said = " ".join((done.stderr if done else "no answer").split())
        raise StageError(f"job {job_id} could not be cancelled: {said}; try again, or scancel {job_id}")


def times_queued_again(job_id: str) -> int | None:
    """Return how often Slurm has put a job back into the queue, None if it does not say."""
    asked = _ask("scontrol", "show", "job", job_id)
    found = re.search(r"\bRestarts=(\d+)", asked.stdout) if asked is not None else None
    return int(found[1]) if found else None


def memory_exceeded(job_id: str) -> str:
    """Return "used X of Y GiB" for a job that used more memory than it had, "" for one that did not or is not recorded.

    The step that was killed knows it; the job itself may only have failed.
    """
    recorded = _ask_sacct("-nP", f"--jobs={job_id}", "--format=State,MaxRSS,ReqMem")
    if recorded is None or recorded.returncode:
        return ""
    rows = [line.split("|") for line in recorded.stdout.splitlines() if line]
    used = max((_gib(row[1]) for row in rows), default=0.0)
    granted = max((_gib(row[2]) for row in rows), default=0.0)
    if any(row[0].startswith("OUT_OF_ME") for row in rows) or (granted and used > granted):
        return f"used {used:.1f} of {granted:.1f} GiB"
    return ""


def _gib(amount: str) -> float:
    """Return an amount of sacct, as 3499720K or 4G or 4Gn, in GiB; 0 for none."""
    found = re.match(r"([\d.]+)([KMGT]?)", amount)
    return float(found[1]) * 1024.0 ** "KMGT".find(found[2] or "K") / 1024.0**2 if found else 0.0


def _ask_sacct(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Ask the accounting, which not every cluster has."""
    return _ask("sacct", *arguments) if shutil.which("sacct") else None


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS)
    except FileNotFoundError:
        raise StageError(f"{command[0]}: no such program here, run this where Slurm's commands are") from None
    except (OSError, subprocess.TimeoutExpired):
        return None
