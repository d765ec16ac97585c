"""The page that holds two runs against each other: one pair in full here, any other pair by compare.js.

What the script says of a pair is what this module says, word for word; a browser test holds both against each other.
A difference is the summary's where it holds one run against the other, as the run's page shows it; else it is computed
from errors and jackknife values of the same images (paired.py), else the two figures' own intervals are compared.
A difference that the numbers do not bear is "not shown".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flowkit.report.measures import KEY_METRICS, Measure, in_order, measure, plain
from flowkit.report.paired import DRAWS, Interval, jackknife_factor, jackknife_interval, r2_interval
from flowkit.report.rendering import TEMPLATES, Files, Renderer
from flowkit.report.run_data import FigureOf, ImageOf, PairedOf, RunData, SamplerData, Value
from flowkit.report.standings import HEADLINE
from flowkit.report.tables import Cell, Header, Line, Table

GROUPS = 10
"""Parts of the images that a figure was computed without, one at a time."""
SAME_SPREAD = 1e-3
"""How far the spread of an image may differ between two runs: by rounding."""
MOST_IMAGES, MOST_PICTURES = 10, 8
BESIDE = "ridge"
SKILLS = {"skill_r2": HEADLINE}
"""Shares of the gap to ridge: a difference of them is that of another metric over 1 less ridge's."""
NOTHING = Cell("–", missing=True)


@dataclass(frozen=True)
class Pair:
    """Run A with one of its samplers against run B with one of its own."""

    run_a: RunData
    a: SamplerData
    run_b: RunData
    b: SamplerData

    @cached_property
    def are_same_images(self) -> bool:
        """Whether both runs were measured on the same images, as far as is known."""
        ours, theirs = self.run_a.spread, self.run_b.spread
        return 0 < len(ours) == len(theirs) and bool(np.allclose(ours, theirs, rtol=SAME_SPREAD, atol=0))

    @cached_property
    def have_errors(self) -> bool:
        """Whether errors of the same images are kept of both."""
        return self.are_same_images and bool(self.a.errors) and bool(self.b.errors)

    @cached_property
    def differences(self) -> list[float]:
        """Error of B less that of A, image by image; empty without errors."""
        return [theirs - ours for ours, theirs in zip(self.a.errors, self.b.errors, strict=True)]

    def in_summary(self, metric: str) -> PairedOf | None:
        """The summary's difference, A less B; None unless one side is held against the other at its best there."""
        best_a, best_b = self.run_a.samplers[0].sampler, self.run_b.samplers[0].sampler
        found = self.a.less(self.run_b.run, metric) if self.b.sampler == best_b else None
        other = self.b.less(self.run_a.run, metric) if self.a.sampler == best_a else None
        return found or (other.turned if other else None)

    def difference(self, metric: str) -> float | None:
        """A metric of A less that of B, None where one was not measured."""
        ours, theirs = self.a.value(metric), self.b.value(metric)
        if ours is None or theirs is None:
            return None
        known = self.in_summary(metric)
        return known.value if known else ours.value - theirs.value

    @cached_property
    def interval_of_r2(self) -> Interval | None:
        """The interval of R2 of A less that of B."""
        if known := self.in_summary(HEADLINE):
            return Interval(known.low, known.high)
        return r2_interval(self.a.errors, self.b.errors, self.run_a.spread) if self.have_errors else None

    def interval(self, metric: str) -> Interval | None:
        """The interval of a metric's difference on the same images, None where it is not known."""
        ours, theirs = self.a.value(metric), self.b.value(metric)
        if metric == HEADLINE or ours is None or theirs is None:
            return self.interval_of_r2 if metric == HEADLINE else None
        if known := self.in_summary(metric):
            return Interval(known.low, known.high)
        if metric in SKILLS:
            return self._interval_of_skill(SKILLS[metric], ours.value - theirs.value)
        if not (self.are_same_images and len(ours.without) == len(theirs.without) == GROUPS):
            return None
        return jackknife_interval(ours.value - theirs.value, ours.without, theirs.without)

    def _interval_of_skill(self, metric: str, skill: float) -> Interval | None:
        """The interval of a difference `skill` from that of its metric: ridge's own figure counts as fixed."""
        ours, theirs, interval = self.a.value(metric), self.b.value(metric), self.interval(metric)
        if ours is None or theirs is None or interval is None or skill * (ours.value - theirs.value) <= 0:
            return None
        return interval.scaled(skill / (ours.value - theirs.value))


