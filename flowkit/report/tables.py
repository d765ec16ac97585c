"""Tables as data: what a template prints, a reader sorts, and a CSV file holds.

`Table` is made of cells with a text, a note (the interval) and a number to sort by. A page prints the first lines of
a long one, and `light` gives all of them in a data file for readers with scripts. The numbers behind a figure are a
data frame: `numbers` makes it, `sample` thins it for a page, `to_csv` writes it in full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from flowkit.report.data import Difference, Measurement
from flowkit.report.details import Array, Details
from flowkit.report.measures import duration, in_order, measure, plain, short
from flowkit.report.scripts import data_script, shortened
from flowkit.report.standings import HEADLINE, Entry

THRESHOLDS = (0.7, 0.8, 0.9)
BESIDE = "ridge"
COMPARED = ("r2", "fd_img", "fd_tok", "auc")
PAIRED = (
    "Image by image, so that what both share does not widen the 95 % interval; it is of these networks, and another "
    "training seed would move them, too."
)
MOST_LINES, MOST_CELLS = 100, 1500
"""What a page prints of a table: so many lines, fewer of a wide one. Scripts show as many at a time."""
DIGITS = 7
"""Significant digits of the numbers that a data file sorts by."""
Scalar = float | int | str | None


@dataclass(frozen=True)
class Header:
    """A column head; `hint` is what the column means, `numeric` right-aligns it and sorts by number."""

    text: str
    hint: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell: `number` is what it sorts by, `best` marks the best trained run, `page` is a link.

    `curve` are points of a line in a box of 100 x 24, as SVG takes them.
    """

    text: str
    note: str = ""
    number: float | None = None
    best: bool = False
    page: str = ""
    missing: bool = False
    curve: str = ""


@dataclass(frozen=True)
class Line:
    """One row of a table; the first cell is its head."""

    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption that says how to read it.

    `lines` are only the first of `count` lines where `rows` names the file with all of them; `csv` has them as numbers.
    """

    caption: str
    headers: Sequence[Header]
    lines: Sequence[Line]
    sortable: bool = False
    rows: str = ""
    csv: str = ""
    count: int = 0


def light(table: Table, name: str, *, csv: str) -> tuple[Table, dict[str, bytes]]:
    """Return a table as a page prints it, and the data file with all its lines where the page prints only the first.

    `name` is for the file, unique in the report; `csv` is the path below the report that has everything as numbers. A
    short table comes back as it is, without a file. Paths in cells are those below the report's top.
    """
    most = max(10, min(MOST_LINES, MOST_CELLS // max(1, len(table.headers)) // 10 * 10))
    if len(table.lines) <= most:
        return table, {}
    path = f"data/tables/{name}.js"
    rows = [[line.kind.replace(" ", "-"), *map(packed, line.cells)] for line in table.lines]
    printed = replace(table, lines=table.lines[:most], rows=path, csv=csv, count=len(rows))
    return printed, {path: data_script({"rows": rows})}


def packed(cell: Cell) -> list[Scalar] | str:
    """Return a cell as `row` in site.js takes it: its text alone, or text, note, number, mark, page and curve.

    The mark is 1 for the best trained run and 2 for what is missing; the end of the list is left out where it is empty.
    """
    mark = 1 if cell.best else 2 if cell.missing else 0
    number = None if cell.number is None else shortened(cell.number, DIGITS)
    parts: list[Scalar] = [cell.text, cell.note, number, mark, cell.page, cell.curve]
    while len(parts) > 1 and not parts[-1] and not (len(parts) == 3 and number is not None):
        parts.pop()
    return parts if len(parts) > 1 else cell.text


@dataclass(frozen=True)
class AboutRun:
    """What the table of results says of a run beside its figures; empty where it is not known."""

    page: str = ""
    state: str = ""
    curve: Sequence[float] = ()
    curve_of: str = ""
    trained_seconds: float | None = None


def results_table(
    entries: Sequence[Entry],
    metrics: Sequence[str],
    about: Mapping[str, AboutRun],
    caption: str,
    *,
    with_training: bool = False,
) -> Table:
    """Return one line per entry and one column per metric, marking the best trained entry of each column.

    `with_training` adds how each run was trained, what that took, and how far it is.
    """
    headers = [Header("run"), Header("sampler")]
    has_differences = any((BESIDE, HEADLINE) in entry.differences for entry in entries)
    for name in metrics:
        headers.append(Header(measure(name).label, hint(name), numeric=True))
        if name == HEADLINE and has_differences:
            headers.append(Header(f"{measure(name).label} − {BESIDE}", PAIRED, numeric=True))
    headers += TRAINING if with_training else []
    leaders = {name: _leader(entries, name) for name in metrics}
    lines = []
    for entry in entries:
        known = about.get(entry.run, AboutRun())
        cells = [Cell(entry.run, note=entry.kind, page=known.page), Cell(entry.sampler_name)]
        for name in metrics:
            cells.append(_metric_cell(entry, name, best=entry is leaders[name]))
            if name == HEADLINE and has_differences:
                cells.append(_difference_cell(entry.differences.get((BESIDE, name)), name))
        lines.append(Line([*cells, *(_training_cells(known) if with_training else [])], entry.kind))
    return Table(caption, headers, lines, sortable=True)


TRAINING = (
    Header("training", "A curve from the first to the last step, R² on held-out tars or the training loss."),
    Header("trained in", "Wall time of the training; its page has hardware and memory.", numeric=True),
    Header("state", "How far the run is."),
)


def _training_cells(about: AboutRun) -> tuple[Cell, Cell, Cell]:
    curve, seconds = about.curve, about.trained_seconds
    ends = f"{short(curve[0])} to {short(curve[-1])}" if curve else ""
    return (
        Cell("", f"{about.curve_of}, {ends}", curve=curve_points(curve))
        if curve
        else Cell("–", missing=True),
        Cell("–", missing=True) if seconds is None else Cell(duration(seconds), number=seconds),
        Cell(about.state) if about.state else Cell("–", missing=True),
    )


def curve_points(values: Sequence[float]) -> str:
    """Return a curve as points of a line in a box of 100 x 24, from its least to its greatest value."""
    low, spread = min(values), (max(values) - min(values)) or 1.0
    step = 100 / max(1, len(values) - 1)
    return " ".join(
        f"{at * step:.4g},{22 - 20 * (value - low) / spread:.4g}" for at, value in enumerate(values)
    )


def metrics_table(columns: Sequence[Entry], caption: str) -> Table:
    """Return one line per metric and one column per entry: a run's samplers beside the references."""
    metrics = in_order({name for entry in columns for name in entry.measurements})
    headers = [Header("metric"), *[Header(entry.name, entry.kind, numeric=True) for entry in columns]]
    lines = []
    for name in metrics:
        head = Cell(measure(name).label, note=_direction(name))
        lines.append(Line([head, *[_metric_cell(entry, name, best=False) for entry in columns]]))
    return Table(caption, headers, lines)


