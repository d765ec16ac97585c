"""Which goals an experiment is judged by: what run `flow` must show beside the baselines and beside itself.

The flow is judged by its best sampler of few evaluations, best by the R2 of its worst training seed; a run stands for
all its seeds, and each must bear the goal. Whether a goal was measured is not decided here: one whose figures are
missing is "not measured". Goals that need a run or a demand that the experiment does not have are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowkit.evaluation.summary import SummaryRow, without_seed
from flowkit.evaluation.verdicts import Condition, Figure, Goal, Part

FLOW, REGRESSION, EARLIER = "flow", "regression", "earlier_recipe"
REFERENCE = "heun-50"
TRANSPORTS = ("ridge_ot", "ridge_ot_flat")


def experiment_goals(rows: Sequence[SummaryRow], demands: Mapping[str, Any]) -> list[Goal]:
    """Return the goals that the runs in `rows` can be judged by; `demands` are the values of section `goals`."""
    few = _best_sampler(rows, FLOW, most_evaluations=demands["few_evaluations"])
    if few is None:
        return []
    return [
        *_beside_baselines(few, rows, demands),
        *_beside_itself(few, demands),
        *_beside_runs(few, rows, demands),
    ]


def _beside_baselines(few: str, rows: Sequence[SummaryRow], demands: Mapping[str, Any]) -> Iterator[Goal]:
    def of(metric: str, part: Part = "value") -> Figure:
        return Figure(FLOW, metric, few, part)

    gap, share = demands["ridge_gap_closed"], demands["text_retrieval"]
    yield Goal(
        f"{FLOW} {few} closes {_percent(gap)} of the R2 gap between ridge and perfect",
        [Condition(of("skill_r2"), "at least", gap)],
    )
    yield Goal(
        f"{FLOW} {few} keeps {_percent(share)} of the text-image R@1 of true features, and more of it than ridge",
        [
            Condition(of("t2i_r1"), "at least", share, Figure("true", "t2i_r1"), "ratio"),
            Condition(of("t2i_r1"), "above", 0.0, Figure("ridge", "t2i_r1")),
        ],
    )
    for transport in (name for name in TRANSPORTS if any(row["run"] == name for row in rows)):
        yield Goal(
            f"{FLOW} {few} beats {transport} in R2 (interval ends) at no larger image Frechet distance",
            [
                Condition(of("r2", "low"), "above", 0.0, Figure(transport, "r2", part="high")),
                Condition(of("fd_img"), "at most", 0.0, Figure(transport, "fd_img")),
            ],
        )
    yield Goal(
        f"{FLOW} {few} finds its own image more often than ridge does (interval ends)",
        [Condition(of("self_r1", "low"), "above", 0.0, Figure("ridge", "self_r1", part="high"))],
    )


def _beside_itself(few: str, demands: Mapping[str, Any]) -> Iterator[Goal]:
    yield Goal(
        f"{FLOW} {few} is no worse than {REFERENCE} of the same network in R2 and image Frechet distance",
        [
            Condition(Figure(FLOW, "r2", few), "at least", 0.0, Figure(FLOW, "r2", REFERENCE)),
            Condition(Figure(FLOW, "fd_img", few), "at most", 0.0, Figure(FLOW, "fd_img", REFERENCE)),
        ],
    )
    low, high = demands["dispersion"]
    spread = Figure(FLOW, "dispersion", REFERENCE)
    yield Goal(
        f"the seed spread of {FLOW} {REFERENCE} is calibrated (dispersion ratio {low:g} to {high:g}); "
        "where that is not shown it is not usable as uncertainty",
        [Condition(spread, "at least", low), Condition(spread, "at most", high)],
    )


def _beside_runs(few: str, rows: Sequence[SummaryRow], demands: Mapping[str, Any]) -> Iterator[Goal]:
    flow = Figure(FLOW, "r2", few)
    if (demand := demands["flow_r2"]) is not None:
        yield Goal(f"{FLOW} {few} reaches R2 {demand}", [Condition(flow, "at least", demand)])
    if (direct := _best_sampler(rows, REGRESSION)) is not None:
        regression, share = Figure(REGRESSION, "r2", direct), demands["regression_share"]
        yield Goal(
            f"{FLOW} {few} reaches {_percent(share)} of the R2 of {REGRESSION}",
            [Condition(flow, "at least", share, regression, "ratio")],
        )
        if (demand := demands["regression_r2"]) is not None:
            yield Goal(f"{REGRESSION} reaches R2 {demand}", [Condition(regression, "at least", demand)])
    demand = demands["above_earlier_recipe"]
    if demand is not None and (best := _best_sampler(rows, EARLIER)) is not None:
        yield Goal(
            f"{FLOW} {few} is above {EARLIER} {best} in R2 by {demand}",
            [Condition(flow, "at least", demand, Figure(EARLIER, "r2", best))],
        )


def _best_sampler(rows: Sequence[SummaryRow], run: str, most_evaluations: float = float("inf")) -> str | None:
    """The sampler with the highest R2 among those that all training seeds of a run have and that cost few evaluations.

    One whose R2 is not known is the last choice: it is judged if there is no other, and its goals are not measured.
    """
    mine = [row for row in rows if without_seed(row["run"]) == run]
    seeds = {row["run"] for row in mine}
    dear = {
        row["sampler"] for row in mine if row["metric"] == "nfe" and _exceeds(row["value"], most_evaluations)
    }
    found: dict[str, dict[str, float]] = {}
    for row in mine:
        if row["metric"] == "r2" and row["sampler"] not in dear:
            value = float("-inf") if row["value"] is None else row["value"]
            found.setdefault(row["sampler"], {})[row["run"]] = value
    shared = {sampler: min(values.values()) for sampler, values in found.items() if values.keys() == seeds}
    return max(shared, key=lambda sampler: shared[sampler]) if shared else None


def _exceeds(evaluations: float | None, most: float) -> bool:
    return evaluations is None or evaluations > most


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
