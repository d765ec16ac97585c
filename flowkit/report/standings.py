"""Who stands where: one entry per run and sampler, the best of each kind, the opening sentences.

A run is a closed form (constant, nearest, ridge ...), the ceiling (`true` features), a regression, or a
flow. The headline is R2 on held-out images; closed forms and the ceiling are never called the best run. Two
entries are compared image by image where the summary did so; else their order is not shown if their bootstrap
intervals overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flowkit.paths import CLOSED_FORM
from flowkit.report.data import Difference, Measurement, Results
from flowkit.report.measures import measure, plain
from flowkit.sections import BASELINES, CEILINGS
from flowkit.seeds import BY_VIEW, without_seed

Kind = Literal["flow", "regression", "closed form", "ceiling"]
HEADLINE = "r2"
CEILING_RUNS = ("true", *CEILINGS)
CLOSED_FORMS = tuple(name for name in BASELINES if name not in CEILING_RUNS)
NO_SAMPLERS = frozenset({"", "-", CLOSED_FORM})
REFERENCES = ("constant", "ridge", "regression")


@dataclass(frozen=True, eq=False)
class Entry:
    """All measurements of one run with one sampler on one data set."""

    run: str
    sampler: str
    data: str
    kind: Kind
    measurements: Mapping[str, Measurement]
    differences: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    """By the run that it is held against and the metric."""

    @property
    def name(self) -> str:
        """Run and sampler, as a reader should see them."""
        return label(self.run, self.sampler)

    @property
    def sampler_name(self) -> str:
        """The sampler, or a dash for a closed form."""
        return "–" if self.sampler in NO_SAMPLERS else self.sampler

    @property
    def trained(self) -> bool:
        """Whether a network was trained for it."""
        return self.kind in ("flow", "regression")

    def value(self, metric: str) -> float | None:
        """Return the value of a metric, None where it was not measured."""
        found = self.measurements.get(metric)
        return found.value if found else None

    @property
    def headline(self) -> float:
        """R2, with a missing one below all others."""
        value = self.value(HEADLINE)
        return float("-inf") if value is None else value


@dataclass(frozen=True)
class Comparison:
    """The best run against one reference: what is printed and whether the intervals are apart."""

    against: str
    sentence: str
    apart: bool


def label(run: str, sampler: str) -> str:
    """Return what to call a run with a sampler; a closed form has no sampler worth naming."""
    return run if sampler in NO_SAMPLERS else f"{run} · {sampler}"


def entries(results: Results) -> list[Entry]:
    """Return one entry per (run, sampler, data set), best R2 first within a data set."""
    grouped: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for row in results.measurements:
        grouped.setdefault((row.data, row.run, row.sampler), {})[row.metric] = row
    differences: dict[tuple[str, str, str], dict[tuple[str, str], Difference]] = {}
    for one in results.differences:
        differences.setdefault((one.data, one.run, one.sampler), {})[one.against, one.metric] = one
    samplers: dict[str, set[str]] = {}
    for _, run, sampler in grouped:
        samplers.setdefault(run, set()).add(sampler)
    found = [
        Entry(*(run, sampler, data, kind_of(run, samplers[run]), values), differences.get(place, {}))
        for place, values in grouped.items()
        for data, run, sampler in [place]
    ]
    data_order = list(dict.fromkeys(row.data for row in results.measurements))
    return sorted(
        found, key=lambda entry: (data_order.index(entry.data), -entry.headline, entry.run, entry.sampler)
    )


def kind_of(run: str, samplers: Iterable[str]) -> Kind:
    """Return what a run is, from its name and its samplers.

    A closed form has no sampler, a regression only `direct-<steps>`.
    """
    if run in CEILING_RUNS:
        return "ceiling"
    samplers = set(samplers)
    if run in CLOSED_FORMS or samplers <= NO_SAMPLERS:
        return "closed form"
    if run == "regression" or all(sampler.startswith("direct") for sampler in samplers):
        return "regression"
    return "flow"


def best(candidates: Iterable[Entry], *kinds: Kind) -> Entry | None:
    """Return the entry of the given kinds with the highest R2, None when there is none with a finite one."""
    ranked = [entry for entry in candidates if entry.kind in kinds and entry.value(HEADLINE) is not None]
    return max(ranked, key=lambda entry: entry.headline, default=None)


def best_per_run(candidates: Sequence[Entry]) -> list[Entry]:
    """Return each run's best sampler, best run first."""
    found: dict[str, Entry] = {}
    for entry in sorted(candidates, key=lambda entry: -entry.headline):
        found.setdefault(entry.run, entry)
    return list(found.values())


def overlap(one: Entry, other: Entry) -> bool | None:
    """Whether the R2 intervals of two entries overlap; None when one has no interval."""
    first, second = one.measurements.get(HEADLINE), other.measurements.get(HEADLINE)
    if first is None or second is None:
        return None
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    return first.low <= second.high and second.low <= first.high


def told_apart(one: Entry, other: Entry) -> bool:
    """Whether it is shown which of two entries has the higher R2: image by image, or else by intervals apart."""
    paired = one.differences.get((other.run, HEADLINE)) or other.differences.get((one.run, HEADLINE))
    return paired.is_sure if paired else overlap(one, other) is False


def compare(entry: Entry, reference: Entry) -> Comparison | None:
    """Say how far an entry is above or below a reference in R2; None when one of them was not measured."""
    ours, theirs = entry.value(HEADLINE), reference.value(HEADLINE)
    if ours is None or theirs is None:
        return None
    side = "above" if ours >= theirs else "below"
    if paired := entry.differences.get((reference.run, HEADLINE)):
        doubt = "" if paired.is_sure else ": no difference shown"
        finer = measure(HEADLINE).of_differences
        between = finer.interval(paired.low, paired.high)
        sentence = f"{finer.text(abs(paired.value))} {side} ({between}, image by image{doubt})"
        return Comparison(reference.name, sentence, paired.is_sure)
    overlapping = overlap(entry, reference)
    words = {True: "intervals overlap: no difference shown", False: "intervals apart", None: "no intervals"}
    sentence = f"{plain(abs(ours - theirs))} {side} ({words[overlapping]})"
    return Comparison(reference.name, sentence, overlapping is False)


def comparisons(entry: Entry, candidates: Sequence[Entry]) -> list[Comparison]:
    """Compare an entry with constant, ridge, regression and its namesake by view, as far as they are others."""
    leading = {other.run: other for other in reversed(best_per_run(candidates))}
    names = (*REFERENCES, without_seed(entry.run) + BY_VIEW)
    found = [compare(entry, leading[name]) for name in names if name in leading and name != entry.run]
    return [comparison for comparison in found if comparison]
