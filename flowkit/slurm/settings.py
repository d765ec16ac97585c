"""What a machine gives to trainings and to the other stages. A profile sets it, and it changes no result.

config:
  account: my-project
  stages:
    default: {partition: genoa, cpus: 24, memory_gb: 42}
    extract: {partition: gpu_h100, gpus: 1, cpus: 16, memory_gb: 180}
  training: {executor: slurm, partition: gpu_h100, gpus_per_node: 1, cpus_per_task: 16, memory_gb: 180, minutes: 720}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from flowkit.errors import ConfigError
from flowkit.stages.jobs import STAGES

HERE, SLURM, LOCAL, DEBUG = "here", "slurm", "local", "debug"
EXECUTORS = (HERE, SLURM, LOCAL, DEBUG)
MAY_BE_ZERO = ("gpus", "gpus_per_node", "requeues")
DEFAULT_STAGE, RUNS = "default", "runs"


@dataclass(frozen=True)
class Place:
    """Where a job runs and who pays, as Slurm calls it; "" is Slurm's default."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""

    @property
    def place(self) -> dict[str, str]:
        """What is set of it, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(Place)}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class TrainingJobs(Place):
    """What one training asks for.

    `executor`: "here" trains in this process; "slurm" submits; "local" (a process of its own) and "debug" (this
    process) are submitit's stand-ins for Slurm. A node runs `tasks_per_node` processes. `warn_seconds` before the time
    limit, and when it is preempted, a job writes a checkpoint and queues again, `requeues` times at most. Who waits
    asks Slurm every `poll_seconds`. `setup` are shell lines that run first.
    """

    executor: str = HERE
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    memory_gb: int = 8
    minutes: int = 60
    requeues: int = 50
    warn_seconds: int = 120
    poll_seconds: int = 10
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError(f"training.executor={self.executor!r}: expected one of {', '.join(EXECUTORS)}")
        if self.executor == SLURM and self.warn_seconds >= 60 * self.minutes:
            raise ConfigError(
                f"training.warn_seconds={self.warn_seconds}: a job of {self.minutes} minutes would be warned before it "
                "begins, give it more minutes or a later warning"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any], *, run: str = "", account: str = "") -> TrainingJobs:
        """Return the settings of a run; raises `ConfigError` for an unknown name or a wrong value.

        `values["runs"]` may name runs with settings of their own. `account` holds where none is named.
        """
        common = {name: value for name, value in values.items() if name != RUNS}
        of_runs = values.get(RUNS) or {}
        if not isinstance(of_runs, Mapping) or not all(isinstance(one, Mapping) for one in of_runs.values()):
            raise ConfigError(f"training.runs={of_runs!r}: expected names of runs, each with its settings")
        for name, own in of_runs.items():
            _checked(cls, {**common, **own}, f"training.runs.{name}")
        chosen = _checked(cls, {**common, **of_runs.get(run, {})}, "training")
        setup = chosen.get("setup", ())
        if isinstance(setup, str) or not all(isinstance(line, str) for line in setup):
            raise ConfigError(f"training.setup={setup!r}: expected a list of shell lines")
        made = cls(**{"account": account, **chosen, "setup": tuple(setup)})
        unread = [field.name for field in fields(cls) if getattr(made, field.name) != field.default]
        if made.executor == HERE and set(unread) - {"account"}:
            raise ConfigError(
                f"training.{unread[-1]}: not read while trainings run where they are asked; set training.executor"
            )
        return made


@dataclass(frozen=True)
class StageJob(Place):
    """What one job of a stage asks for; what is not set is the stage's own estimate or the cluster's default.

    A second attempt gets twice the memory and time, a third one three times.
    """

    gpus: int = 0
    cpus: int = 0
    memory_gb: int = 0
    minutes: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any], stage: str, *, account: str = "") -> StageJob:
        """Return the settings of a stage: its own over those of "default"; raises `ConfigError` as above."""
        for name, own in values.items():
            if name not in (DEFAULT_STAGE, *STAGES):
                raise ConfigError(
                    f"stages.{name}: no such stage, expected default or one of {', '.join(STAGES)}"
                )
            if not isinstance(own, Mapping):
                raise ConfigError(f"stages.{name}={own!r}: expected names with values")
            _checked(cls, own, f"stages.{name}")
        merged = {**values.get(DEFAULT_STAGE, {}), **values.get(stage, {})}
        return cls(**{"account": account, **_checked(cls, merged, f"stages.{stage}")})


Settings = TypeVar("Settings", TrainingJobs, StageJob)


def _checked(cls: type[Settings], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values with whole numbers as such: Snakemake hands the numbers of a profile over as text."""
    known = {field.name: field for field in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(
            f"{where}.{unknown[0]}: unknown setting, expected one of {', '.join(sorted(known))}"
        )
    found = {}
    for name, value in values.items():
        default = known[name].default
        if isinstance(default, int):
            least = 0 if name in MAY_BE_ZERO else 1
            if isinstance(value, bool) or not str(value).isdecimal() or int(value) < least:
                raise ConfigError(f"{where}.{name}={value!r}: expected a whole number of at least {least}")
            value = int(value)
        elif isinstance(default, str) and not isinstance(value, str):
            raise ConfigError(f"{where}.{name}={value!r}: expected a text")
        found[name] = value
    return found
