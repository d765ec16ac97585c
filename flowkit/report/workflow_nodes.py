"""What the run records say of each node of the workflow: how long, how much memory, where, how much is done.

Nodes come from `flowkit.stages.graph`. A process that made several results, one after the other or side by side, is
counted once: the time of a node is the union of the spans in which its processes worked on it, and the start of a
process (loading libraries) belongs to the first thing that it made. CPU time, which records give for the process so
far, is shared out by difference. A record that is missing or damaged leaves its part unknown; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from flowkit.errors import ReportError
from flowkit.paths import MANIFEST, RUN_RECORD
from flowkit.report.data import finite, read_json

LONGEST_START_SECONDS = 300.0
"""A process that did something else for longer, such as a session at a prompt, was not loading libraries."""
SIDE_BY_SIDE = ("baselines",)
"""Stages that open all their results at once; records of earlier versions do not name their process."""


@dataclass(frozen=True)
class Hardware:
    """A kind of machine; None where a record does not say."""

    machine: str | None
    cpu_model: str | None
    cpus: float | None
    usable_cpus: float | None
    memory_gb: float | None
    accelerator: str | None
    """Name and number of GPUs; "none" where a stage used none, None where its record does not say."""


@dataclass(frozen=True)
class Ran:
    """One readable `run.json`. `begin` counts from the start of its process, `cpu_seconds` and memory as well."""

    node: str
    process: tuple[object, ...]
    begin: float
    seconds: float
    starts_process: bool
    cpu_seconds: float | None
    peak_memory_mb: float | None
    started: datetime | None
    rates: Mapping[str, float]
    host: str
    hardware: Hardware
    slurm_job: str | None
    tasks: float
    """How many processes worked together; the record is of the first."""
    is_by_hand: bool
    versions: Mapping[str, str]
    code: tuple[str, ...]

    @property
    def end(self) -> float:
        """When it was committed, on the clock of `begin`."""
        return self.begin + self.seconds


@dataclass(frozen=True)
class Node:
    """One box of the workflow and what is known of it. Times are in seconds, None where no record tells."""

    name: str
    stage: str
    label: str
    after: Sequence[str]
    folder: str
    """Its first result folder, as text."""
    results: int = 1
    done: int = 0
    without_record: Sequence[str] = ()
    """Run records that miss or cannot be read, though the result is there."""
    processes: int = 0
    seconds: float | None = None
    longest: float | None = None
    """The time of the longest of its processes: as fast as it goes with a machine for each."""
    cpu_seconds: float | None = None
    ran: Sequence[Ran] = ()

    @property
    def title(self) -> str:
        """Stage and what it works on."""
        return f"{self.stage} {self.label}".strip()

    @property
    def state(self) -> str:
        """`done`, `not run yet` or how much is done."""
        if self.done == self.results:
            return "done"
        return f"{self.done:,} of {self.results:,} done" if self.done else "not run yet"

    @property
    def peak_memory_mb(self) -> float | None:
        """The most that one process used."""
        return max((one.peak_memory_mb for one in self.ran if one.peak_memory_mb is not None), default=None)

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest of each rate over the results."""
        names = dict.fromkeys(name for one in self.ran for name in one.rates)
        found = {name: [one.rates[name] for one in self.ran if name in one.rates] for name in names}
        return {name: (min(values), max(values)) for name, values in found.items()}

    @property
    def hosts(self) -> list[str]:
        """Names of the machines that it ran on."""
        return sorted({one.host for one in self.ran})

    @property
    def accelerators(self) -> list[str | None]:
        """The kinds of accelerator that it ran on."""
        return sorted({one.hardware.accelerator for one in self.ran}, key=str)

    @property
    def slurm_jobs(self) -> list[str]:
        """Numbers of its Slurm jobs."""
        return sorted({one.slurm_job for one in self.ran if one.slurm_job})

    @property
    def started(self) -> datetime | None:
        """When its first result was begun."""
        return min((one.started for one in self.ran if one.started), default=None)

    @property
    def ended(self) -> datetime | None:
        """When its last result was finished."""
        return max(
            (one.started + timedelta(seconds=one.seconds) for one in self.ran if one.started), default=None
        )


def read_nodes(nodes: Sequence[Mapping[str, Any]], results: Path, data_root: Path) -> list[Node]:
    """Return the nodes with what the manifests and run records below both roots say, in the same order.

    Nothing is raised for results that are missing or damaged: the node says so.
    """
    roots = {"results": results, "data": data_root}
    found: dict[str, list[Ran]] = {}
    read: list[Node] = []
    for node in nodes:
        paths = [_below(folder, roots) for folder in folders_of(node)]
        done = [path for path in paths if (path / MANIFEST).is_file()]
        records = {path: _read(path / RUN_RECORD, node["name"], len(paths)) for path in done}
        found[node["name"]] = _end_to_end([record for record in records.values() if record is not None])
        lost = [str(path / RUN_RECORD) for path, record in records.items() if record is None]
        shown = Node(
            node["name"], node["stage"], node["label"], tuple(node["after"]), str(paths[0]) if paths else ""
        )
        read.append(replace(shown, results=len(paths), done=len(done), without_record=lost))
    own_cpu = _own_cpu_seconds(found)
    starts = _process_starts(found)
    return [_with_times(node, found[node.name], starts, own_cpu[node.name]) for node in read]


