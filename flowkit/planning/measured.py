"""How long jobs will take, from what was measured: run records and metrics of finished work on the same data.

Nothing is guessed: a job of which nothing comparable was measured has no estimate. What was measured on one machine
says little of another; the source of every figure is named beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.config import leaves
from flowkit.paths import MANIFEST, RUN_RECORD
from flowkit.planning.data_facts import DataFacts
from flowkit.planning.pending import has_manifest, is_current
from flowkit.planning.storage import training_steps
from flowkit.provenance import read_json
from flowkit.slurm.status import last_lines
from flowkit.stages.jobs import Job
from flowkit.stages.session import session_key
from flowkit.stages.training_inputs import training_inputs

METRICS = "metrics.jsonl"
SECONDS_PER_HOUR = 3600
SAME_RATE = (
    "batch_size",
    "gradient_accumulation",
    "optimizer",
    "precision",
    "activation_checkpointing",
    "compile",
    "parallel",
)
"""Settings of `train` in which a training must agree to be as fast."""


@dataclass(frozen=True)
class Estimate:
    """Hours that a job will take, and what they were derived from."""

    hours: float
    source: str


@dataclass(frozen=True)
class StepRate:
    """Seconds per step of a training, which steps are saved already, and where that was measured."""

    seconds_per_step: float
    steps_done: int
    source: str


@dataclass(frozen=True)
class Measured:
    """Estimates for the jobs of a plan."""

    data: DataFacts

    def estimate(self, job: Job) -> Estimate | None:
        """Return how long a job that is to run will take, None if nothing comparable was measured."""
        stage = job.spec.stage
        if stage == "train":
            return self._training(job)
        if stage in ("extract", "convert", "fetch") and "tars" in job.spec.target:
            return self._by_tar(job)
        return self._sampling(job) if stage == "sample" else _as_last_time(job)

    def step_rate(self, job: Job) -> StepRate | None:
        """Return how fast a training goes, measured on itself or on one that differs in nothing that costs time."""
        unfinished = self._unfinished(job)
        if unfinished is not None:
            return unfinished
        records = self.data.plan.places.results.glob(f"*/runs/*/train/{RUN_RECORD}")
        for file in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
            made = read_json(file)["spec"]
            if has_manifest(file.parent) and _costs_the_same(job.spec.as_dict(), made):
                content = file.parent / read_json(file.parent / MANIFEST)["content"]
                found = _step_rate(content / METRICS, f"{made['experiment']}/{made['target']['run']}")
                if found is not None:
                    return StepRate(found.seconds_per_step, 0, found.source)
        return None

    def _unfinished(self, job: Job) -> StepRate | None:
        """What the job itself has measured before it was stopped."""
        inputs = training_inputs(job.spec)
        if not all(map(has_manifest, inputs)):
            return None
        work = job.folders[0] / "state" / f"work-{session_key(job.spec, inputs)}"
        return _step_rate(work / METRICS, "its own first steps")

    def _training(self, job: Job) -> Estimate | None:
        rate, steps = self.step_rate(job), training_steps(self.data, job.spec.target["run"])
        if rate is None or steps is None:
            return None
        seconds = rate.seconds_per_step * max(0, steps - rate.steps_done)
        return Estimate(seconds / SECONDS_PER_HOUR, rate.source)

    def _by_tar(self, job: Job) -> Estimate | None:
        """From the tars that the same stage finished with the same values: seconds per image, or per byte."""
        seconds = amount = 0.0
        for dataset, tar, folder, made in self._finished_tars(job):
            described = next(one for one in self.data.tars(dataset) if one.name == tar)
            seconds += made["seconds"]
            counts = read_json(folder / MANIFEST)["counts"]
            amount += described.bytes if job.spec.stage == "fetch" else counts["samples"]
        open_tars = {
            tar
            for tar, folder in zip(job.spec.target["tars"].split(","), job.folders, strict=True)
            if not is_current(job, folder)
        }
        tars = [tar for tar in self.data.tars(job.spec.target["dataset"]) if tar.name in open_tars]
        sizes = [tar.bytes if job.spec.stage == "fetch" else tar.images for tar in tars]
        if not amount or None in sizes:
            return None
        left = sum(size or 0 for size in sizes)
        return Estimate(seconds / amount * left / SECONDS_PER_HOUR, "finished tars")

    def _finished_tars(self, job: Job) -> Iterator[tuple[str, str, Path, dict[str, Any]]]:
        for other in self.data.plan.jobs.values():
            if other.spec.stage != job.spec.stage or not _works_alike(job, other):
                continue
            names = other.spec.target["tars"].split(",")
            for tar, folder in zip(names, other.folders, strict=True):
                if has_manifest(folder) and is_current(other, folder) and (folder / RUN_RECORD).is_file():
                    yield other.spec.target["dataset"], tar, folder, read_json(folder / RUN_RECORD)

    def _sampling(self, job: Job) -> Estimate | None:
        """From this run's samples, or those of one with the same network and samplers."""
        config, run = self.data.plan.config, job.spec.target["run"]
        wanted = config.run(run)
        for other in self.data.plan.jobs.values():
            name = other.spec.target.get("run", "")
            if other.spec.stage != "sample" or not (other.folders[0] / RUN_RECORD).is_file():
                continue
            sections = config.run(name)
            if (sections.model, sections.sampling, sections.objective.kind) != (
                wanted.model,
                wanted.sampling,
                wanted.objective.kind,
            ):
                continue
            made = read_json(other.folders[0] / RUN_RECORD)
            if not is_current(other, other.folders[0]):
                continue
            share = config.evaluation.images / made["spec"]["values"]["evaluation"]["images"]
            return Estimate(made["seconds"] * share / SECONDS_PER_HOUR, f"samples of {name}")
        return _as_last_time(job)


