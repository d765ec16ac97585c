"""Submit a training or attach to the one that is under way, and wait for its result.

Whoever asks may be killed at any time: the job goes on, its handle stays, and whoever asks again attaches. One run has
one job at most; a job of other values is cancelled first.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import asdict

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from flowkit.errors import StageError
from flowkit.progress import logger
from flowkit.provenance import digest_of
from flowkit.runtime import exclusive, process_identity
from flowkit.slurm.follow import GONE, follow, is_over, state_of
from flowkit.slurm.handle import Handle, JobFolder
from flowkit.slurm.queue import JobState, cancel_job, jobs_with_comment
from flowkit.slurm.settings import DEBUG, SLURM, TrainingJobs
from flowkit.slurm.task import TrainingTask
from flowkit.stages.session import Spec, open_session, session_key
from flowkit.stages.training_inputs import training_inputs

CANCEL_SECONDS = 60.0
ANSWER_SECONDS = 600.0
NO_LIMIT = 1_000_000
CLUSTER = {name: value for name, value in os.environ.items() if name in ("SLURM_CONF", "SLURM_CLUSTERS")}
"""Which Slurm is meant; what else a job finds of Slurm's variables would be of a job that submits."""
LOCK_WAIT_SECONDS = 5.0


def train_in_job(spec: Spec, jobs: TrainingJobs, *, threads: int) -> None:
    """Return when the result of `spec` is committed; raises `StageError` in one line if its job ended without."""
    folder = JobFolder(spec.places.train(spec.target["run"]) / "state")
    folder.open()
    with exclusive(folder.lock, wait_seconds=LOCK_WAIT_SECONDS):
        key = session_key(spec, training_inputs(spec))
        if jobs.executor == SLURM:
            _recover_handle(folder)
        handle = _under_way(folder, key, digest_of(asdict(jobs)))
        if handle is None:
            if _is_committed(spec, key):
                return
            job = _submit(spec, jobs, folder, key, threads)
            if jobs.executor == DEBUG:
                job.result()
                return
            handle = _remembered(folder, job, key, jobs)
        try:
            follow(
                handle, folder, is_committed=lambda: _is_committed(spec, key), poll_seconds=jobs.poll_seconds
            )
        except KeyboardInterrupt:
            logger.info(
                "job=%s goes on, the same command attaches to it, flowkit cancel stops it", handle.job_id
            )
            raise


def cancel(folder: JobFolder) -> str | None:
    """Cancel the job of a run and wait for its end; returns its number, None if none is under way."""
    handle = folder.own_handle()
    if handle is None or is_over(_state(handle, folder)):
        return None
    _cancel(handle)
    return handle.job_id


def _comment(folder: JobFolder) -> str:
    """Return how the comment of every job of a run begins; its key follows."""
    return f"flowkit {folder.state.resolve()} "


def _recover_handle(folder: JobFolder) -> None:
    """Find a job whose submitter was killed before it could write the handle."""
    known = folder.own_handle()
    for job_id, key in jobs_with_comment(_comment(folder)).items():
        if known is None or int(job_id) > int(known.job_id):
            logger.info("job=%s was submitted by a process that was killed", job_id)
            known = Handle(job_id, key, SLURM)
            folder.remember(known)


def _under_way(folder: JobFolder, key: str, settings: str) -> Handle | None:
    """Return the job that works on `key`; one for something else, or that waits for other resources, is cancelled."""
    handle = folder.own_handle()
    if handle is None:
        return None
    state = _state(handle, folder)
    if is_over(state):
        return None
    has_other_settings = handle.settings not in ("", settings)
    if handle.key != key or (has_other_settings and state.is_waiting):
        other = "asks for other resources" if handle.key == key else "trains other values or other code"
        logger.info("job=%s %s, cancelling it", handle.job_id, other)
        _cancel(handle)
        return None
    logger.info("job=%s attached state=%s", handle.job_id, state.name)
    if has_other_settings:
        logger.info(
            "job=%s runs with the settings it was submitted with; flowkit cancel ends it", handle.job_id
        )
    return handle


