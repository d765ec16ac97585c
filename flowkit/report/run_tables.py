"""Tables that stand on the page of one run: retrieval beside the true tokens, seeds, notes, settings, stages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.provenance import digest_of
from flowkit.report.data import Note, RunFiles, StageRecord, finite
from flowkit.report.measures import duration, in_order, measure, plain
from flowkit.report.records import UNKNOWN, leaves, rates_text, settings
from flowkit.report.standings import Entry
from flowkit.report.tables import Cell, Header, Line, Table

RETRIEVAL = (
    *("self_r1", "self_r5", "self_r10", "t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10"),
    *("zero_shot_top1", "knn_agreement"),
)
OF_SEEDS = ("r2", "skill_r2", "tok_cos", "fd_img", "fd_tok", "t2i_r1")


def retrieval_table(entry: Entry, true: Entry | None) -> Table | None:
    """Return what the predictions find beside what the true tokens find; None where nothing was searched."""
    found = {name: entry.measurements[name] for name in RETRIEVAL if entry.value(name) is not None}
    if not found:
        return None
    headers = [Header("search"), Header(entry.name, numeric=True)]
    headers += [Header("true tokens", numeric=True), Header("share of it", numeric=True)] if true else []
    lines = []
    for name, row in found.items():
        shown, value = measure(name), entry.value(name)
        cells = [
            Cell(shown.label, note=shown.meaning),
            Cell(shown.text(value), shown.interval(row.low, row.high), value),
        ]
        if true:
            cells += [*_beside(value, true.value(name), shown.text)]
        lines.append(Line(cells))
    caption = (
        "What is found with predicted embeddings among the evaluation images. Small print: 95 % interval."
    )
    return Table(caption, headers, lines)


def _beside(value: float | None, of_true: float | None, text: Any) -> tuple[Cell, Cell]:
    if of_true is None:
        return Cell("–", missing=True), Cell("–", missing=True)
    share = None if value is None or not of_true else value / of_true
    missing = Cell("–", missing=True)
    return Cell(text(of_true), number=of_true), missing if share is None else Cell(
        f"{plain(100 * share, 1)} %", number=share
    )


def seeds_table(entry: Entry, family: Sequence[Entry]) -> Table | None:
    """Return the figures of one training with several seeds, and their spread; None for a single seed.

    `family` are the entries of all seeds with the sampler of `entry`, itself among them.
    """
    metrics = [name for name in OF_SEEDS if all(one.value(name) is not None for one in family)]
    if len(family) < 2 or not metrics:
        return None
    values = {name: [value for one in family if (value := one.value(name)) is not None] for name in metrics}
    lines = [
        Line([Cell(one.run), *(Cell(measure(m).text(one.value(m)), number=one.value(m)) for m in metrics)])
        for one in sorted(family, key=lambda one: one.run)
    ]
    means = [Cell(measure(m).text(statistics.mean(values[m])), number=None) for m in metrics]
    spread = [Cell(measure(m).of_differences.text(statistics.stdev(values[m])), number=None) for m in metrics]
    lines += [
        Line([Cell("mean"), *means], "closed form"),
        Line([Cell("standard deviation"), *spread], "closed form"),
    ]
    headers = [Header("run"), *(Header(measure(m).label, measure(m).meaning, numeric=True) for m in metrics)]
    caption = (
        f"The same training with {len(family)} seeds, each with {entry.sampler_name}. The standard deviation (N − 1) "
        "is what another seed would move a figure by; intervals over images do not hold it."
    )
    return Table(caption, headers, lines)


def notes_table(notes: Sequence[Note]) -> Table | None:
    """Return why figures of a run are missing, or on what they were measured; samplers with the same note share a line.

    None where there is nothing to say.
    """
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for one in notes:
        grouped.setdefault((one.note, tuple(one.metrics)), []).append(one.sampler)
    lines = [
        Line(
            [
                Cell(", ".join(measure(name).label for name in in_order(set(metrics)))),
                Cell(note),
                Cell(", ".join(samplers)),
            ]
        )
        for (note, metrics), samplers in grouped.items()
    ]
    headers = [Header("metrics"), Header("note"), Header("samplers")]
    return Table("What was not measured, and what was measured on less.", headers, lines) if lines else None


def changed_settings(run: RunFiles, defaults: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return the settings of a run that are not the default; None without a record of them."""
    mine, usual = settings(run), leaves(defaults)
    if not mine:
        return None
    lines = [
        Line([Cell(key), Cell(value), Cell(usual[key])])
        for key, value in mine.items()
        if usual.get(key, value) != value
    ]
    headers = [Header("setting"), Header("this run"), Header("default")]
    return Table("Settings of this run that are not the default.", headers, lines)


def stage_costs(records: Sequence[StageRecord]) -> Table | None:
    """Return one line per stage of a run: time, memory, rates, hardware and the digest of its code."""
    headers = [
        Header("stage"),
        Header("started"),
        Header("wall time", numeric=True),
        Header("CPU time", numeric=True),
        Header("peak memory", numeric=True),
        Header("rates"),
        Header("hardware"),
        Header(
            "code", "Digest of every module that the stage can reach; the record below names each of them."
        ),
    ]
    lines = [_stage_line(record) for record in records]
    return Table("Each stage of this run when it was made.", headers, lines) if lines else None


def _stage_line(record: StageRecord) -> Line:
    known = record.values
    seconds, cpu, memory = (finite(known.get(key)) for key in ("seconds", "cpu_seconds", "peak_memory_mb"))
    code = known.get("code")
    return Line(
        [
            Cell(str(known.get("stage") or record.name)),
            _known(known.get("started")),
            *(_known(None if time is None else duration(time), time) for time in (seconds, cpu)),
            _known(None if memory is None else f"{memory:,.0f} MB", memory),
            Cell(rates_text(known.get("rates"))),
            _known(hardware(known.get("host"))),
            _known(digest_of(list(code))[:10] if isinstance(code, Sequence) and code else None),
        ]
    )


def _known(value: object, number: float | None = None) -> Cell:
    return Cell(UNKNOWN, missing=True) if value in (None, "") else Cell(str(value), number=number)


def hardware(host: object) -> str:
    """Return what a stage ran on, from the host of its record."""
    if not isinstance(host, Mapping):
        return str(host or "")
    cpus, accelerator = host.get("usable_cpus") or host.get("cpus"), host.get("accelerator")
    if isinstance(accelerator, Mapping):
        accelerator = f"{accelerator.get('count')} × {accelerator.get('name')}"
    words = [
        host.get("name"),
        accelerator,
        host.get("cpu_model") or host.get("machine"),
        f"{cpus} cores" if cpus else None,
    ]
    return ", ".join(str(word) for word in words if word)
