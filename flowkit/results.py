"""The figures of a finished experiment as lines of text, read from summary.json and verdicts.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowkit.provenance import read_json

COLUMNS = ("nfe", "r2", "skill_r2", "tok_cos", "img_cos", "fd_img", "self_r1", "t2i_r1")


def key_figures(experiment: Path) -> Iterator[str]:
    """Yield a table with one line per run and sampler, the verdicts, and the paths of the report."""
    rows = read_json(experiment / "summary.json")["rows"]
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        table.setdefault((row["run"], row["sampler"]), {})[row["metric"]] = row["value"]
    width = max(len(run) for run in ("run", *(run for run, _ in table))) + 2
    samplers = max(len(sampler) for sampler in ("sampler", *(sampler for _, sampler in table))) + 2
    yield f"{'run':<{width}}{'sampler':<{samplers}}" + "".join(f"{column:>11}" for column in COLUMNS)
    for (run, sampler), values in table.items():
        yield f"{run:<{width}}{sampler:<{samplers}}" + "".join(
            _cell(values.get(column)) for column in COLUMNS
        )
    yield ""
    for verdict in read_json(experiment / "verdicts.json")["rows"]:
        yield f"{verdict['verdict']:<13} {verdict['goal']} ({_cell(verdict['value']).strip()} of {verdict['demand']})"
    yield ""
    yield f"report: {experiment / 'report' / 'index.html'}"
    if (experiment / "report.zip").is_file():
        yield f"Snakemake's report: {experiment / 'report.zip'}"


def _cell(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{value:>11.4g}"
