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
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from flowkit.errors import FlowkitError, TrainingInterrupted
from flowkit.progress import set_up_logging
from flowkit.provenance import write_json
from flowkit.runtime import allow_many_open_files, request_stop, set_threads
from flowkit.slurm.handle import JobFolder
from flowkit.stages.session import Spec

WARNING = signal.SIGUSR2

log = logging.getLogger(__name__)


class _Stops:
    """Catches Slurm's signals, which ask training to stop, and ends the job in the way that was asked for."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._queue_again = signal.getsignal(WARNING)
        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self.received.append(number)
        request_stop()

    def end_job(self, interruption: TrainingInterrupted) -> None:
        """End this process, after a warning with the job back in the queue.

        Raises `TrainingInterrupted` if it was there too often.
        """
        if signal.SIGTERM in self.received:
            sys.exit(128 + signal.SIGTERM)
        if not callable(self._queue_again):
            return
        try:
            self._queue_again(WARNING, None)
        except UncompletedJobError as error:
            raise TrainingInterrupted(
                f"{interruption}; not queued again ({error}), raise training.minutes or training.requeues"
            ) from None


class TrainingTask:
    """A training that can be queued again; submitit pickles it."""

    def __init__(self, spec: Spec, threads: int) -> None:
        self._spec, self._threads = spec, threads

    def __call__(self) -> None:
        """Train; the first process that fails leaves a note with the reason."""
        set_threads(self._threads)
        allow_many_open_files()
        set_up_logging()
        os.environ["HF_HUB_OFFLINE"] = "1"
        job = submitit.JobEnvironment()
        stops = _Stops()
        if job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        failure = JobFolder(self._spec.places.train(self._spec.target["run"]) / "state").failure(job.job_id)
        if job.global_rank == 0:
            failure.unlink(missing_ok=True)  # of an attempt before, which ended with a lost node
        log.info("job=%s task=%d of=%d spec=%s", job.job_id, job.global_rank, job.num_tasks,
                 json.dumps(self._spec.as_dict(), sort_keys=True))  # fmt: skip
        try:
            self._train(stops)
        except Exception as error:
            if not failure.exists():
                write_json(failure, {"error": _in_one_line(error), "task": job.global_rank})
            raise

    def _train(self, stops: _Stops) -> None:
        from flowkit.stages.train import run  # here, for whoever submits does not load torch

        try:
            run(self._spec)
        except TrainingInterrupted as interruption:
            log.info("%s", interruption)
            stops.end_job(interruption)

    def checkpoint(self) -> DelayedSubmission:
        """Return what runs when the job is queued again: the same."""
        return DelayedSubmission(self)


def _in_one_line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, FlowkitError) else f"{type(error).__name__}: {said}"
