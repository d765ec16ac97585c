"""Whether the figures of an experiment bear its goals: "shown", "not shown", or "not measured".

A goal is one or more conditions; each compares one number with a demand, and a reader can repeat the
comparison:
    the number is a figure's value or an end of its interval, or its ratio to or difference from another's, or the value
    or an end of the interval of a paired difference.
A figure named without a sampler stands for all samplers of its run, and a run for all its seeds (NAME_seed_1, ...):
the worst case is the number that counts. Where figure and reference are of the same run, each seed is compared with
itself. A goal is shown when every condition is met, not shown when a measured number fails one, and not measured when a
figure that it needs is missing. Its row has the number of the first condition that fails, else of the first that was
not measured, else of the first. Of several goals that each bear a claim, the first that is shown stands for all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypedDict

from flowkit.evaluation.summary import SummaryRow
from flowkit.seeds import without_seed

Part = Literal["value", "low", "high"]
Verdict = Literal["shown", "not shown", "not measured"]
Against = Literal["ratio", "difference", "gap"]
"""How figure f and reference r become one number: f / r, f - r, or the share (f - r) / (1 - r) of what r leaves."""


@dataclass(frozen=True)
class Figure:
    """Which number of summary.json is meant; an interval end is the cautious choice for a single figure."""

    run: str
    metric: str
    sampler: str | None = None  # None: every sampler of the run
    part: Part = "value"
    less: str | None = None
    """The run whose figure is taken off, image by image: the number is in `differences` and not in the rows."""


@dataclass(frozen=True)
class Condition:
    """`figure`, alone or against `reference`, is at least, at most or above `demand`."""

    figure: Figure
    relation: Literal["at least", "at most", "above"]
    demand: float
    reference: Figure | None = None
    against: Against = "difference"


@dataclass(frozen=True)
class Goal:
    """A claim in words and the conditions under which the figures bear it."""

    goal: str
    conditions: Sequence[Condition]


@dataclass(frozen=True)
class AnyOf:
    """The same claim of several samplers, the likeliest first: one that bears it is enough."""

    goals: Sequence[Goal]


class DifferenceRow(TypedDict):
    """One entry of `differences` in summary.json: a metric of a run less that of another, image by image."""

    run: str
    sampler: str
    data: str
    against: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


class VerdictRow(TypedDict):
    """One line of verdicts.json."""

    goal: str
    verdict: Verdict
    value: float | None
    demand: float


@dataclass(frozen=True)
class _Figures:
    """The figures of one data set that conditions may name."""

    rows: Sequence[SummaryRow]
    differences: Sequence[DifferenceRow]


def verdicts(
    rows: Sequence[SummaryRow],
    goals: Iterable[Goal | AnyOf],
    *,
    data: str,
    differences: Sequence[DifferenceRow] = (),
) -> list[VerdictRow]:
    """Judge each goal by the rows of one data set, and by the paired differences between its runs."""
    judged = _Figures(
        [row for row in rows if row["data"] == data], [row for row in differences if row["data"] == data]
    )
    return [_verdict_of_any(judged, goal.goals if isinstance(goal, AnyOf) else [goal]) for goal in goals]


def _verdict_of_any(rows: _Figures, goals: Sequence[Goal]) -> VerdictRow:
    found = [_verdict(rows, goal) for goal in goals]
    return next((verdict for verdict in found if verdict["verdict"] == "shown"), found[0])


def _verdict(rows: _Figures, goal: Goal) -> VerdictRow:
    if not goal.conditions:
        raise ValueError(f"goal {goal.goal!r} has no condition")
    measured = [(condition, _worst(_numbers(rows, condition), condition)) for condition in goal.conditions]
    failed = [(one, number) for one, number in measured if number is not None and not _is_met(one, number)]
    missing = [(one, number) for one, number in measured if number is None]
    condition, value = (failed or missing or measured)[0]
    verdict: Verdict = "not shown" if failed else "not measured" if missing else "shown"
    return VerdictRow(goal=goal.goal, verdict=verdict, value=value, demand=condition.demand)


def _numbers(rows: _Figures, condition: Condition) -> list[float | None]:
    """The number of the condition for every pair of samplers that it names."""
    figures = _find(rows, condition.figure)
    if condition.reference is None:
        return [value for _, value in figures]
    is_same_run = condition.figure.run == condition.reference.run
    return [
        _compared(value, reference, condition.against)
        for (run, value), (other, reference) in product(figures, _find(rows, condition.reference))
        if run == other or not is_same_run
    ]


def _compared(value: float | None, reference: float | None, against: Against) -> float | None:
    if value is None or reference is None:
        return None
    if against == "difference":
        return value - reference
    whole = reference if against == "ratio" else 1 - reference
    part = value if against == "ratio" else value - reference
    return part / whole if whole > 0 else None


def _worst(numbers: Sequence[float | None], condition: Condition) -> float | None:
    """The number hardest on the claim; None when one of them, or all, are missing."""
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return None
    return max(known) if condition.relation == "at most" else min(known)


def _is_met(condition: Condition, number: float) -> bool:
    if condition.relation == "above":
        return number > condition.demand
    return number >= condition.demand if condition.relation == "at least" else number <= condition.demand


def _find(figures: _Figures, figure: Figure) -> list[tuple[str, float | None]]:
    """The runs that a figure stands for, each with its number."""
    rows: Iterable[SummaryRow | DifferenceRow] = figures.rows
    if figure.less is not None:
        rows = [row for row in figures.differences if without_seed(row["against"]) == figure.less]
    return [
        (row["run"], row[figure.part])
        for row in rows
        if figure.run in (row["run"], without_seed(row["run"]))
        and row["metric"] == figure.metric
        and figure.sampler in (None, row["sampler"])
    ]
