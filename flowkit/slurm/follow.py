"""Wait for a job: copy what it prints, say when its state changes, end when it has ended and say how."""

from __future__ import annotations

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
from flowkit.slurm.queue import ENDED, JobState, cancel_job, job_state, memory_exceeded, times_queued_again
from flowkit.slurm.settings import SLURM

SETTLED = 2
"""An end must be seen twice: a job that is queued again shows its old end for a moment."""
VISIBLE_SECONDS = 60
"""A result that a job has committed on another machine may be seen this late."""
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
    shown, ends, ended_at = "", 0, 0.0
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
        ended_at = time.monotonic() if ends == 1 else ended_at
        if (ends or state is None) and is_committed():
            return
        if ends >= SETTLED:
            if failure := _failure(handle, folder):
                raise StageError(f"job {handle.job_id}: {failure}; log {copies[1].file}")
            # another machine's files may be seen late
            how = state or GONE
            if how.name != "COMPLETED" or time.monotonic() - ended_at > VISIBLE_SECONDS:
                raise StageError(_why_ended(handle, how, [copy.file for copy in reversed(copies)]))
        time.sleep(min(poll_seconds, 5) if ends else poll_seconds)


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


def _failure(handle: Handle, folder: JobFolder) -> str:
    """Return why a process of the job's last attempt failed, "" if none did."""
    attempt = times_queued_again(handle.job_id) if handle.executor == SLURM else 0
    note = folder.failure(handle.job_id, attempt or 0)
    return str(read_json(note)["error"]) if note.exists() else ""


def _why_ended(handle: Handle, state: JobState, logs: list[Path]) -> str:
    how = ENDED.get(state.name, "is gone")
    if state.name == "COMPLETED":
        how = "ended without a result"
    if handle.executor == SLURM and (exceeded := memory_exceeded(handle.job_id)):
        how = f"ran out of memory ({exceeded}), ask for more with training.memory_gb in the profile"
    written = [log for log in logs if log.exists() and log.stat().st_size]
    if not written:
        return f"job {handle.job_id} {how}; it left no log, so it died before Python began"
    printed = written[0].read_text(errors="replace").strip().splitlines()
    last = "" if state.name == "CANCELLED" else f"; it last said: {' / '.join(printed[-LAST_LINES:])}"
    return f"job {handle.job_id} {how}{last}; log {written[0]}"