def differences_table(entry: Entry) -> Table | None:
    """Return how an entry differs from other runs, metric by metric; None where nothing was compared."""
    others = list(dict.fromkeys(against for against, _ in entry.differences))
    metrics = [name for name in COMPARED if any((other, name) in entry.differences for other in others)]
    if not metrics:
        return None
    headers = [Header("less"), *[Header(measure(name).label, hint(name), numeric=True) for name in metrics]]
    lines = [
        Line(
            [Cell(other), *(_difference_cell(entry.differences.get((other, name)), name) for name in metrics)]
        )
        for other in others
    ]
    caption = f"{entry.name} less other runs, each at its best. {PAIRED}"
    return Table(caption, headers, lines)


def thresholds_table(details: Details) -> Table:
    """Return the share of images above each threshold, beside constant and shuffled pairs."""
    columns = {
        "prediction": details.cos_image,
        "constant": details.cos_constant,
        "shuffled": details.cos_shuffled,
    }
    lines = []
    for threshold in THRESHOLDS:
        shares = [_share_above(values, threshold) for values in columns.values()]
        lines.append(Line([Cell(f"above {threshold}"), *shares]))
    headers = [Header("cosine of token means"), *[Header(name, numeric=True) for name in columns]]
    return Table(
        "Share of images whose cosine of token means is above a level: it hides errors of single tokens.",
        headers,
        lines,
    )


def _share_above(values: Array, threshold: float) -> Cell:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Cell("–", missing=True)
    share = float(np.mean(finite > threshold) * 100)
    return Cell(f"{plain(share, 1)} %", number=share)


def _metric_cell(entry: Entry, name: str, *, best: bool) -> Cell:
    row = entry.measurements.get(name)
    if row is None or row.value is None:
        return Cell("–", missing=True)
    return Cell(measure(name).text(row.value), _note(row), row.value, best)


def _difference_cell(found: Difference | None, name: str) -> Cell:
    if found is None:
        return Cell("–", missing=True)
    finer = measure(name).of_differences
    doubt = "" if found.is_sure else ", no difference shown"
    text = finer.text(found.value)
    return Cell(
        f"+{text}" if found.value > 0 else text, finer.interval(found.low, found.high) + doubt, found.value
    )


def _note(row: Measurement) -> str:
    shown = measure(row.metric)
    parts = [shown.interval(row.low, row.high)]
    if row.seed_spread is not None:
        parts.append(f"± {shown.text(row.seed_spread)} over seeds")
    return "; ".join(part for part in parts if part)


def _leader(entries: Sequence[Entry], name: str) -> Entry | None:
    """Return the trained entry with the best value; None for cost columns and metrics without a direction."""
    leader: Entry | None = None
    for entry in entries:
        value = entry.value(name)
        if not entry.trained or value is None or name in ("nfe", "images_per_s"):
            continue
        known = leader.value(name) if leader else None
        if known is None or measure(name).is_better(value, known):
            leader = entry
    return leader if measure(name).better != "neither" else None


def _direction(name: str) -> str:
    better = measure(name).better
    return "" if better == "neither" else f"{better} is better"


def hint(name: str) -> str:
    """Return what a metric means and which direction is better."""
    return " ".join(part for part in (measure(name).meaning, _direction(name)) if part)


def measurements_csv(rows: Sequence[Measurement]) -> str:
    """Return the rows of `summary.json` as CSV."""
    columns = ("run", "sampler", "data", "metric", "value", "low", "high", "seed_spread")
    return to_csv(numbers(columns, [[getattr(row, name) for name in columns] for row in rows]))


def numbers(columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> pd.DataFrame:
    """Return rows as a frame whose None is missing.

    Columns have pandas' nullable types: a whole number stays one beside a missing value.
    """
    values = zip(*rows, strict=True) if rows else ((),) * len(columns)
    return pd.DataFrame({name: pd.array(list(column)) for name, column in zip(columns, values, strict=True)})


def sample(table: pd.DataFrame, limit: int = 40) -> pd.DataFrame:
    """Return evenly spaced rows, first and last included, so that a page stays light."""
    if len(table) <= limit:
        return table
    return table.iloc[sorted({round(step * (len(table) - 1) / (limit - 1)) for step in range(limit)})]


def to_csv(table: pd.DataFrame) -> str:
    """Return a frame as CSV text: full precision, an empty field where nothing was measured."""
    return table.to_csv(index=False, lineterminator="\n")
