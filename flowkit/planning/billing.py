"""What a machine has and what it bills: `machine.yaml` beside the `config.yaml` of a profile.

quotas:
  - {paths: [/scratch], bytes: 8 TiB, files: 3000000, note: emptied after 14 days}
partitions:
  gpu: {cores: 64, gpus: 4, memory_gb: 720, smallest_share: 1/4, sbu_per_gpu_hour: 192, longest_hours: 120,
        gpu: H100, bf16_tflops: 989, fp32_tflops: 67}
read_gb_per_s: 2
prices: {currency: EUR, per_sbu: 0.01, per_tb_year: 150}

share of a node = the largest of cores, GPUs and memory asked for, over those of a node, rounded up to whole
multiples of the smallest share
SBU = hours x nodes x share x (cores x sbu_per_core_hour + gpus x sbu_per_gpu_hour)
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import yaml
from pydantic import Field, field_validator

from flowkit.errors import ConfigError
from flowkit.validation import Number, Section, Whole, validated

MACHINE_FILE = "machine.yaml"
UNITS = {
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", 1)},
}


class Quota(Section):
    """How much may lie below some folders together."""

    paths: tuple[str, ...] = Field(min_length=1, description="Folders; variables of the environment count.")
    bytes: str | None = Field(None, description="For instance 8 TiB.")
    files: Whole | None = Field(None, gt=0, description="Files and folders.")
    note: str = Field("", description="What else to know of the place.")

    @field_validator("bytes")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            _size(text)
        return text

    @property
    def limit_bytes(self) -> int | None:
        """The limit as a number; None: there is none."""
        return None if self.bytes is None else _size(self.bytes)

    def holds(self, path: Path) -> bool:
        """Whether `path` lies below one of the folders, by its own name or behind its links."""
        folders = [Path(os.path.expanduser(os.path.expandvars(folder))) for folder in self.paths]
        names = {path.absolute(), path.resolve()}
        return any(name.is_relative_to(folder) for name in names for folder in folders)


class Partition(Section):
    """The nodes of a partition, and what an hour of a whole one costs."""

    cores: Whole = Field(gt=0, description="Cores of a node, as Slurm counts them.")
    memory_gb: Whole = Field(gt=0, description="GiB of a node that jobs can have.")
    gpus: Whole = Field(0, ge=0, description="GPUs of a node.")
    smallest_share: str = Field("1", pattern=r"^1(/[1-9]\d*)?$", description="Of a node, for instance 1/8.")
    sbu_per_core_hour: Number = Field(0.0, ge=0, description="Billing weight of a core.")
    sbu_per_gpu_hour: Number = Field(0.0, ge=0, description="Billing weight of a GPU.")
    longest_hours: Number | None = Field(None, gt=0, description="Longest time limit.")
    gpu: str = Field("", description="What the GPU is called, as part of the name that CUDA gives it: H100.")
    bf16_tflops: Number | None = Field(
        None, gt=0, description="Dense rate of a GPU in bf16 and fp16, by its data sheet."
    )
    fp32_tflops: Number | None = Field(None, gt=0, description="The same in fp32, without TF32.")

    @property
    def sbu_per_node_hour(self) -> float:
        """What an hour of a whole node costs."""
        return self.cores * self.sbu_per_core_hour + self.gpus * self.sbu_per_gpu_hour


class Prices(Section):
    """What the machine costs in money; nothing of it is needed."""

    currency: str = Field("EUR", description="Of all prices.")
    per_sbu: Number | None = Field(None, ge=0, description="For one SBU.")
    per_gpu_hour: Number | None = Field(
        None, ge=0, description="For an hour of a GPU, where no SBU are billed."
    )
    per_tb_year: Number | None = Field(None, ge=0, description="For a terabyte (10^12 bytes) over a year.")


class MachineFacts(Section):
    """What is known of a machine; nothing of it is needed."""

    quotas: tuple[Quota, ...] = Field((), description="Limits of what is stored.")
    partitions: dict[str, Partition] = Field(default_factory=dict, description="Partitions by name.")
    read_gb_per_s: Number | None = Field(
        None, gt=0, description="What the file system gives a training for each of its GPUs, in 10^9 bytes."
    )
    prices: Prices = Field(default_factory=Prices, description="Prices in money.")

    def quota_of(self, path: Path) -> Quota | None:
        """Return the first quota that holds for a path."""
        return next((quota for quota in self.quotas if quota.holds(path)), None)


@dataclass(frozen=True)
class Ask:
    """What one job asks Slurm for, per node; `minutes` is its time limit. No partition: Slurm's default."""

    partition: str
    gpus: int
    cpus: int
    memory_gb: int
    minutes: int
    nodes: int = 1

    @property
    def hours(self) -> float:
        """The time limit in hours."""
        return self.minutes / 60

    @property
    def gpu_hours(self) -> float:
        """GPU hours if the job runs to its time limit."""
        return self.hours * self.nodes * self.gpus

    @property
    def core_hours(self) -> float:
        """Core hours if the job runs to its time limit."""
        return self.hours * self.nodes * self.cpus


def machine_facts(profile: Path | None) -> MachineFacts:
    """Return what a profile's `machine.yaml` says, nothing without one; raises `ConfigError` if it cannot be read."""
    file = None if profile is None else profile / MACHINE_FILE
    if file is None or not file.is_file():
        return MachineFacts(quotas=())
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected quotas and partitions, found {type(raw).__name__}")
    return validated(MachineFacts, raw, kinds={}, prefix=f"{file}: ")


def parts_of_node(ask: Ask, partition: Partition) -> dict[str, Fraction]:
    """Return the part of a node that each of the things asked for is."""
    parts = {
        "cores": Fraction(ask.cpus, partition.cores),
        "memory": Fraction(ask.memory_gb, partition.memory_gb),
    }
    return parts | ({"GPUs": Fraction(ask.gpus, partition.gpus)} if partition.gpus else {})


def billed_share(ask: Ask, partition: Partition) -> Fraction:
    """Return the share of a node that a job pays for; above 1 for what no node has."""
    return rounded_share(max(parts_of_node(ask, partition).values()), partition)


def rounded_share(part: Fraction, partition: Partition) -> Fraction:
    """Return a part of a node as it is billed, in whole multiples of the smallest share."""
    smallest = Fraction(partition.smallest_share)
    return max(1, math.ceil(part / smallest)) * smallest


def sbu_per_hour(ask: Ask, partition: Partition) -> float:
    """Return what an hour of a job costs."""
    return ask.nodes * float(billed_share(ask, partition)) * partition.sbu_per_node_hour


def _size(text: str) -> int:
    match = re.fullmatch(r"([\d.]+) *(\w+)", text)
    if match is None or match[2] not in UNITS or match[1].count(".") > 1:
        raise ValueError("expected a number and a unit, for instance 200 GiB or 8 TiB")
    return round(float(match[1]) * UNITS[match[2]])