def folders_of(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the result folders that the patterns of a node stand for, each with the root that it lies below."""
    for pattern in node["folders"]:
        if isinstance(pattern, str):
            yield pattern
            continue
        for number in range(pattern["first"], pattern["last"] + 1):
            yield f"{pattern['before']}{number:0{pattern['digits']}d}{pattern['after']}"


def _below(folder: str, roots: Mapping[str, Path]) -> Path:
    root, _, path = folder.partition(":")
    return roots[root] / path


def _read(file: Path, node: str, results: int) -> Ran | None:
    """Return a run record, None if it is missing, damaged or without a time."""
    try:
        record = read_json(file)
    except ReportError:
        return None
    seconds = finite(record.get("seconds"))
    if seconds is None or seconds < 0:
        return None
    host, process = _mapping(record.get("host")), _mapping(record.get("process"))
    started = _time(record.get("started"))
    before = finite(process.get("seconds_before"))
    name = str(host.get("name") or "unknown")
    knows_process = before is not None and {"id", "began"} <= process.keys()
    if knows_process:
        key: tuple[object, ...] = (name, str(process["id"]), str(process["began"]))
    else:
        key = (node, record.get("stage") in SIDE_BY_SIDE and started is not None)
        before = started.timestamp() if started else 0.0
    return Ran(
        node=node,
        process=key,
        begin=before or 0.0,
        seconds=seconds,
        starts_process=knows_process,
        # an earlier version's record does not say which part of the process made this result
        cpu_seconds=finite(record.get("cpu_seconds")) if knows_process or results == 1 else None,
        peak_memory_mb=finite(record.get("peak_memory_mb")),
        started=started,
        rates={
            str(key): rate for key, value in _mapping(record.get("rates")).items() if (rate := finite(value))
        },
        host=name,
        hardware=_hardware(host),
        slurm_job=str(record["slurm_job"]) if record.get("slurm_job") else None,
        tasks=finite(record.get("tasks")) or 1.0,
        is_by_hand=bool(record.get("by_hand")),
        versions={str(name): str(version) for name, version in _mapping(record.get("versions")).items()},
        code=tuple(str(one) for one in code) if isinstance(code := record.get("code"), list) else (),
    )


def _end_to_end(ran: Sequence[Ran]) -> list[Ran]:
    """Return records with those that name no process laid end to end, as if one process had made them in turn.

    An earlier version wrote them, with times too coarse to see which overlap; baselines are known to.
    """
    placed, reached = [], 0.0
    for one in ran:
        if not one.starts_process and one.process != (one.node, True):
            one = replace(one, begin=reached)
            reached = one.end
        placed.append(one)
    return placed


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _time(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _hardware(host: Mapping[str, Any]) -> Hardware:
    def text(name: str) -> str | None:
        return str(host[name]) if host.get(name) not in (None, "") else None

    accelerator = None
    if "accelerator" in host:
        gpus = _mapping(host["accelerator"])
        accelerator = f"{gpus.get('count', '?')} × {gpus.get('name', 'unknown')}" if gpus else "none"
    return Hardware(
        machine=text("machine"),
        cpu_model=text("cpu_model"),
        cpus=finite(host.get("cpus")),
        usable_cpus=finite(host.get("usable_cpus")),
        memory_gb=finite(host.get("memory_gb")),
        accelerator=accelerator,
    )


def _by_process(ran: Iterable[Ran]) -> dict[tuple[object, ...], list[Ran]]:
    """Return records by process, each process's in the order in which they were committed."""
    found: dict[tuple[object, ...], list[Ran]] = {}
    for one in ran:
        found.setdefault(one.process, []).append(one)
    return {process: sorted(records, key=lambda one: one.end) for process, records in found.items()}


def _own_cpu_seconds(found: Mapping[str, Sequence[Ran]]) -> dict[str, float | None]:
    """Return the CPU time of each node: of every process what it used since its result before."""
    own: dict[str, float | None] = {name: 0.0 if records else None for name, records in found.items()}
    for records in _by_process(one for several in found.values() for one in several).values():
        before = 0.0
        for one in records:
            known = own[one.node]
            own[one.node] = (
                None if known is None or one.cpu_seconds is None else known + one.cpu_seconds - before
            )
            before = one.cpu_seconds if one.cpu_seconds is not None else before
    return own


def _process_starts(found: Mapping[str, Sequence[Ran]]) -> dict[tuple[object, ...], tuple[str, float]]:
    """Return for each process the node of its first result and the seconds before it."""
    starts = {}
    for process, records in _by_process(one for several in found.values() for one in several).items():
        first = min(records, key=lambda one: one.begin)
        if first.starts_process and first.begin <= LONGEST_START_SECONDS:
            starts[process] = (first.node, first.begin)
    return starts


def _with_times(
    node: Node,
    ran: Sequence[Ran],
    starts: Mapping[tuple[object, ...], tuple[str, float]],
    cpu_seconds: float | None,
) -> Node:
    times = []
    for process, records in _by_process(ran).items():
        first, start = starts.get(process, ("", 0.0))
        times.append(
            _union([(one.begin, one.end) for one in records]) + (start if first == node.name else 0.0)
        )
    return replace(
        node,
        ran=ran,
        processes=len(times),
        seconds=sum(times) if times else None,
        longest=max(times, default=None),
        cpu_seconds=cpu_seconds,
    )


def _union(spans: Sequence[tuple[float, float]]) -> float:
    """Return how much time spans (begin, end) cover together."""
    ordered = sorted(spans)
    total = ordered[0][1] - ordered[0][0]
    reached = ordered[0][1]
    for _, (begin, end) in pairwise(ordered):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
