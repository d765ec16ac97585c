"""Measures every performance bar: `make bench`.

Each bar is a ratio of two things measured in turn in the same process, so it holds on a busy machine too. Writes one
JSON row per bar, prints a table, and exits with 1 if a bar does not hold.

    {"name", "value", "demand", "holds", "median_of", "spread": [low, high], "device"}

Rows without a demand are reported only; their `demand` and `holds` are null.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import baselines_bench
import evaluation_bench
import export_bench
import extraction_bench
import loader_bench
import model_bench
import report_bench
import scale_bench
import store_bench
import typer

GROUPS = {
    "store": store_bench.rows,
    "loader": loader_bench.rows,
    "extraction": extraction_bench.rows,
    "model": model_bench.rows,
    "evaluation": evaluation_bench.rows,
    "baselines": baselines_bench.rows,
    "export": export_bench.rows,
    "report": report_bench.rows,
    "scale": scale_bench.rows,
}


def main(
    out: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("results/bench/bench.json"),
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(GROUPS)}.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the data lies while measuring (8 GB).")] = None,
) -> None:
    """Measure, print and save."""
    rows: list[dict[str, Any]] = []
    for group in only or GROUPS:
        with tempfile.TemporaryDirectory(prefix=f"flowkit-bench-{group}-", dir=folder) as work:
            for row in GROUPS[group](Path(work)):
                rows.append(row)
                typer.echo(_line(row))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    judged = [row for row in rows if row["holds"] is not None]
    failed = [row["name"] for row in judged if not row["holds"]]
    typer.echo(f"{len(judged) - len(failed)} of {len(judged)} bars hold; {out}")
    if failed:
        typer.echo(f"does not hold: {', '.join(failed)}")
        sys.exit(1)


def _line(row: dict[str, Any]) -> str:
    verdict = {True: "holds", False: "DOES NOT HOLD", None: "reported"}[row["holds"]]
    demand = "" if row["demand"] is None else f"demand {row['demand']:g}, "
    low, high = row["spread"]
    spread = f"{demand}{low:.4g} to {high:.4g}, median of {row['median_of']}"
    return f"{row['name']:<72} {row['value']:>9.4g} ({spread}) {verdict}"


if __name__ == "__main__":
    typer.run(main)
