"""Tables too long for a page: what is printed, what goes into the data file, and what the details file may lack."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from interaction_material import HOSTILE, details, entry, many_entries, renderer

from flowkit.errors import ReportError
from flowkit.report.details import read_details
from flowkit.report.figures import fidelity_against_distribution
from flowkit.report.scripts import read_data_script
from flowkit.report.tables import Cell, Header, Line, Table, light, packed, results_table

PRINT = """{% import "parts.html.j2" as parts %}{{ parts.table(table, "../", "Results") }}"""


def numbered(lines: int, columns: int) -> Table:
    cells = [[Cell(f"{line}.{column}", number=line) for column in range(columns)] for line in range(lines)]
    return Table("Numbers.", [Header(str(column)) for column in range(columns)], list(map(Line, cells)), True)


def printed(table: Table) -> str:
    return renderer()._environment.from_string(PRINT).render(table=table)


@pytest.mark.parametrize(
    ("lines", "columns", "kept"), [(101, 5, 100), (2000, 11, 100), (51, 47, 30), (400, 900, 10)]
)
def test_long_table_prints_its_first_lines_and_has_all_in_a_file(lines: int, columns: int, kept: int) -> None:
    table = numbered(lines, columns)
    short, files = light(table, "numbers", csv="data/summary.csv")
    assert list(short.lines) == list(table.lines[:kept])
    assert list(files) == ["data/tables/numbers.js"]
    rows = read_data_script(files["data/tables/numbers.js"])["rows"]
    assert len(rows) == lines
    assert rows[-1] == ["", *([f"{lines - 1}.{column}", "", lines - 1] for column in range(columns))]
    page = printed(short)
    assert 'data-rows="../data/tables/numbers.js" data-root="../"' in page
    assert f"The first {kept} of {lines:,} lines; all of them are in" in page
    assert page.count("<tr") == kept + 1


@pytest.mark.parametrize(("lines", "columns"), [(100, 11), (30, 47), (0, 3)])
def test_short_table_stays_as_it_is(lines: int, columns: int) -> None:
    table = numbered(lines, columns)
    assert light(table, "numbers", csv="data/summary.csv") == (table, {})
    assert "data-rows" not in printed(table)


def test_cells_are_packed_without_what_is_empty() -> None:
    assert packed(Cell("heun-2")) == "heun-2"
    assert packed(Cell("–", missing=True)) == ["–", "", None, 2]
    assert packed(Cell("0", number=0.0)) == ["0", "", 0.0]
    assert packed(Cell("0.123", "0.1 to 0.2", 0.123456789, best=True)) == [
        "0.123",
        "0.1 to 0.2",
        0.1234568,
        1,
    ]
    assert packed(Cell("flow", "flow", page="runs/flow.html")) == ["flow", "flow", None, 0, "runs/flow.html"]


def test_200_runs_with_10_samplers_and_all_metrics_stay_light() -> None:
    entries = many_entries(200, 10, [f"metric_{number}" for number in range(40)])
    table = results_table(
        entries, ["r2", "fd_img", *(f"metric_{number}" for number in range(40))], {}, "All."
    )
    short, files = light(table, "all", csv="data/summary.csv")
    assert len(printed(short)) < 400_000
    rows = read_data_script(files["data/tables/all.js"])["rows"]
    assert len(rows) == 2000
    assert [row[1][0] for row in rows[:30:10]] == list(HOSTILE)


def write_details(path: Path, **changes: object) -> Path:
    known = details(0.9, 1)
    arrays = {item.name: getattr(known, item.name) for item in fields(known) if item.name != "without"}
    arrays |= {f"without_{name}": values for name, values in known.without.items()}
    np.savez(path, **{name: values for name, values in (arrays | changes).items() if values is not None})
    return path


def test_details_may_lack_what_only_comparisons_need(tmp_path: Path) -> None:
    full = read_details(write_details(tmp_path / "full.npz"))
    assert full.spread_image is not None
    assert full.spread_image.mean() == pytest.approx(1)
    assert {name: len(values) for name, values in full.without.items()} == {"fd_img": 10}
    bare = read_details(write_details(tmp_path / "bare.npz", spread_image=None, without_fd_img=None))
    assert (bare.spread_image, dict(bare.without)) == (None, {})
    with pytest.raises(ReportError, match=r"spread_image has shape \(3,\), expected \(400,\)"):
        read_details(write_details(tmp_path / "wrong.npz", spread_image=np.ones(3)))


def test_figure_of_many_runs_names_baselines_and_the_best() -> None:
    """Hundreds of runs fit: those without a name are dots, counted in the caption, and all are in the data."""
    entries = [*many_entries(60, 2, []), *(entry(name, "-", 0.5) for name in ("ridge", "constant"))]
    plot = fidelity_against_distribution(entries)
    assert plot is not None
    assert plot.caption.endswith("Small dots: 44 other runs.")
    assert len(plot.data) == len(entries)
    names = set(re.findall(r">(run-\d+|ridge|constant)</text>", plot.svg))
    assert names == {"ridge", "constant", *(f"run-{number}" for number in range(3, 16))}
    few = fidelity_against_distribution(entries[:8])
    assert few is not None
    assert "Small dots" not in few.caption
