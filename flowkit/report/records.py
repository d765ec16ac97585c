"""How the results came about: settings that differ between runs, stages with their cost, package versions.

Works on the `run.json` records alone. A key that a record lacks is shown as unknown; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.report.data import RunFiles, StageRecord, finite
from flowkit.report.measures import plain
from flowkit.report.tables import Cell, Header, Line, Table

UNKNOWN = "unknown"


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` -> text."""
    found: dict[str, str] = {}
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return found


def settings(run: RunFiles) -> dict[str, str]:
    """Return the settings of a run's training and sampling, empty when there is no record of them."""
    found: dict[str, str] = {}
    for record in run.records:
        spec, stage = record.values.get("spec"), record.name.split("/")[0]
        values = spec.get("values") if isinstance(spec, Mapping) else None
        if not isinstance(values, Mapping):
            continue
        if stage == "train":
            found |= leaves(values)
        elif stage == "samples" and isinstance(values.get("sampling"), Mapping):
            found |= leaves({"sampling": values["sampling"]})
    return dict(sorted(found.items()))


def stages_table(runs: Sequence[RunFiles], pages: Mapping[str, str]) -> Table:
    """Return one line per stage of each run: when, where, how long, how much memory."""
    headers = [
        Header("run"),
        Header("stage"),
        Header("started"),
        Header("seconds", numeric=True),
        Header("peak memory, MB", numeric=True),
        Header("host"),
        Header("rates"),
    ]
    lines = []
    for run in runs:
        for record in run.records:
            known = record.values
            lines.append(
                Line(
                    [
                        Cell(run.name, page=pages.get(run.name, "")),
                        Cell(_stage(record)),
                        _text(known.get("started")),
                        _number(known.get("seconds"), 1),
                        _number(known.get("peak_memory_mb"), 0),
                        _text(_host(known.get("host"))),
                        Cell(rates_text(known.get("rates"))),
                    ]
                )
            )
    return Table(
        "Stages, with wall time and memory. Sort by a column to find the dear ones.", headers, lines, True
    )


def versions_table(runs: Sequence[RunFiles]) -> Table:
    """Return the versions of each package over all records.

    More than one in a row means the runs were mixed.
    """
    found: dict[str, set[str]] = {}
    for run in runs:
        for record in run.records:
            versions = record.values.get("versions")
            for package, version in versions.items() if isinstance(versions, Mapping) else ():
                found.setdefault(str(package), set()).add(str(version))
    lines = [
        Line(
            [
                Cell(package),
                Cell(", ".join(sorted(versions)), "differs between stages" if len(versions) > 1 else ""),
            ]
        )
        for package, versions in sorted(found.items())
    ]
    return Table("Versions that the stages ran with.", [Header("package"), Header("version")], lines)


def stage_seconds(run: RunFiles) -> dict[str, float]:
    """Return the wall time of each stage of a run that left a record, in seconds."""
    found = {_stage(record): finite(record.values.get("seconds")) for record in run.records}
    return {stage: seconds for stage, seconds in found.items() if seconds is not None}


def pretty(record: StageRecord) -> str:
    """Return a record as indented JSON."""
    return json.dumps(record.values, indent=1, sort_keys=True, ensure_ascii=False)


def _stage(record: StageRecord) -> str:
    return str(record.values.get("stage") or record.name)


def _host(value: object) -> object:
    return value.get("name") if isinstance(value, Mapping) else value


def _text(value: object) -> Cell:
    return Cell(UNKNOWN, missing=True) if value in (None, "") else Cell(str(value))


def _number(value: object, decimals: int) -> Cell:
    number = finite(value)
    return Cell(UNKNOWN, missing=True) if number is None else Cell(plain(number, decimals), number=number)


def rates_text(values: object) -> str:
    """Return the rates of a record as text."""
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" for key, value in sorted(values.items()) if finite(value)
    )