def _works_alike(job: Job, other: Job) -> bool:
    """Whether two jobs of a stage that goes by tars cost the same per image or byte."""
    if job.spec.stage == "fetch":
        return job.spec.target["dataset"] == other.spec.target["dataset"]
    return job.spec.target["encoder"] == other.spec.target.get("encoder") and job.spec.values.get(
        "encoders"
    ) == other.spec.values.get("encoders")


def _costs_the_same(wanted: dict[str, Any], made: dict[str, Any]) -> bool:
    """Whether a step of two trainings reads the same stores and computes the same amount."""

    def cost(spec: dict[str, Any]) -> list[Any]:
        values, target = spec["values"], spec["target"]  # of an earlier version perhaps, with fewer names
        train = [values.get("train", {}).get(name) for name in SAME_RATE]
        data = [target.get(name) for name in ("dataset", "source", "target")]
        kind, layout = values.get("objective", {}).get("kind"), values.get("data", {}).get("layout")
        return [values.get("model"), kind, layout, train, data]

    return cost(wanted) == cost(made)


def _step_rate(metrics: Path, source: str) -> StepRate | None:
    lines = last_lines(metrics) if metrics.is_file() else []
    if not lines or not lines[-1].get("seconds"):
        return None
    step = int(lines[-1]["step"])
    return StepRate(lines[-1]["seconds"] / step, step, source)


def _as_last_time(job: Job) -> Estimate | None:
    """From the job's own results, if they were made from the same values, by whatever code."""
    records = [folder / RUN_RECORD for folder in job.folders]
    if not all(record.is_file() for record in records):
        return None
    made = [read_json(record) for record in records]
    if any(leaves(one["spec"]["values"]) != leaves(dict(job.spec.values)) for one in made):
        return None
    if len(made) == 1 and made[0]["spec"]["target"] != dict(job.spec.target):
        return None
    seconds = [one["seconds"] for one in made]
    together = max(seconds) if job.spec.stage == "baselines" else sum(seconds)
    return Estimate(together / SECONDS_PER_HOUR, "the last time")
