"""What an experiment will take of a machine, before anything is submitted: jobs, cost, storage, reading.

A stage's line joins its jobs that ask for the same. "At most" means that every job runs to its time limit, once; a
training that is queued again at its limit, and second attempts, come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from flowkit.machine import machine_of, read_profile
from flowkit.paths import Places
from flowkit.planning.billing import Ask, MachineFacts, Quota, machine_facts, sbu_per_hour
from flowkit.planning.data_facts import DataFacts
from flowkit.planning.measured import Measured, StepRate
from flowkit.planning.misfits import SettingNames, Warned, misfits
from flowkit.planning.pending import State, job_states
from flowkit.planning.sizes import Amount, bytes_per_sample, float16_records, int8_records
from flowkit.planning.storage import DATA_ROOT, RESULTS, Storage, Stored, training_steps
from flowkit.slurm.job_requests import MB_PER_GB, JobRequests
from flowkit.slurm.settings import DEFAULT_STAGE, RUNS, SLURM
from flowkit.stages.jobs import Job
from flowkit.stages.specs import Plan


@dataclass(frozen=True)
class StageLine:
    """The jobs of a stage that ask for the same. `ask` has the longest time limit, `shortest` minutes the shortest.

    `is_here`: they run where Snakemake runs and cost nothing. Hours and SBU are at most; `sbu` is None if the machine
    does not say what it bills. `estimate_hours` and `estimate_sbu` are for the `measured` jobs among them alone.
    """

    stage: str
    ask: Ask
    is_here: bool
    shortest: int
    jobs: int
    gpu_hours: float
    core_hours: float
    sbu: float | None
    measured: int
    estimate_hours: float
    estimate_sbu: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class ReadingLine:
    """What a training reads: per step in bytes and reads, per epoch in bytes, and how many steps it has."""

    run: str
    batch_size: int
    step_bytes: int
    step_reads: int
    epoch_bytes: int | None
    steps: int | None
    rate: StepRate | None


@dataclass(frozen=True)
class QuotaLine:
    """What lies, or will lie, below a quota's folders; `is_complete` is false if something is unknown."""

    places: tuple[str, ...]
    quota: Quota | None
    amount: Amount
    is_complete: bool


def machine_plan(plan: Plan, profile: Path | None) -> MachinePlan:
    """Return the plan on the machine of a profile; without one, everything runs here and nothing is billed.

    Raises `ConfigError` if the profile or its `machine.yaml` cannot be read.
    """
    machine = machine_of(profile, results=plan.places.results, data_root=plan.places.data_root)
    requests = JobRequests(machine.stages, machine.training, machine.account)
    return MachinePlan(plan, requests, machine_facts(profile), read_profile(profile) if profile else {})


