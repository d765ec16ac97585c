"""What a training job runs, in each of its processes.

Slurm's warning (before the time limit, or when the job is preempted) only sets a flag. Training ends at its next step
with a checkpoint, in all processes at the same one, and then submitit's own handler puts the job back into the queue
under its number. SIGTERM (a cancelled job, or preemption where Slurm sends no warning) saves in the same way and leaves
it to Slurm whether the job is queued again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys

import submitit
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from flowkit.errors import FlowkitError, TrainingInterrupted
from flowkit.progress import set_up_logging
from flowkit.provenance import write_json
from flowkit.runtime import allow_many_open_files, request_stop, set_threads
from flowkit.slurm.handle import JobFolder
from flowkit.stages.session import Spec

WARNING = signal.SIGUSR2
FAILED, DONE = "failed", "done"

log = logging.getLogger(__name__)


class TrainingTask:
    """A training that can be queued again; submitit pickles it."""

    def __init__(self, spec: Spec, threads: int) -> None:
        self._spec, self._threads = spec, threads

    def __call__(self) -> None:
        """Train, and leave an outcome that says how it ended."""
        set_threads(self._threads)
        allow_many_open_files()
        set_up_logging()
        os.environ["HF_HUB_OFFLINE"] = "1"
        job = submitit.JobEnvironment()
        queue_again = signal.getsignal(WARNING)
        received: list[int] = []

        def stop(number: int, _: object) -> None:
            received.append(number)
            request_stop()

        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, stop)
        if job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        outcome = JobFolder(self._spec.places.train(self._spec.target["run"]) / "state").outcome(job.job_id)
        log.info("job=%s task=%d of=%d spec=%s", job.job_id, job.global_rank, job.num_tasks,
                 json.dumps(self._spec.as_dict(), sort_keys=True))  # fmt: skip
        try:
            try:
                from flowkit.stages.train import run  # here, for whoever submits does not load torch

                run(self._spec)
            except TrainingInterrupted as interruption:
                log.info("%s", interruption)
                if signal.SIGTERM in received:
                    sys.exit(128 + signal.SIGTERM)
                if callable(queue_again):
                    queue_again(WARNING, None)
                return
        except Exception as error:
            if not outcome.exists():
                write_json(outcome, {"state": FAILED, "error": _in_one_line(error), "task": job.global_rank})
            raise
        if job.global_rank == 0:
            write_json(outcome, {"state": DONE})

    def checkpoint(self) -> DelayedSubmission:
        """Return what runs when the job is queued again: the same."""
        return DelayedSubmission(self)


def _in_one_line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, FlowkitError) else f"{type(error).__name__}: {said}"
