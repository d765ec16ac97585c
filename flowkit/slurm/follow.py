"""Wait for a job: copy what it prints, say when its state changes, end when it has ended and say how."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowkit.errors import StageError
from flowkit.progress import logger
from flowkit.provenance import read_json
from flowkit.runtime import process_identity
from flowkit.slurm.handle import Handle, JobFolder
from flowkit.slurm.queue import ENDED, JobState, cancel_job, job_state, memory_exceeded
from flowkit.slurm.settings import SLURM

SETTLED = 2
"""An end must be seen twice: a job that is queued again shows its old end for a moment."""
STUCK_SECONDS = 45
"""A job of several processes has this long to end when one of them has failed."""
LAST_LINES = 3
RUNNING, GONE = JobState("RUNNING"), JobState("GONE")


@dataclass
class LogCopy:
    """Copies what is new in a file."""

    file: Path
    place: int = 0

    def copy(self) -> None:
        """Write what was added since the last call to standard error."""
        try:
            with self.file.open("rb") as source:
                source.seek(self.place)
                new = source.read()
        except FileNotFoundError:
            return
        self.place += len(new)
        sys.stderr.write(new.decode(errors="replace"))
        sys.stderr.flush()


def state_of(handle: Handle) -> JobState | None:
    """Return the state of a submitted job, None if it is not known now."""
    if handle.executor == SLURM:
        return job_state(handle.job_id)
    is_alive = handle.identity != "" and process_identity(int(handle.job_id)) == handle.identity
    return RUNNING if is_alive else GONE


def is_over(state: JobState | None) -> bool:
    """Whether a job will not run again by itself; an unknown job is over."""
    return state is not None and (state.has_ended or state.name in ("UNKNOWN", "GONE"))


def follow(
    handle: Handle, folder: JobFolder, *, is_committed: Callable[[], bool], poll_seconds: float
) -> None:
    """Return when the job has committed its result; raises `StageError` in one line if it ended without.

    A process that failed does not end the job for good: when a node is lost, the processes on other nodes fail, and
    Slurm queues the job again.
    """
    copies = [LogCopy(folder.log(handle.job_id)), LogCopy(folder.log(handle.job_id).with_suffix(".err"))]
    for copy in copies:
        copy.place = copy.file.stat().st_size if copy.file.exists() else 0
    shown, ends, failed_at = "", 0, None
    while True:
        state = state_of(handle)
        for copy in copies:
            copy.copy()
        shown = _show(handle, state, shown)
        if state is not None and state.hopeless:
            cancel_job(handle.job_id)
            raise StageError(
                f"job {handle.job_id} {state.hopeless}; it waited with {state.reason} and is cancelled"
            )
        ends = ends + 1 if is_over(state) else 0
        if ends and is_committed():
            return
        failure = _failure(folder.failure(handle.job_id)) if state is None or not state.is_waiting else ""
        failed_at = failed_at or time.monotonic() if failure else None
        is_stuck = failed_at is not None and time.monotonic() - failed_at > STUCK_SECONDS
        if is_stuck and handle.executor == SLURM:
            cancel_job(handle.job_id)
        if failure and (ends >= SETTLED or is_stuck):
            raise StageError(f"job {handle.job_id}: {failure}; log {copies[1].file}")
        if ends >= SETTLED:
            raise StageError(_why_ended(handle, state or GONE, copies[1].file))
        time.sleep(min(poll_seconds, 5) if ends or failure else poll_seconds)


def _show(handle: Handle, state: JobState | None, shown: str) -> str:
    text = (
        "no answer from Slurm"
        if state is None
        else f"{state.name} {state.reason.replace('None', '')}".strip()
    )
    if text != shown:
        nodes = f" nodes={state.nodes}" if state is not None and state.nodes else ""
        logger.info("job=%s state=%s%s", handle.job_id, text, nodes)
    return text


def _failure(note: Path) -> str:
    """Return why a process of the job failed, "" if none did."""
    return str(read_json(note)["error"]) if note.exists() else ""


def _why_ended(handle: Handle, state: JobState, log: Path) -> str:
    how = ENDED.get(state.name, "is gone")
    if state.name == "COMPLETED":
        how = "ended without a result; was the code or the configuration changed since it was submitted?"
    if handle.executor == SLURM and (exceeded := memory_exceeded(handle.job_id)):
        how = f"ran out of memory ({exceeded}), ask for more with training.memory_gb in the profile"
    printed = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = (
        f"; it last said: {' / '.join(printed[-LAST_LINES:])}"
        if printed and state.name != "CANCELLED"
        else ""
    )
    where = (
        f"log {log}"
        if log.exists() and os.path.getsize(log)
        else "it left no log, so it died before Python began"
    )
    return f"job {handle.job_id} {how}{last}; {where}"