@dataclass(frozen=True)
class SharedImage:
    """An image that both galleries hold, and its errors in words."""

    a: ImageOf
    b: ImageOf
    words: str


@dataclass(frozen=True)
class View:
    """What the page says of a pair."""

    verdict: str
    axis: Mapping[str, str]
    smaller: str
    source: str
    count: str
    key: Table
    metrics: Table
    settings_words: str
    settings: Table
    figures: Sequence[tuple[str, FigureOf, FigureOf]]
    shared: Sequence[SharedImage]
    images: Table


def compare_page(render: Renderer, runs: Sequence[RunData]) -> Files:
    """Return `compare.html` and its script; `runs` are those that can be chosen, best first.

    Their data files are expected at `data/runs/<slug>.js`, as `run_data` makes them.
    """
    pair = default_pair(runs)
    page = render(
        "compare.html.j2",
        runs=runs,
        pair=pair,
        view=view_of(pair) if pair else None,
        draws=DRAWS,
        factor=jackknife_factor(GROUPS),
    )
    return {"compare.html": page, "compare.js": (TEMPLATES / "compare.js").read_bytes()}


def default_pair(runs: Sequence[RunData]) -> Pair | None:
    """Return the best flow against the best other trained run, else against ridge; None for fewer than two runs."""
    trained = [run for run in runs if run.kind in ("flow", "regression")]
    first = next(
        (run for run in [*trained, *runs] if run.kind == "flow"), next(iter([*trained, *runs]), None)
    )
    others = [*trained, *(run for run in runs if run.run == BESIDE)]
    others += [*(run for run in runs if run.kind == "closed form"), *runs]
    second = next((run for run in others if run is not first), None)
    return Pair(first, first.samplers[0], second, second.samplers[0]) if first and second else None


def view_of(pair: Pair) -> View:
    """Return all that the page says of a pair."""
    words, settings = _settings(pair)
    names = in_order({value.metric for value in (*pair.a.values, *pair.b.values)})
    metrics = metrics_table(pair, names)
    return View(
        verdict=verdict(pair),
        axis=axis_of(pair),
        smaller=_smaller(pair),
        source=_source(pair),
        count=_count(metrics),
        key=metrics_table(pair, [name for name in names if name in KEY_METRICS]),
        metrics=metrics,
        settings_words=words,
        settings=settings,
        figures=_figures(pair),
        shared=_shared(pair),
        images=_images_table(pair),
    )


def verdict(pair: Pair) -> str:
    """Say who is ahead in R2, and whether that is shown."""
    ours, theirs = pair.a.value(HEADLINE), pair.b.value(HEADLINE)
    if (pair.run_a.slug, pair.a.sampler) == (pair.run_b.slug, pair.b.sampler):
        return "Both sides are the same run with the same sampler."
    value = pair.difference(HEADLINE)
    if ours is None or theirs is None or value is None:
        missing = [name for name, value in ((pair.a.label, ours), (pair.b.label, theirs)) if value is None]
        return f"Who is ahead is not known: R² was not measured for {' and '.join(missing)}."
    finer = measure(HEADLINE).of_differences
    size, side = finer.text(abs(value)), "above" if value >= 0 else "below"
    interval = pair.interval_of_r2
    if interval is None:
        words = {
            True: "intervals overlap: no difference shown",
            False: "intervals apart",
            None: "no intervals",
        }
        return f"{pair.a.label} is {size} {side} {pair.b.label} in R² ({words[_overlap(ours, theirs)]})."
    if not interval.is_sure:
        return (
            f"Who is ahead is not shown: {pair.a.label} is {size} {side} {pair.b.label} in R², and the 95 % interval "
            f"of the difference, {finer.interval(interval.low, interval.high)}, holds 0."
        )
    ahead, behind, low, high = pair.a.label, pair.b.label, interval.low, interval.high
    if value < 0:
        ahead, behind, low, high = behind, ahead, -high, -low
    return f"{ahead} is ahead of {behind} in R² by {size} (95 % interval {finer.interval(low, high)}, image by image)."


