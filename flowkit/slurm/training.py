"""Submit a training or attach to the one that is under way, and wait for its result.

Whoever asks may be killed at any time: the job goes on, its handle stays, and whoever asks again attaches. One run has
one job at most; a job of other values is cancelled first.
"""

from __future__ import annotations

import subprocess
import time

import submitit
from submitit.helpers import clean_env

from flowkit.errors import StageError
from flowkit.progress import logger
from flowkit.runtime import exclusive, process_identity
from flowkit.slurm.follow import follow, is_over, state_of
from flowkit.slurm.handle import Handle, JobFolder
from flowkit.slurm.queue import cancel_job, jobs_with_comment
from flowkit.slurm.settings import DEBUG, SLURM, TrainingJobs
from flowkit.slurm.task import TrainingTask
from flowkit.stages.session import Spec, open_session, session_key
from flowkit.stages.training_inputs import training_inputs

CANCEL_SECONDS = 60.0
LOCK_WAIT_SECONDS = 5.0


def train_in_job(spec: Spec, jobs: TrainingJobs, *, threads: int) -> None:
    """Return when the result of `spec` is committed; raises `StageError` in one line if its job ended without."""
    folder = JobFolder(spec.places.train(spec.target["run"]) / "state")
    folder.open()
    with exclusive(folder.lock, wait_seconds=LOCK_WAIT_SECONDS):
        key = session_key(spec, training_inputs(spec))
        if jobs.executor == SLURM:
            _recover_handle(folder)
        handle = _under_way(folder, key)
        if handle is None:
            if _is_committed(spec):
                return
            job = _submit(spec, jobs, folder, key, threads)
            if jobs.executor == DEBUG:
                job.result()
                return
            handle = _remembered(folder, job, key, jobs.executor)
        try:
            follow(handle, folder, is_committed=lambda: _is_committed(spec), poll_seconds=jobs.poll_seconds)
        except KeyboardInterrupt:
            logger.info(
                "job=%s goes on, the same command attaches to it, flowkit cancel stops it", handle.job_id
            )
            raise


def cancel(folder: JobFolder) -> str | None:
    """Cancel the job of a run and wait for its end; returns its number, None if none is under way."""
    handle = folder.handle()
    if handle is None or is_over(state_of(handle)):
        return None
    _cancel(handle)
    return handle.job_id


def _comment(folder: JobFolder) -> str:
    """Return how the comment of every job of a run begins; its key follows."""
    return f"flowkit {folder.state.resolve()} "


def _recover_handle(folder: JobFolder) -> None:
    """Find a job whose submitter was killed before it could write the handle."""
    known = folder.handle()
    for job_id, key in jobs_with_comment(_comment(folder)).items():
        if known is None or int(job_id) > int(known.job_id):
            logger.info("job=%s was submitted by a process that was killed", job_id)
            known = Handle(job_id, key, SLURM)
            folder.remember(known)


def _under_way(folder: JobFolder, key: str) -> Handle | None:
    """Return the job that works on `key`; one that works on something else is cancelled."""
    handle = folder.handle()
    if handle is None:
        return None
    while (state := state_of(handle)) is None:
        logger.info("job=%s no answer from Slurm, asking again", handle.job_id)
        time.sleep(LOCK_WAIT_SECONDS)
    if is_over(state):
        return None
    if handle.key != key:
        logger.info("job=%s trains other values or other code, cancelling it", handle.job_id)
        _cancel(handle)
        return None
    logger.info("job=%s attached state=%s", handle.job_id, state.name)
    return handle


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
    executor = submitit.AutoExecutor(folder.jobs, cluster=jobs.executor, slurm_max_num_timeout=jobs.requeues)
    executor.update_parameters(**_parameters(spec, jobs, f"{_comment(folder)}{key}"))
    task = TrainingTask(spec, max(threads, jobs.cpus_per_task))
    try:
        with clean_env():
            job = executor.submit(task)
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        raise StageError(
            f"the training was not accepted: {_said(error)}; correct the training settings"
        ) from error
    logger.info("job=%s submitted run=%s executor=%s", job.job_id, spec.target["run"], jobs.executor)
    return job


def _remembered(folder: JobFolder, job: submitit.Job[None], key: str, executor: str) -> Handle:
    identity = "" if executor == SLURM else process_identity(int(job.job_id)) or ""
    handle = Handle(job.job_id, key, executor, identity)
    folder.remember(handle)
    return handle


def _parameters(spec: Spec, jobs: TrainingJobs, comment: str) -> dict[str, object]:
    """Return what submitit is told; its own defaults stay for what is not set."""
    chosen = {
        "partition": jobs.partition,
        "account": jobs.account,
        "qos": jobs.qos,
        "constraint": jobs.constraint,
    }
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
        "slurm_setup": [f"export OMP_NUM_THREADS={jobs.cpus_per_task}", *jobs.setup],
        "slurm_comment": comment,
        "slurm_additional_parameters": {"requeue": True},
        **{f"slurm_{name}": value for name, value in chosen.items() if value},
    }


def _said(error: BaseException) -> str:
    printed = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
    text = printed.decode(errors="replace") if isinstance(printed, bytes) else str(printed)
    return " ".join(text.split())


def _is_committed(spec: Spec) -> bool:
    with open_session(spec, spec.places.train(spec.target["run"]), training_inputs(spec)) as session:
        return session.is_done
