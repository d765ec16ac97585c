"""Where what jobs ask for does not fit a partition: what Slurm would refuse, and what costs more than it seems to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flowkit.planning.billing import Ask, Partition, billed_share, parts_of_node, rounded_share


@dataclass(frozen=True)
class Warned:
    """A line of warning; a grave one means that jobs cannot run or will not find room."""

    text: str
    is_grave: bool = False


@dataclass(frozen=True)
class SettingNames:
    """How a profile calls what a job asks for."""

    partition: str
    gpus: str
    cpus: str
    memory_gb: str
    minutes: str


def misfits(
    ask: Ask, partitions: Mapping[str, Partition], names: SettingNames, *, attempts: int = 1
) -> Iterator[Warned]:
    """Yield a warning for everything in `ask` that does not fit its partition, with setting, value and remedy.

    The n-th of `attempts` asks for n times the memory and the time.
    """
    if ask.partition not in partitions:
        known = ", ".join(partitions)
        yield Warned(
            f"{names.partition}={ask.partition!r}: not among the partitions of machine.yaml ({known}), its cost is not "
            "counted; correct the name or describe it there"
        )
        return
    partition = partitions[ask.partition]
    refused = list(_refused(ask, partition, names))
    yield from refused
    if not refused:
        yield from _costly(ask, partition, names)
        yield from _later_attempts(ask, partition, names, attempts)


def _refused(ask: Ask, partition: Partition, names: SettingNames) -> Iterator[Warned]:
    node = f"a node of {ask.partition} has"
    if ask.gpus > partition.gpus:
        remedy = f"ask for {partition.gpus} at most" if partition.gpus else "name a partition with GPUs"
        yield Warned(
            f"{names.gpus}={ask.gpus}: {node} {partition.gpus or 'no'} GPUs; {remedy}", is_grave=True
        )
    if ask.cpus > partition.cores:
        yield Warned(
            f"{names.cpus}={ask.cpus}: {node} {partition.cores} cores; ask for no more", is_grave=True
        )
    if ask.memory_gb > partition.memory_gb:
        yield Warned(
            f"{names.memory_gb}={ask.memory_gb}: {node} {partition.memory_gb} GiB; ask for no more, or name a "
            "partition with more",
            is_grave=True,
        )
    if _is_too_long(ask.minutes, partition):
        longest = round((partition.longest_hours or 0) * 60)
        yield Warned(
            f"{names.minutes}={ask.minutes}: {ask.partition} ends jobs after {longest} minutes; set {longest} at most "
            "(a training goes on in its next job, for other stages lower shards_per_job)",
            is_grave=True,
        )


def _costly(ask: Ask, partition: Partition, names: SettingNames) -> Iterator[Warned]:
    """What makes the share larger than that of the GPUs."""
    if not partition.gpus:
        return
    if not ask.gpus:
        yield Warned(
            f"{names.partition}={ask.partition}: no GPU is asked for there, and "
            f"{billed_share(ask, partition)} of a node with {partition.gpus} GPUs is billed; name a partition "
            "without GPUs"
        )
        return
    parts = parts_of_node(ask, partition)
    billed = rounded_share(parts["GPUs"], partition)
    for part, name, asked, of_node in (
        ("cores", names.cpus, ask.cpus, partition.cores),
        ("memory", names.memory_gb, ask.memory_gb, partition.memory_gb),
    ):
        if parts[part] > billed:
            yield Warned(
                f"{name}={asked}: {billed_share(ask, partition)} of a node of {ask.partition} is billed for "
                f"it, the GPUs ({names.gpus}={ask.gpus}) are {billed}; set {int(billed * of_node)} at most"
            )


def _later_attempts(ask: Ask, partition: Partition, names: SettingNames, attempts: int) -> Iterator[Warned]:
    most = ask.memory_gb * attempts
    if most > partition.memory_gb:
        yield Warned(
            f"{names.memory_gb}={ask.memory_gb}: attempt {attempts} asks for {most} GiB, a node of {ask.partition} has "
            f"{partition.memory_gb}; set {partition.memory_gb // attempts} at most, or retries: 0 in the profile"
        )
    if _is_too_long(ask.minutes * attempts, partition):
        longest = int((partition.longest_hours or 0) * 60)
        yield Warned(
            f"{names.minutes}={ask.minutes}: attempt {attempts} asks for {ask.minutes * attempts} minutes, "
            f"{ask.partition} gives {longest}; set {longest // attempts} at most, or retries: 0 in the profile"
        )


def _is_too_long(minutes: int, partition: Partition) -> bool:
    return partition.longest_hours is not None and minutes > partition.longest_hours * 60