def axis_of(pair: Pair) -> Mapping[str, str]:
    """Return where the interval of the R2 difference lies, in percent of an axis with 0 in its middle; or nothing."""
    value, interval = pair.difference(HEADLINE), pair.interval_of_r2
    if value is None or interval is None:
        return {}
    reach = 1.2 * max(abs(value), abs(interval.low), abs(interval.high), 1e-9)
    left, middle, right = (f"{50 + 50 * at / reach:.2f}" for at in (interval.low, value, interval.high))
    return {"left": left, "middle": middle, "width": f"{float(right) - float(left):.2f}"}


def _smaller(pair: Pair) -> str:
    """Say on how many images the error of A is the smaller one."""
    if not pair.have_errors:
        return "Errors of the same images are not known of both: they are kept for a run’s best samplers."
    count = sum(difference > 0 for difference in pair.differences)
    images = len(pair.differences)
    return f"The error of A is the smaller one on {count:,} of {images:,} images ({plain(100 * count / images, 1)} %)."


def _source(pair: Pair) -> str:
    """Say where the interval of R2 comes from."""
    if pair.difference(HEADLINE) is None or pair.interval_of_r2 is None:
        return ""
    if pair.in_summary(HEADLINE):
        return "Here it is that of the summary, as the page of the run has it."
    return (
        f"The summary does not hold these two against each other: for R² it is from {DRAWS:,} draws of the images, "
        "the same draws for any such pair."
    )


def metrics_table(pair: Pair, names: Sequence[str]) -> Table:
    """Return A, B and their difference, metric by metric, and who is ahead."""
    headers = [
        Header("metric"),
        *(Header(f"{side}: {one.label}", numeric=True) for side, one in (("A", pair.a), ("B", pair.b))),
        *(
            Header("A − B", "Small print: 95 % interval of the difference on the same images.", numeric=True),
            Header("ahead"),
        ),
    ]
    caption = (
        "Small print: 95 % intervals. “Not shown”: the interval of the difference on the same images holds 0, or, "
        "where there is none, the two intervals overlap."
    )
    return Table(caption, headers, [_metric_line(pair, name) for name in names])


def _count(metrics: Table) -> str:
    """Say in how many metrics each is ahead, and what is with all others."""
    last = [line.cells[-1] for line in metrics.lines]
    found = ["not measured" if cell.missing else cell.text for cell in last]
    ahead = " and ".join(f"{side} is ahead in {found.count(f'{side} is ahead'):,}" for side in "AB")
    others = {"equal": "equal", "–": "without a direction", "not measured": "not measured in both"}
    rest = [f"{found.count(text):,} {words}" for text, words in others.items() if text in found]
    more = f" The rest: {', '.join(rest)}." if rest else ""
    doubt = f"in {found.count('not shown'):,} it is not shown who is"
    return f"Of {len(found):,} metrics, {ahead}; {doubt}.{more}"


def _metric_line(pair: Pair, name: str) -> Line:
    shown, ours, theirs = measure(name), pair.a.value(name), pair.b.value(name)
    head = Cell(shown.label, "" if shown.better == "neither" else f"{shown.better} is better")
    cells = [head, _value_cell(shown, ours), _value_cell(shown, theirs)]
    value, interval = pair.difference(name), pair.interval(name)
    if ours is None or theirs is None or value is None:
        return Line([*cells, NOTHING, NOTHING])
    finer = shown.of_differences if shown.decimals else shown
    text = ("+" if value > 0 else "") + finer.text(value)
    note = finer.interval(interval.low, interval.high) if interval else ""
    return Line([*cells, Cell(text, note, value), _ahead(shown, ours, theirs, interval)])


def _value_cell(shown: Measure, value: Value | None) -> Cell:
    return (
        Cell(shown.text(value.value), shown.interval(value.low, value.high), value.value)
        if value
        else NOTHING
    )


