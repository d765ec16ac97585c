"""One line for each job that failed for good, at the end of what Snakemake prints: what happened, where the log is."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowkit.errors import FlowkitError
from flowkit.slurm.queue import ENDED, memory_exceeded

FAILED, FINISHED = "job_error", "job_finished"
ERROR_LINE = "flowkit: error: "
REFUSED = re.compile(r"The error message was '(.*?)'\.\n", re.DOTALL)
NOT_SUBMITTED = re.compile(
    r"Job submission failed with exception: (.*?)(?:For further error details|$)", re.DOTALL
)
ENDED_AS = re.compile(r"SLURM-job '(\d+)'.*?SLURM status is: *'(\w+)", re.DOTALL)
WORKFLOW_ERROR = "WorkflowError:"
TAIL_BYTES = 65_536


@dataclass(frozen=True)
class _Failure:
    rule: str
    message: str
    logs: tuple[Path, ...]


class Failures(logging.Handler):
    """Listens to Snakemake's logger; `lines` says what is left when retries are over."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.time()
        self._failed: dict[int, _Failure] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a failed job, or that it succeeded in a later attempt."""
        try:
            self._note(record)
        except (OSError, KeyError, FlowkitError):  # who only listens must not end the workflow
            self.handleError(record)

    def _note(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == FAILED:
            said = vars(record)
            logs = tuple(Path(log) for log in said.get("log") or () if log)
            failure = _Failure(said["rule_name"], said.get("rule_msg") or "", logs)
            self._failed[said["jobid"]] = failure
            # at once, for what runs beside it may go on for days; it may be tried again
            sys.stderr.write(f"flowkit: failed: {failure.rule}: {self._what_happened(failure)}\n")
        elif event == FINISHED:
            self._failed.pop(vars(record)["job_id"], None)

    def lines(self) -> Iterator[str]:
        """Yield one line per job that failed."""
        for failure in self._failed.values():
            yield f"{ERROR_LINE}{failure.rule}: {self._what_happened(failure)}"

    def _what_happened(self, failure: _Failure) -> str:
        refused = REFUSED.search(failure.message) or NOT_SUBMITTED.search(failure.message)
        if refused is not None:
            return f"Slurm did not take the job: {_in_one_line(refused[1])}; correct account or stages in the profile"
        ended = ENDED_AS.search(failure.message)
        how = f"job {ended[1]} {ENDED.get(ended[2], ended[2])}" if ended else "failed"
        written = [log for log in failure.logs if self._was_written(log)]
        reason = next((line for log in written if (line := _last_error(log))), "")
        if not written:
            return f"{how}; it left no log, so it ended before Python began"
        if ended and (exceeded := memory_exceeded(ended[1])):
            how = f"job {ended[1]} ran out of memory ({exceeded}), ask for more with stages in the profile"
        return f"{how}{': ' if reason else ''}{reason}; log {written[0]}"

    def _was_written(self, log: Path) -> bool:
        return log.is_file() and log.stat().st_size > 0 and log.stat().st_mtime >= self._started - 1


def _last_error(log: Path) -> str:
    """Return what a stage gave as its reason, or the last line of a traceback."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.removeprefix(ERROR_LINE) for line in lines if line.startswith(ERROR_LINE)]
    if said:
        return said[-1]
    if WORKFLOW_ERROR in lines:  # Snakemake's own, in the log of a job
        return " ".join(line.strip() for line in lines[lines.index(WORKFLOW_ERROR) + 1 :][:2])
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else ""


def _in_one_line(text: str) -> str:
    return " ".join(text.replace("sbatch: error: ", "").split())
