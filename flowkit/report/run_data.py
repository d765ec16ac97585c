"""One run as data for the page that compares two runs: figures with their intervals, errors image by image, pictures.

The stage that makes a run's page writes it (`run_data`), the stage that puts the report together reads it again
(`read_run_data`), and compare.js loads it for the pair that a reader chooses. Errors of every image are kept for a
run's best sampler and at most two others, so that a file stays far below a megabyte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from flowkit.errors import ReportError
from flowkit.report.details import Array, Details
from flowkit.report.gallery import Item, Shown
from flowkit.report.measures import KEY_METRICS, MEASURES, in_order, measure
from flowkit.report.scripts import data_script, read_data_script, shortened
from flowkit.report.standings import NO_SAMPLERS, Entry

MOST_SAMPLERS = 3
MOST_NUMBERS = 100_000
"""Errors and spreads in one file: about eight bytes each."""
DIGITS, FINE_DIGITS = 5, 8


@dataclass(frozen=True)
class MeasureOf:
    """How a metric is shown; `order` is its place in the tables of the report, `is_key` whether it is a headline."""

    metric: str
    order: int
    label: str
    better: str
    decimals: int
    is_key: bool


@dataclass(frozen=True)
class Value:
    """One metric of one sampler; `without` is its value without each tenth of the images, empty where not measured."""

    metric: str
    value: float
    low: float | None
    high: float | None
    without: Sequence[float] = ()


@dataclass(frozen=True)
class PairedOf:
    """A metric of a sampler less that of another run at its best, on the same images, as the summary has it."""

    against: str
    metric: str
    value: float
    low: float
    high: float

    @property
    def turned(self) -> PairedOf:
        """The same with the two sides changed; `against` stays the run that the summary names."""
        return PairedOf(self.against, self.metric, -self.value, -self.high, -self.low)


@dataclass(frozen=True)
class FigureOf:
    """A figure that a run's page shows."""

    name: str
    title: str
    alt: str
    image: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageOf:
    """One image of a run's gallery with the map of the run's errors."""

    index: int
    caption: str
    picture: Shown | None
    error_map: Shown


@dataclass(frozen=True)
class SamplerData:
    """What is known of a run with one sampler; `errors` and `images` are empty where they are not kept."""

    sampler: str
    label: str
    values: Sequence[Value]
    paired: Sequence[PairedOf]
    figures: Sequence[FigureOf]
    errors: Sequence[float]
    images: Sequence[ImageOf]

    def value(self, metric: str) -> Value | None:
        """Return a metric, None where it was not measured."""
        return next((one for one in self.values if one.metric == metric), None)

    def less(self, run: str, metric: str) -> PairedOf | None:
        """Return the summary's difference to the best of another run, None where it has none."""
        return next((one for one in self.paired if (one.against, one.metric) == (run, metric)), None)


@dataclass(frozen=True)
class RunData:
    """One run; its samplers with the best first, `spread` of the images that its errors are of."""

    run: str
    slug: str
    kind: str
    question: str
    settings: Sequence[tuple[str, str]]
    figures: Sequence[FigureOf]
    measures: Sequence[MeasureOf]
    spread: Sequence[float]
    samplers: Sequence[SamplerData]


