"""What Snakemake is told of a job beside what it computes: threads, memory, time, partition, GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowkit.errors import ConfigError
from flowkit.slurm.settings import DEFAULT_STAGE, HERE, StageJob, TrainingJobs
from flowkit.stages.jobs import Job

MB_PER_GB = 1024
SNAKEMAKES_NAMES = {"partition": "slurm_partition", "account": "slurm_account"}


@dataclass(frozen=True)
class JobRequests:
    """The machine's answer for every job of a plan, from the settings `stages`, `training` and `account`."""

    stages: Mapping[str, Any]
    training: Mapping[str, Any]
    account: str = ""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a setting that is wrong or that nothing would read."""
        StageJob.of(self.stages, DEFAULT_STAGE)
        if self.training_of("").executor != HERE and "train" in self.stages:
            raise ConfigError(
                "stages.train: not read where trainings are jobs of their own; set it below training"
            )

    def stage(self, name: str) -> StageJob:
        """Return the settings of a stage."""
        return StageJob.of(self.stages, name, account=self.account)

    def training_of(self, run: str) -> TrainingJobs:
        """Return how a run is trained."""
        return TrainingJobs.of(self.training, run=run, account=self.account)

    def is_submitted_by_itself(self, job: Job) -> bool:
        """Whether a job is a training that is submitted as a job of its own, which the rule only waits for."""
        return job.spec.stage == "train" and self.training_of(job.spec.target["run"]).executor != HERE

    def runs_here(self, job: Job) -> bool:
        """Whether a job runs where Snakemake runs and not on a compute node.

        What waits for a training would hold a GPU while it waits; what needs the network has it there. A partition that
        is named for a stage itself has the network.
        """
        if job.is_local:
            return "partition" not in self.stages.get(job.spec.stage, {})
        return self.is_submitted_by_itself(job)

    def threads(self, job: Job) -> int:
        """Return the threads of a job; who only waits takes one, so that many runs wait side by side."""
        return 1 if self.is_submitted_by_itself(job) else self.stage(job.spec.stage).cpus or job.threads

    def retries(self, job: Job) -> int | None:
        """Return how often Snakemake tries a job again, None for what the command line says: a training queues again
        by itself, and a failed one would fail again."""
        return 0 if self.is_submitted_by_itself(job) else None

    def of(self, job: Job) -> dict[str, Any]:
        """Return the resources of a rule."""
        settings = self.stage(job.spec.stage)
        found: dict[str, Any] = {
            "mem_mb": _more_each_time(settings.memory_gb * MB_PER_GB or job.memory_mb),
            "runtime": _more_each_time(settings.minutes or job.runtime_minutes),
        }
        if self.runs_here(job):
            return found
        place = {SNAKEMAKES_NAMES.get(name, name): value for name, value in settings.place.items()}
        return found | place | ({"gpu": settings.gpus} if settings.gpus else {})


def _more_each_time(amount: int) -> Callable[..., int]:
    return lambda wildcards, attempt: amount * attempt
