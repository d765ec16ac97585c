"""Joins the figures of all runs of an experiment into the rows of summary.json, and adds what compares runs.

    skill_m = (m - m_ridge) / (1 - m_ridge), m = r2 or tok_ccos    the share of the gap from ridge to perfect
Ridge's own figure on the same data counts as fixed, so the interval of a skill is that of its metric, rescaled.
Without a run named `ridge` on the same data it is None. Runs called NAME and NAME_seed_1, NAME_seed_2, ... are one
training with several seeds: seed_spread is the standard deviation over them (N - 1), None for a single seed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from flowkit.evaluation.score import MetricRow
from flowkit.seeds import without_seed

REFERENCE_RUN = "ridge"
SKILL_METRICS = ("r2", "tok_ccos")


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
    """All metrics of all runs in the order given, each skill after the metric that it belongs to."""
    scores = list(scores)
    references = {
        (s.data, metric): value
        for s in scores
        for metric in SKILL_METRICS
        if s.run == REFERENCE_RUN and (value := _value(s, metric)) is not None
    }
    rows: list[SummaryRow] = []
    for one in scores:
        for row in one.rows:
            rows.append(_line(one, row))
            if row["metric"] in SKILL_METRICS:
                rows.append(_line(one, skill_row(row, references.get((one.data, row["metric"])))))
    return _with_seed_spread(rows)


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


def skill_row(row: MetricRow, reference: float | None) -> MetricRow:
    """The row of a metric's skill from its own row and ridge's value."""

    def skill(value: float | None) -> float | None:
        if value is None or reference is None or reference >= 1:
            return None
        return (value - reference) / (1 - reference)

    return MetricRow(
        metric=f"skill_{row['metric']}",
        value=skill(row["value"]),
        low=skill(row["low"]),
        high=skill(row["high"]),
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
