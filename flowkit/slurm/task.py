"""What a training job runs, in each of its processes.

Slurm's warning (before the time limit, or when the job is preempted) only sets a flag. Training ends at its next step
with a checkpoint, in all processes at the same one, and then submitit's own handler puts the job back into the queue
under its number. SIGTERM saves in the same way; it comes to cancelled jobs, and where Slurm sends no warning also to
preempted ones, which Slurm still counts as running: those go back into the queue.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time

import submitit
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from flowkit.errors import FlowkitError, StageError, TrainingInterrupted
from flowkit.progress import set_up_logging
from flowkit.provenance import write_json
from flowkit.runtime import allow_many_open_files, keep_others_from_writing, request_stop, set_threads
from flowkit.slurm.handle import JobFolder
from flowkit.slurm.queue import job_state
from flowkit.stages.fingerprint import code_of
from flowkit.stages.session import Spec

WARNING = signal.SIGUSR2
REQUEUE_TRIES, REQUEUE_WAIT_SECONDS = 4, 5

log = logging.getLogger(__name__)


class _Stops:
    """Catches Slurm's signals, which ask training to stop, and ends the job in the way that was asked for."""

    def __init__(self, job: submitit.JobEnvironment, requeues: int) -> None:
        self._job, self._requeues = job, requeues
        self._received: list[int] = []
        self._queue_again = signal.getsignal(WARNING)
        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self._received.append(number)
        request_stop()

    def end_job(self, interruption: TrainingInterrupted) -> None:
        """End this process, with the job back in the queue unless it was cancelled.

        Raises `TrainingInterrupted` if it was there too often.
        """
        if not callable(self._queue_again) or self._job.global_rank != 0:
            return  # the first process ends the job
        if WARNING not in self._received and not _may_go_on(self._job.job_id):
            sys.exit(128 + signal.SIGTERM)
        if attempt() >= self._requeues:
            raise TrainingInterrupted(
                f"{interruption}; it was queued again {attempt()} times, raise training.minutes or training.requeues"
            )
        for _ in range(REQUEUE_TRIES - 1):
            try:
                self._queue_again(WARNING, None)
            except (subprocess.SubprocessError, OSError) as error:
                log.info("not queued again yet: %s", error)
                time.sleep(REQUEUE_WAIT_SECONDS)
        self._queue_again(WARNING, None)


def attempt() -> int:
    """Return how often Slurm has put this job back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _may_go_on(job_id: str) -> bool:
    """Whether Slurm still counts a job as running: SIGTERM comes to cancelled and to preempted jobs alike."""
    state = job_state(job_id)
    return state is not None and state.name in ("RUNNING", "PREEMPTED")


class TrainingTask:
    """A training that can be queued again; submitit pickles it."""

    def __init__(self, spec: Spec, threads: int, requeues: int) -> None:
        self._spec, self._threads, self._requeues = spec, threads, requeues

    def __call__(self) -> None:
        """Train; the first process that fails leaves a note with the reason."""
        set_threads(self._threads)
        allow_many_open_files()
        keep_others_from_writing()
        set_up_logging()
        os.environ["HF_HUB_OFFLINE"] = "1"
        job = submitit.JobEnvironment()
        stops = _Stops(job, self._requeues)
        if job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        folder = JobFolder(self._spec.places.train(self._spec.target["run"]) / "state")
        failure = folder.failure(job.job_id, attempt())
        log.info("job=%s attempt=%d task=%d of=%d spec=%s", job.job_id, attempt(), job.global_rank, job.num_tasks,
                 json.dumps(self._spec.as_dict(), sort_keys=True))  # fmt: skip
        try:
            self._check(job)
            self._train(stops)
        except Exception as error:
            if not failure.exists():
                write_json(failure, {"error": _in_one_line(error), "task": job.global_rank})
            raise

    def _check(self, job: submitit.JobEnvironment) -> None:
        if attempt() > self._requeues:
            raise StageError(
                f"queued again {attempt()} times, training.requeues={self._requeues} allows no more"
            )
        if job.global_rank == 0 and code_of("train", dict(self._spec.values)) != self._spec.code:
            raise StageError(
                "the code is another one than when this job was submitted, start the training again"
            )

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