def _ahead(shown: Measure, ours: Value, theirs: Value, interval: Interval | None) -> Cell:
    """Say who is ahead in a metric, by its direction, or that it is not shown."""
    if shown.better == "neither":
        return Cell("–")
    if shown.is_better(ours.value, theirs.value):
        side = "A"
    elif shown.is_better(theirs.value, ours.value):
        side = "B"
    else:
        return Cell("equal")
    if interval:
        sure = "image by image"
        return (
            Cell(f"{side} is ahead", sure)
            if interval.is_sure
            else Cell("not shown", f"{side} ahead, 0 is possible")
        )
    overlapping = _overlap(ours, theirs)
    if overlapping:
        return Cell("not shown", f"{side} ahead, intervals overlap")
    return Cell(f"{side} is ahead", "intervals apart" if overlapping is False else "no intervals")


def _overlap(ours: Value, theirs: Value) -> bool | None:
    """Whether two intervals overlap, None when one is missing."""
    if ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
        return None
    return ours.low <= theirs.high and theirs.low <= ours.high


def _settings(pair: Pair) -> tuple[str, Table]:
    """Return how the settings of both runs differ, in words and line by line."""
    ours, theirs = dict(pair.run_a.settings), dict(pair.run_b.settings)
    caption = "Settings that differ, of training and of sampling."
    headers = [Header("setting"), Header(f"A: {pair.run_a.run}"), Header(f"B: {pair.run_b.run}")]
    without = [run.run for run, known in ((pair.run_a, ours), (pair.run_b, theirs)) if not known]
    if without:
        words = f"There is no record of settings of {' and '.join(dict.fromkeys(without))}."
        return words, Table(caption, headers, [])
    keys = sorted(ours.keys() | theirs.keys())
    lines = [
        Line(
            [Cell(key), *(Cell(known[key]) if key in known else Cell("not set") for known in (ours, theirs))]
        )
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]
    return f"{len(lines):,} of {len(keys):,} settings differ.", Table(caption, headers, lines)


def _figures(pair: Pair) -> list[tuple[str, FigureOf, FigureOf]]:
    """Return the figures that both have: of the runs where these differ, and of the samplers."""
    sources = [(pair.a.figures, pair.b.figures)]
    if pair.run_a.slug != pair.run_b.slug:
        sources.append((pair.run_a.figures, pair.run_b.figures))
    return [
        (ours.title, ours, theirs)
        for mine, others in sources
        for ours in mine
        for theirs in others
        if ours.name == theirs.name
    ]


def _shared(pair: Pair) -> list[SharedImage]:
    """Return the images of both galleries whose errors differ most."""
    if not pair.have_errors:
        return []
    others = {image.index: image for image in pair.b.images}
    found = [(image, others[image.index]) for image in pair.a.images if image.index in others]
    found.sort(key=lambda both: (-abs(pair.differences[both[0].index]), both[0].index))
    return [SharedImage(ours, theirs, _words(pair, ours.index)) for ours, theirs in found[:MOST_PICTURES]]


def _words(pair: Pair, index: int) -> str:
    ours, theirs = plain(pair.a.errors[index]), plain(pair.b.errors[index])
    return f"error {ours} of A, {theirs} of B; smaller: {_by(pair, index)}"


def _by(pair: Pair, index: int) -> str:
    """Say whose error of an image is smaller."""
    difference = pair.differences[index]
    return "equal" if difference == 0 else f"{'A' if difference > 0 else 'B'} by {plain(abs(difference))}"


def _images_table(pair: Pair) -> Table:
    """Return the images whose errors differ most, of all that were evaluated."""
    headers = [
        Header("image"),
        Header("error of A", numeric=True),
        Header("error of B", numeric=True),
        Header("smaller"),
    ]
    caption = "The images whose errors differ most, of all that were evaluated. 1 is as bad as the constant prediction."
    if not pair.have_errors:
        return Table(caption, headers, [])
    captions = {image.index: image.caption for image in (*pair.b.images, *pair.a.images)}
    order = sorted(range(len(pair.differences)), key=lambda index: (-abs(pair.differences[index]), index))
    lines = [
        Line(
            [
                Cell(f"image {index}", captions.get(index, "")),
                *(Cell(plain(one.errors[index]), number=one.errors[index]) for one in (pair.a, pair.b)),
                Cell(_by(pair, index)),
            ]
        )
        for index in order[:MOST_IMAGES]
    ]
    return Table(caption, headers, lines)
