"""Whether the figures of an experiment bear its goals: every goal "holds" or is "not shown", nothing between.

A goal is one or more conditions; each compares one number with a demand, and a reader can repeat the
comparison:
    the number is a figure's value or an end of its interval, or its ratio to or difference from another's.
A figure named without a sampler stands for all samplers of its run, and a run for all its seeds (NAME_seed_1, ...):
the worst case is the number that counts.
A figure that is missing or None bears nothing. The row of a goal shows the first condition that fails, else
the first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypedDict

from flowkit.evaluation.summary import SummaryRow, without_seed

Part = Literal["value", "low", "high"]


@dataclass(frozen=True)
class Figure:
    """Which number of summary.json is meant; an interval end is the cautious choice for a single figure."""

    run: str
    metric: str
    sampler: str | None = None  # None: every sampler of the run
    part: Part = "value"


@dataclass(frozen=True)
class Condition:
    """`figure`, alone or against `reference`, is at least or at most `demand`."""

    figure: Figure
    relation: Literal["at least", "at most"]
    demand: float
    reference: Figure | None = None
    against: Literal["ratio", "difference"] = "difference"  # how figure and reference become one number


@dataclass(frozen=True)
class Goal:
    """A claim in words and the conditions under which the figures bear it."""

    goal: str
    conditions: Sequence[Condition]


class VerdictRow(TypedDict):
    """One line of verdicts.json."""

    goal: str
    verdict: Literal["holds", "not shown"]
    value: float | None
    demand: float


def verdicts(rows: Sequence[SummaryRow], goals: Iterable[Goal], *, data: str) -> list[VerdictRow]:
    """Judge each goal by the rows of one data set."""
    judged = [row for row in rows if row["data"] == data]
    return [_verdict(judged, goal) for goal in goals]


def flow_goals(*, flow: str, regression: str, few: str, many: str, direct: str | None = None) -> list[Goal]:
    """What a flow run must show beside a regression run of equal budget and the baselines.

    `few` is the sampler with the fewest evaluations, `many` the reference sampler, `direct` the regression's.
    """

    def of(metric: str, part: Part = "value") -> Figure:
        return Figure(flow, metric, few, part)

    ridge_ot_r2, ridge_ot_distance = Figure("ridge_ot", "r2", part="high"), Figure("ridge_ot", "fd_img")
    return [
        Goal(
            f"{flow} {few} reaches 99 % of the R2 of {regression}",
            [Condition(of("r2"), "at least", 0.99, Figure(regression, "r2", direct), "ratio")],
        ),
        Goal(
            f"{flow} {few} is no worse than {many} of the same network in R2 and image Frechet distance",
            [
                Condition(of("r2"), "at least", 0.0, Figure(flow, "r2", many)),
                Condition(of("fd_img"), "at most", 0.0, Figure(flow, "fd_img", many)),
            ],
        ),
        Goal(
            f"{flow} {few} beats ridge_ot in R2 (interval ends) at no larger image Frechet distance",
            [
                Condition(of("r2", "low"), "at least", 0.0, ridge_ot_r2),
                Condition(of("fd_img"), "at most", 0.0, ridge_ot_distance),
            ],
        ),
        Goal(
            f"{flow} {few} finds its own image more often than ridge does (interval ends)",
            [Condition(of("self_r1", "low"), "at least", 0.0, Figure("ridge", "self_r1", part="high"))],
        ),
    ]


def _verdict(rows: Sequence[SummaryRow], goal: Goal) -> VerdictRow:
    if not goal.conditions:
        raise ValueError(f"goal {goal.goal!r} has no condition")
    measured = [(condition, _worst(_numbers(rows, condition), condition)) for condition in goal.conditions]
    failed = [pair for pair in measured if not _is_met(*pair)]
    condition, value = (failed or measured)[0]
    return VerdictRow(
        goal=goal.goal, verdict="not shown" if failed else "holds", value=value, demand=condition.demand
    )


def _numbers(rows: Sequence[SummaryRow], condition: Condition) -> list[float | None]:
    """The number of the condition for every pair of samplers that it names."""
    values = _find(rows, condition.figure)
    if condition.reference is None:
        return values
    pairs = product(values, _find(rows, condition.reference))
    return [_compared(value, reference, condition.against) for value, reference in pairs]


def _compared(value: float | None, reference: float | None, against: str) -> float | None:
    if value is None or reference is None:
        return None
    if against == "difference":
        return value - reference
    return value / reference if reference != 0 else None


def _worst(numbers: Sequence[float | None], condition: Condition) -> float | None:
    """The number hardest on the claim; None when one of them, or all, are missing."""
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return None
    return min(known) if condition.relation == "at least" else max(known)


def _is_met(condition: Condition, number: float | None) -> bool:
    if number is None:
        return False
    return number >= condition.demand if condition.relation == "at least" else number <= condition.demand


def _find(rows: Sequence[SummaryRow], figure: Figure) -> list[float | None]:
    return [
        row[figure.part]
        for row in rows
        if figure.run in (row["run"], without_seed(row["run"]))
        and row["metric"] == figure.metric
        and figure.sampler in (None, row["sampler"])
    ]
