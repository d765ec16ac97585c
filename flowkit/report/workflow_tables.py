"""Tables of how an experiment came about: stages with their cost, machines, versions, code, and settings of runs.

Everything is said of the nodes' run records; what those do not tell is shown as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from flowkit.paths import CLOSED_FORM
from flowkit.report.data import RunFiles
from flowkit.report.measures import duration, plain
from flowkit.report.records import UNKNOWN, leaves, settings
from flowkit.report.tables import Cell, Header, Line, Table
from flowkit.report.workflow_figure import share, total_seconds
from flowkit.report.workflow_nodes import Hardware, Node, Ran

RUNS_AS_COLUMNS = 12
NAMES_SHOWN = 3
STAGES_OF_RUNS = ("train", "sample", "evaluate")
NOT_SET = "–"


def stages_table(nodes: Sequence[Node], pages: Mapping[str, str]) -> Table:
    """Return one line per node: what, how much is done, when, how long, with what.

    Host and accelerator are left out where they are the same everywhere; then the caption names them.
    """
    total = total_seconds(nodes)
    headers = [
        Header("stage"),
        Header("of what"),
        Header("results", "How many are there, of how many there should be.", numeric=True),
        Header("started, UTC"),
        Header(
            "time", "From the start of a process to its last result, all processes together.", numeric=True
        ),
        Header("share", "Of the time of all stages.", numeric=True),
        Header("CPU time", "Of all cores together.", numeric=True),
        Header("peak memory", "The most that one process used.", numeric=True),
        Header("rate"),
    ]
    caption = "Every stage, in the order of the workflow."
    lines = [_stage_line(node, total, pages) for node in nodes]
    for name, values, column in (
        ("host", {host for node in nodes for host in node.hosts}, _hosts),
        ("accelerator", {kind for node in nodes for kind in node.accelerators}, _accelerators),
    ):
        if len(values) > 1:
            headers.append(Header(name))
            lines = [
                replace(line, cells=[*line.cells, column(node)])
                for line, node in zip(lines, nodes, strict=True)
            ]
        elif values:
            caption += f" {name.capitalize()} of all: {next(iter(values)) or UNKNOWN}."
    return Table(caption, headers, lines, sortable=True)


def _hosts(node: Node) -> Cell:
    return Cell(_few(node.hosts) or NOT_SET, _few([f"Slurm job {job}" for job in node.slurm_jobs]))


def _accelerators(node: Node) -> Cell:
    return Cell(_few([kind or UNKNOWN for kind in node.accelerators]) or NOT_SET)


def _stage_line(node: Node, total: float, pages: Mapping[str, str]) -> Line:
    is_of_a_run = node.stage in STAGES_OF_RUNS and node.label in pages
    count = f"{node.results:,}" if node.state == "done" else f"{node.done:,} of {node.results:,}"
    notes = [f"{node.processes:,} processes" if node.processes > 1 else ""]
    tasks = max((one.tasks for one in node.ran), default=1.0)
    notes.append(f"{tasks:.0f} tasks together" if tasks > 1 else "")
    notes.append("by hand" if any(one.is_by_hand for one in node.ran) else "")
    notes.append(f"{len(node.without_record):,} without a record" if node.without_record else "")
    instead = "" if node.done else NOT_SET
    of_all = _unknown(instead)
    if node.seconds is not None:
        of_all = Cell(share(node.seconds, total), number=node.seconds)
    return Line(
        [
            Cell(node.stage),
            Cell(node.label, page=pages[node.label] if is_of_a_run else ""),
            Cell(count, ", ".join(note for note in notes if note), node.done),
            _moment(node.started, node.state),
            _number(node.seconds, duration, instead),
            of_all,
            _number(node.cpu_seconds, duration, instead),
            _number(node.peak_memory_mb, _megabytes, instead),
            Cell(_rates(node.rates)),
        ]
    )


def _unknown(text: str = "") -> Cell:
    return Cell(text or UNKNOWN, missing=not text)


def _number(value: float | None, text: Callable[[float], str], instead: str = "") -> Cell:
    return _unknown(instead) if value is None else Cell(text(value), number=value)


def _moment(at: datetime | None, state: str) -> Cell:
    if at is None:
        return Cell(state) if state != "done" else _unknown()
    return Cell(f"{at:%Y-%m-%d %H:%M}", number=at.timestamp())


def _megabytes(value: float) -> str:
    return f"{value:,.0f} MB" if value < 10_000 else f"{plain(value / 1024, 1)} GB"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _rates(rates: Mapping[str, tuple[float, float]]) -> str:
    """Return rates by their unit: `samples/s 187`, `images/s euler-1 1,154, heun-50 8.46`."""
    units: dict[str, list[str]] = {}
    for name, (low, high) in rates.items():
        unit, _, of_what = name.replace("_per_s", "/s").removesuffix(f" {CLOSED_FORM}").partition(" ")
        text = _short(low) if _short(low) == _short(high) else f"{_short(low)} to {_short(high)}"
        units.setdefault(unit, []).append(f"{of_what} {text}".strip())
    return "; ".join(f"{unit} {', '.join(values)}" for unit, values in units.items())


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hardware_table(nodes: Sequence[Node]) -> Table:
    """Return one line per kind of machine, with what ran on it."""
    kinds: dict[Hardware, list[tuple[Node, Ran]]] = {}
    for node in nodes:
        for one in node.ran:
            kinds.setdefault(replace(one.hardware, accelerator=None), []).append((node, one))
    headers = [
        Header("processor"),
        Header("cores", "Cores that a stage was allowed to use, and that the machine has.", numeric=True),
        Header("memory", numeric=True),
        Header("accelerator", "Where the process of a stage could use one."),
        Header("machines"),
        Header("stages"),
    ]
    every = {node.stage for node in nodes if node.ran}
    lines = [_hardware_line(kind, ran, every) for kind, ran in kinds.items()]
    return Table("What the stages ran on.", headers, lines)


def _hardware_line(kind: Hardware, ran: Sequence[tuple[Node, Ran]], every: set[str]) -> Line:
    used, cores = (UNKNOWN if number is None else f"{number:.0f}" for number in (kind.usable_cpus, kind.cpus))
    stages = list(dict.fromkeys(node.stage for node, _ in ran))
    return Line(
        [
            Cell(kind.cpu_model or UNKNOWN, note=kind.machine or ""),
            Cell(f"{used} of {cores}"),
            _number(kind.memory_gb, lambda value: f"{plain(value, 0 if value >= 100 else 1)} GB"),
            Cell(_few(sorted({one.hardware.accelerator or UNKNOWN for _, one in ran}))),
            Cell(_few(sorted({one.host for _, one in ran}))),
            Cell("all" if set(stages) == every else ", ".join(stages)),
        ]
    )


def versions_table(nodes: Sequence[Node]) -> Table:
    """Return the versions of each package over all records; where there are several, which stages have which."""
    found = _by_value(nodes, lambda one: one.versions.items())
    lines = [
        Line([Cell(package), Cell(", ".join(sorted(values)), _who_differs(values))])
        for package, values in sorted(found.items())
    ]
    return Table("Versions that the stages ran with.", [Header("package"), Header("version")], lines)


def code_table(nodes: Sequence[Node]) -> tuple[int, Table]:
    """Return how many modules of this package took part, and those of which results hold several states."""
    found = _by_value(
        nodes, lambda one: [(name, mark) for name, _, mark in (text.partition("@") for text in one.code)]
    )
    lines = [
        Line([Cell(module), Cell(", ".join(sorted(values)), _who_differs(values))])
        for module, values in sorted(found.items())
        if len(values) > 1
    ]
    caption = (
        "Code of which the results hold several states: an edit was accepted without a rerun, or results of other "
        "experiments are shared."
    )
    return len(found), Table(caption, [Header("module"), Header("states")], lines)


def _by_value(
    nodes: Sequence[Node], facts: Callable[[Ran], Iterable[tuple[str, str]]]
) -> dict[str, dict[str, list[str]]]:
    """Return name -> value -> titles of the nodes whose records say so."""
    found: dict[str, dict[str, list[str]]] = {}
    for node in nodes:
        for name, value in {fact for one in node.ran for fact in facts(one)}:
            found.setdefault(name, {}).setdefault(value, []).append(node.title)
    return found


def _who_differs(values: Mapping[str, Sequence[str]]) -> str:
    """Say which stages have another value than most; nothing where all agree."""
    if len(values) < 2:
        return ""
    rare = sorted(values, key=lambda value: (-len(values[value]), value))[1:]
    return "differs between stages: " + "; ".join(
        f"{value} in {_few(sorted(values[value]))}" for value in rare
    )


@dataclass(frozen=True)
class SettingsOfRuns:
    """Settings that differ between runs, and those that all share though they are not the default.

    `lines` are settings by run up to a dozen runs, beyond that runs by what is not the default; each value comes with
    whether it is the default.
    """

    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[tuple[str, bool]]]]
    shared: Table

    @property
    def has_runs_as_columns(self) -> bool:
        """Whether a line is a setting, and not a run."""
        return len(self.columns) > 1


def settings_of_runs(
    runs: Sequence[RunFiles], defaults: Mapping[str, Mapping[str, object]]
) -> SettingsOfRuns | None:
    """Return how the runs that have settings differ; None where no run has any."""
    known = {run.name: found for run in runs if (found := settings(run))}
    if not known:
        return None
    usual = leaves(defaults)
    keys = sorted({key for found in known.values() for key in found})
    differing = [key for key in keys if len({found.get(key) for found in known.values()}) > 1]
    shared = Table(
        "Settings that all runs share and that are not the default.",
        [Header("setting"), Header("all runs"), Header("default")],
        [
            Line([Cell(key), Cell(value), Cell(usual[key])])
            for key in keys
            if key not in differing and key in usual
            for value in {found[key] for found in known.values()}
            if value != usual[key]
        ],
    )
    if len(known) > RUNS_AS_COLUMNS:
        return SettingsOfRuns(["what is not the default"], _by_run(known, differing, usual), shared)
    lines = []
    for key in differing:
        values = [found.get(key, NOT_SET) for found in known.values()]
        default = usual.get(key, NOT_SET)
        lines.append((key, [(default, True), *((value, value in (default, NOT_SET)) for value in values)]))
    return SettingsOfRuns(["default", *known], lines, shared)


def _by_run(
    known: Mapping[str, Mapping[str, str]], keys: Sequence[str], usual: Mapping[str, str]
) -> Sequence[tuple[str, Sequence[tuple[str, bool]]]]:
    lines = []
    for run, found in known.items():
        own = [f"{key} {found[key]}" for key in keys if key in found and found[key] != usual.get(key)]
        lines.append((run, [(", ".join(own), False) if own else ("the default in all that differs", True)]))
    return lines
