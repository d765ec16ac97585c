"""Joins the figures of all runs of an experiment into the rows of summary.json, and adds what compares runs.

    skill_r2 = (r2 - r2_ridge) / (1 - r2_ridge)     the share of the gap from ridge to perfect that is closed
Ridge's own R2 on the same data counts as fixed, so the interval of skill_r2 is that of r2, rescaled.
Without a run named `ridge` on the same data it is None. Runs called NAME and NAME_seed_1, NAME_seed_2, ... are one
training with several seeds: seed_spread is the standard deviation over them (N - 1), None for a single seed.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from flowkit.evaluation.score import MetricRow

REFERENCE_RUN = "ridge"
SEED_SUFFIX = re.compile(r"_seed_\d+$")


@dataclass(frozen=True)
class RunScore:
    """The metrics of one run with one sampler on one data set; runs without a sampler say "-"."""

    run: str
    sampler: str
    data: str
    rows: Sequence[MetricRow]


class SummaryRow(TypedDict):
    """One line of summary.json; None where a figure is not finite or not known."""

    run: str
    sampler: str
    data: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    seed_spread: float | None


def summary_rows(scores: Iterable[RunScore]) -> list[SummaryRow]:
    """All metrics of all runs in the order given, with skill_r2 after r2."""
    scores = list(scores)
    references = {
        s.data: r2 for s in scores if s.run == REFERENCE_RUN and (r2 := _value(s, "r2")) is not None
    }
    rows: list[SummaryRow] = []
    for one in scores:
        for row in one.rows:
            rows.append(_line(one, row))
            if row["metric"] == "r2":
                rows.append(_line(one, skill_row(row, references.get(one.data))))
    return _with_seed_spread(rows)


def without_seed(run: str) -> str:
    """Return what the runs of several seeds of one training have in common."""
    return SEED_SUFFIX.sub("", run)


def _with_seed_spread(rows: list[SummaryRow]) -> list[SummaryRow]:
    values: dict[tuple[str, ...], list[float | None]] = {}
    for row in rows:
        values.setdefault(_of_all_seeds(row), []).append(row["value"])
    for row in rows:
        known_values = [value for value in values[_of_all_seeds(row)] if value is not None]
        if 1 < len(known_values) == len(values[_of_all_seeds(row)]):
            row["seed_spread"] = float(np.std(known_values, ddof=1))
    return rows


def _of_all_seeds(row: SummaryRow) -> tuple[str, ...]:
    return without_seed(row["run"]), row["sampler"], row["data"], row["metric"]


def skill_row(r2: MetricRow, reference: float | None) -> MetricRow:
    """The row of skill_r2 from the row of r2 and ridge's R2."""

    def skill(value: float | None) -> float | None:
        if value is None or reference is None or reference >= 1:
            return None
        return (value - reference) / (1 - reference)

    return MetricRow(
        metric="skill_r2", value=skill(r2["value"]), low=skill(r2["low"]), high=skill(r2["high"])
    )


def known(value: float | None) -> float | None:
    """The value, or None where it is missing or not finite."""
    return None if value is None or not np.isfinite(value) else float(value)


def _value(score: RunScore, metric: str) -> float | None:
    return next((known(row["value"]) for row in score.rows if row["metric"] == metric), None)


def _line(score: RunScore, row: MetricRow) -> SummaryRow:
    return SummaryRow(
        run=score.run,
        sampler=score.sampler,
        data=score.data,
        metric=row["metric"],
        value=known(row["value"]),
        low=known(row["low"]),
        high=known(row["high"]),
        seed_spread=None,
    )