def run_data(
    run: str,
    slug: str,
    entries: Sequence[Entry],
    details: Mapping[str, Details],
    *,
    settings: Mapping[str, str],
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    items: Sequence[Item],
    question: str = "",
) -> bytes:
    """Return the file `data/runs/<slug>.js` of one run.

    `entries` are the run's own on one data set, best first; `details` and `figures` go by sampler, and figures under
    an empty name are those of the run itself. `items` are gallery images of the best entry. Raises `ReportError`
    without entries.
    """
    if not entries:
        raise ReportError(f"run {run!r} was not evaluated, it has no data to compare")
    kept: list[Details | None] = [_by_sampler(entry, details) for entry in entries]
    drawn = {name: shown for name, shown in figures.items() if name}
    spread = _spread(kept[0])
    counts = max(0, min(MOST_SAMPLERS, MOST_NUMBERS // max(1, len(spread)) - 1))
    samplers = [
        SamplerData(
            entry.sampler,
            entry.name,
            _values(entry, known if _is_of(known, spread) else None),
            _paired(entry),
            _figures(_by_sampler(entry, drawn) or []),
            _errors(known) if place < counts and _is_of(known, spread) else [],
            [ImageOf(one.index, one.caption, one.picture, one.error_map) for one in items if place == 0],
        )
        for place, (entry, known) in enumerate(zip(entries, kept, strict=True))
    ]
    own = RunData(
        run,
        slug,
        entries[0].kind,
        question,
        sorted(settings.items()),
        _figures(figures.get("", [])),
        _measures({value.metric for one in samplers for value in one.values}),
        [shortened(value, DIGITS) for value in spread] if any(one.errors for one in samplers) else [],
        samplers,
    )
    return data_script(asdict(own))


def read_run_data(content: bytes) -> RunData:
    """Return what `run_data` wrote; raises `ReportError` for anything else."""
    found = read_data_script(content)
    try:
        return _FORM.validate_python(found)
    except ValidationError as error:
        what = str(error).splitlines()[0]
        raise ReportError(f"data of a run cannot be read ({what}), make the run's page again") from None


_FORM = TypeAdapter(RunData)


def _by_sampler(entry: Entry, known: Mapping[str, Any]) -> Any:
    """Return what is known of an entry; a closed form may go by another name, it has only one."""
    if entry.sampler not in known and entry.sampler in NO_SAMPLERS and len(known) == 1:
        return next(iter(known.values()))
    return known.get(entry.sampler)


def _spread(details: Details | None) -> Array:
    """Return the spread of each image; without a record of it, all weigh the same."""
    if details is None:
        return np.array([])
    return np.ones_like(details.error_image) if details.spread_image is None else details.spread_image


def _is_of(details: Details | None, spread: Array) -> bool:
    """Whether a sampler was measured on the images of `spread`."""
    mine = _spread(details)
    return mine.size > 0 and mine.shape == spread.shape and bool(np.allclose(mine, spread, rtol=1e-4))


def _errors(details: Details | None) -> list[float]:
    if details is None or not np.isfinite(details.error_image).all():
        return []
    return [shortened(float(value), DIGITS) for value in details.error_image]


def _measures(metrics: set[str]) -> list[MeasureOf]:
    order = {name: place for place, name in enumerate(MEASURES)}
    return [
        MeasureOf(name, order.get(name, len(order)), one.label, one.better, one.decimals, name in KEY_METRICS)
        for name in in_order(metrics)
        for one in [measure(name)]
    ]


def _values(entry: Entry, details: Details | None) -> list[Value]:
    found = []
    for name in in_order(set(entry.measurements)):
        row = entry.measurements[name]
        if row.value is None:
            continue
        without = details.without.get(name, np.array([])) if details else np.array([])
        is_measured = without.size > 1 and bool(np.isfinite(without).all())
        each = [shortened(float(value), FINE_DIGITS) for value in without] if is_measured else []
        found.append(Value(name, row.value, row.low, row.high, each))
    return found


def _paired(entry: Entry) -> list[PairedOf]:
    """Return the differences of the summary that have an interval."""
    found = []
    for one in entry.differences.values():
        if one.low is not None and one.high is not None:
            numbers = [shortened(number, FINE_DIGITS) for number in (one.value, one.low, one.high)]
            found.append(PairedOf(one.against, one.metric, *numbers))
    return found


def _figures(shown: Iterable[Mapping[str, Any]]) -> list[FigureOf]:
    return [
        FigureOf(plot.name, plot.title, plot.alt, one["image"], plot.width, plot.height)
        for one in shown
        for plot in [one["plot"]]
    ]