@dataclass(frozen=True)
class MachinePlan:
    """The plan of an experiment on a machine. `profile` is what the machine's profile tells Snakemake."""

    plan: Plan
    requests: JobRequests
    facts: MachineFacts
    profile: Mapping[str, Any]

    @cached_property
    def states(self) -> dict[str, State]:
        """State of every job by name."""
        return job_states(self.plan.jobs)

    @cached_property
    def data(self) -> DataFacts:
        """What is known of the data."""
        return DataFacts(self.plan)

    @cached_property
    def stored(self) -> list[Stored]:
        """Storage by place and kind."""
        return Storage(self.data, self.states).rows()

    @cached_property
    def stages(self) -> list[StageLine]:
        """The jobs that are to run, by stage and what they ask for."""
        groups: dict[tuple[Any, ...], list[tuple[Job, Ask]]] = {}
        for job in self.to_run:
            ask, is_here = self.ask(job), self.runs_here(job)
            key = (job.spec.stage, is_here, ask.partition, ask.gpus, ask.cpus, ask.memory_gb, ask.nodes)
            groups.setdefault(key, []).append((job, ask))
        return [self._line(key[0], members, is_here=key[1]) for key, members in groups.items()]

    @property
    def to_run(self) -> list[Job]:
        """Jobs that will run."""
        return [job for job in self.plan.jobs.values() if self.states[job.name] is State.TO_RUN]

    def count(self, state: State) -> int:
        """Return how many jobs are in a state."""
        return sum(found is state for found in self.states.values())

    def ask(self, job: Job) -> Ask:
        """Return what a job asks for in its first attempt."""
        if self.requests.is_submitted_by_itself(job):
            own = self.requests.training_of(job.spec.target["run"])
            cpus = own.cpus_per_task * own.tasks_per_node
            return Ask(own.partition, own.gpus_per_node, cpus, own.memory_gb, own.minutes, own.nodes)
        settings, resources = self.requests.stage(job.spec.stage), self.requests.of(job)
        first = {name: resources[name]({}, 1) for name in ("mem_mb", "runtime")}
        memory = -(-first["mem_mb"] // MB_PER_GB)
        cpus = self.requests.threads(job)
        return Ask(settings.partition, settings.gpus, cpus, memory, first["runtime"])

    def runs_here(self, job: Job) -> bool:
        """Whether a job runs where Snakemake runs and is no job of Slurm's."""
        if self.requests.is_submitted_by_itself(job):
            return self.requests.training_of(job.spec.target["run"]).executor != SLURM
        return self.profile.get("executor") != SLURM or self.requests.runs_here(job)

    @cached_property
    def reading(self) -> list[ReadingLine]:
        """What every training reads, finished ones too."""
        return [self._reads(job) for job in self.plan.jobs.values() if job.spec.stage == "train"]

    @cached_property
    def quotas(self) -> list[QuotaLine]:
        """What the places take of their quotas."""
        places: Places = self.plan.places
        folders = {DATA_ROOT: places.data_root, RESULTS: places.results}
        by_quota: dict[Quota | None, list[str]] = {}
        for place, folder in folders.items():
            by_quota.setdefault(self.facts.quota_of(folder), []).append(place)
        return [self._quota_line(quota, tuple(names)) for quota, names in by_quota.items()]

    @cached_property
    def warnings(self) -> list[Warned]:
        """What does not fit, each once."""
        attempts = 1 + int(self.profile.get("retries", 0))
        found = [warned for line in self.quotas for warned in self._over_quota(line)]
        for job in self.to_run:
            if self.facts.partitions and not self.runs_here(job):
                own = self.requests.is_submitted_by_itself(job)
                names = self._training_names(job) if own else self._stage_names(job)
                found += misfits(self.ask(job), self.facts.partitions, names, attempts=1 if own else attempts)
        return list(dict.fromkeys(found))

    @cached_property
    def sample_bytes(self) -> int:
        """What one more training image takes in the token stores."""
        config, data = self.plan.config, self.data
        storages = ["float16", *(["int8"] if config.encoders.source_storage == "int8" else [])]
        return bytes_per_sample(data.target) + sum(bytes_per_sample(data.source, one) for one in storages)

    @cached_property
    def superfluous(self) -> Amount:
        """The float16 tokens that were, or will be, converted to int8: nothing reads them after that."""
        amount, name = Amount(), self.plan.config.encoders.source.name
        if self.plan.config.encoders.source_storage == "int8":
            for line in self.stored:
                amount += line.total if line.what.endswith(f", {name}, float16") else Amount()
        return amount

    def _line(self, stage: str, members: list[tuple[Job, Ask]], *, is_here: bool) -> StageLine:
        asks = [ask for _, ask in members]
        partition = self.facts.partitions.get(asks[0].partition)
        hourly = None if partition is None else sbu_per_hour(asks[0], partition)
        measured = Measured(self.data)
        found = [one for one in (measured.estimate(job) for job, _ in members) if one is not None]
        hours = sum(one.hours for one in found)
        return StageLine(
            stage,
            max(asks, key=lambda ask: ask.minutes),
            is_here,
            min(ask.minutes for ask in asks),
            len(members),
            gpu_hours=0.0 if is_here else sum(ask.gpu_hours for ask in asks),
            core_hours=0.0 if is_here else sum(ask.core_hours for ask in asks),
            sbu=0.0 if is_here else hourly and sum(ask.hours for ask in asks) * hourly,
            measured=len(found),
            estimate_hours=hours,
            estimate_sbu=0.0 if is_here else hours * (hourly or 0.0),
            sources=tuple(dict.fromkeys(one.source for one in found)),
        )

    def _reads(self, job: Job) -> ReadingLine:
        config, data, run = self.plan.config, self.data, job.spec.target["run"]
        batch = config.run(run).train.batch_size
        images_of_batch = batch * data.views(run)
        is_int8 = config.encoders.source_storage == "int8"
        source = list(int8_records(data.source)) if is_int8 else [float16_records(data.source)[0]]
        records = [*source, float16_records(data.target)[0]]
        image_bytes = sum(layout.stride for layout in records)
        images = data.images(config.data.train, slice(0, -config.data.validation_shards))
        return ReadingLine(
            run,
            batch,
            images_of_batch * image_bytes,
            images_of_batch * len(records),
            None if images is None else images * image_bytes,
            training_steps(data, run),
            Measured(data).step_rate(job),
        )

    def _quota_line(self, quota: Quota | None, places: tuple[str, ...]) -> QuotaLine:
        lines = [line for line in self.stored if line.place in places]
        amount = Amount()
        for line in lines:
            amount += line.total
        return QuotaLine(places, quota, amount, all(line.to_come is not None for line in lines))

    def _over_quota(self, line: QuotaLine) -> Iterator[Warned]:
        if line.quota is None:
            return
        places: Places = self.plan.places
        folders = {DATA_ROOT: places.data_root, RESULTS: places.results}
        where = " and ".join(f"{place}={folders[place]}" for place in line.places)
        remedy = "take fewer tars (datasets.NAME.shards), or ask for more room and name it in machine.yaml"
        if self.plan.config.encoders.source_storage == "float16":
            remedy += "; encoders.source_storage=int8 takes less once the source's float16 tokens are deleted"
        for asked, limit, unit, size in (
            (line.amount.bytes, line.quota.limit_bytes, "TB", 1e12),
            (line.amount.files, line.quota.files, "files", 1),
        ):
            if limit is not None and asked > limit:
                amounts = (
                    f"{asked / size:.2f} of {limit / size:.2f} {unit}"
                    if size > 1
                    else f"{asked} of {limit} {unit}"
                )
                yield Warned(f"{where}: takes {amounts} that the quota gives; {remedy}", is_grave=True)

    def _stage_names(self, job: Job) -> SettingNames:
        stage = job.spec.stage
        stages = self.requests.stages

        def name(key: str) -> str:
            is_default = key not in stages.get(stage, {}) and key in stages.get(DEFAULT_STAGE, {})
            return f"stages.{DEFAULT_STAGE if is_default else stage}.{key}"

        return SettingNames(*(name(field.name) for field in fields(SettingNames)))

    def _training_names(self, job: Job) -> SettingNames:
        own = (self.requests.training.get(RUNS) or {}).get(job.spec.target["run"], {})
        keys = ("partition", "gpus_per_node", "cpus_per_task", "memory_gb", "minutes")
        where = {
            key: f"training.{RUNS}.{job.spec.target['run']}" if key in own else "training" for key in keys
        }
        return SettingNames(*(f"{where[key]}.{key}" for key in keys))