def _state(handle: Handle, folder: JobFolder) -> JobState:
    """Return the state of a job, GONE for one that only has the same number; waits until Slurm answers."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while (state := state_of(handle)) is None:
        if time.monotonic() > deadline:
            raise StageError(
                f"job {handle.job_id}: Slurm gave no answer for {ANSWER_SECONDS:.0f} s, try again later"
            )
        time.sleep(LOCK_WAIT_SECONDS)
    if state.comment is not None and not state.comment.startswith(_comment(folder)):
        logger.info("job=%s is another folder's, not of this one", handle.job_id)
        return GONE
    return state


def _cancel(handle: Handle) -> None:
    if handle.executor != SLURM:
        raise StageError(f"process {handle.job_id} trains this run, stop it: kill {handle.job_id}")
    cancel_job(handle.job_id)
    deadline = time.monotonic() + CANCEL_SECONDS
    while not is_over(state_of(handle)):
        if time.monotonic() > deadline:
            raise StageError(
                f"job {handle.job_id} did not end within {CANCEL_SECONDS:.0f} s of scancel; try again later"
            )
        time.sleep(1)


def _submit(spec: Spec, jobs: TrainingJobs, folder: JobFolder, key: str, threads: int) -> submitit.Job[None]:
    task = TrainingTask(spec, max(threads, jobs.cpus_per_task), jobs.requeues)
    # the number of requeues is limited by the task itself, which also counts preemptions and lost nodes
    limits = {"slurm_max_num_timeout": NO_LIMIT}
    try:
        executor = submitit.AutoExecutor(folder.jobs, cluster=jobs.executor, **limits)
        executor.update_parameters(**_parameters(spec, jobs, folder, key))
        with clean_env():
            os.environ.update(CLUSTER)
            job = executor.submit(task)
    except (
        FailedJobError,
        FailedSubmissionError,
        subprocess.CalledProcessError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise StageError(
            f"the training was not accepted: {_said(error)}; correct account or training in the profile"
        ) from error
    logger.info("job=%s submitted run=%s executor=%s", job.job_id, spec.target["run"], jobs.executor)
    return job


def _remembered(folder: JobFolder, job: submitit.Job[None], key: str, jobs: TrainingJobs) -> Handle:
    identity = "" if jobs.executor == SLURM else process_identity(int(job.job_id)) or ""
    handle = Handle(job.job_id, key, jobs.executor, identity, digest_of(asdict(jobs)))
    folder.remember(handle)
    return handle


def _parameters(spec: Spec, jobs: TrainingJobs, folder: JobFolder, key: str) -> dict[str, object]:
    """Return what submitit is told; its own defaults stay for what is not set."""
    return {
        "name": f"flowkit-{spec.places.experiment}-{spec.target['run']}",
        "timeout_min": jobs.minutes,
        "nodes": jobs.nodes,
        "tasks_per_node": jobs.tasks_per_node,
        "gpus_per_node": jobs.gpus_per_node,
        "cpus_per_task": jobs.cpus_per_task,
        "mem_gb": jobs.memory_gb,
        "slurm_signal_delay_s": jobs.warn_seconds,
        # since Slurm 22.05 a step does not inherit the processors of its job
        "slurm_srun_args": [f"--cpus-per-task={jobs.cpus_per_task}", "--kill-on-bad-exit=1"],
        # the shell of the job outlives the signal by which a job is preempted, so that training can save
        "slurm_setup": [
            "trap : TERM",
            folder.check,
            f"export OMP_NUM_THREADS={jobs.cpus_per_task}",
            *jobs.setup,
        ],
        "slurm_comment": f"{_comment(folder)}{key}",
        "slurm_additional_parameters": {"requeue": True},
        **{f"slurm_{name}": value for name, value in jobs.place.items()},
    }


def _said(error: BaseException) -> str:
    printed = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
    text = printed.decode(errors="replace") if isinstance(printed, bytes) else str(printed)
    return " ".join(text.split())


def _is_committed(spec: Spec, key: str) -> bool:
    """Whether the result of `key` is there; its manifest is put in place. A job at work is not disturbed."""
    if not (spec.places.train(spec.target["run"]) / "state" / f"made-{key}.json").is_file():
        return False
    with open_session(spec, spec.places.train(spec.target["run"]), training_inputs(spec)) as session:
        return session.is_done
