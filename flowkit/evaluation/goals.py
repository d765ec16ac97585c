"""Which goals an experiment is judged by: what run `flow` must show beside the baselines and beside itself.

The flow is judged by its best sampler of few evaluations, best by the R2 of its worst training seed; where fidelity and
distribution are asked for at once, by any of them. A run stands for all its seeds, and each must bear the goal. The
linear map to beat is the better of `ridge` and `ridge_token`. Frechet distances are those of images, or of single
tokens where there are too few images. Whether a goal was measured is not decided here: one whose figures are missing is
"not measured". Without a run `flow` there is nothing to judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowkit.evaluation.summary import SummaryRow
from flowkit.evaluation.verdicts import AnyOf, Condition, Figure, Goal, Part
from flowkit.seeds import BY_VIEW, without_seed

FLOW, REGRESSION, EARLIER = "flow", "regression", "earlier_recipe"
REFERENCE = "heun-50"
LINEAR = ("ridge", "ridge_token")
TRANSPORT, FLAT_TRANSPORT = "ridge_ot", "ridge_ot_flat"
DISTANCES = {
    "fd_img": "image Frechet distance",
    "fd_tok": "token Frechet distance (too few images for theirs)",
}


def experiment_goals(rows: Sequence[SummaryRow], demands: Mapping[str, Any]) -> list[Goal | AnyOf]:
    """Return the goals that the runs in `rows` can be judged by; `demands` are the values of section `goals`."""
    if not _has(rows, FLOW):
        return []
    most = demands["few_evaluations"]
    few = _samplers(rows, FLOW, most_evaluations=most) or [f"of at most {most} evaluations"]
    return [
        *_beside_baselines(few, rows, demands),
        *_beside_itself(few, rows, demands),
        *_beside_runs(few[0], rows, demands),
        *_beside_views(few[0], rows),
    ]


def _beside_baselines(
    few: Sequence[str], rows: Sequence[SummaryRow], demands: Mapping[str, Any]
) -> Iterator[Goal | AnyOf]:
    best = few[0]
    gap, share = demands["ridge_gap_closed"], demands["text_retrieval"]
    linear = [run for run in LINEAR if _has(rows, run)] or [LINEAR[0]]
    strongest = max(linear, key=lambda run: _r2(rows, run))
    yield Goal(
        f"{FLOW} {best} closes {_percent(gap)} of the R2 gap between {strongest} and perfect",
        [Condition(_flow("r2", best), "at least", gap, Figure(strongest, "r2"), "gap")],
    )
    yield Goal(
        f"{FLOW} {best} keeps {_percent(share)} of the text-image R@1 of true features, and more of it than ridge",
        [
            Condition(_flow("t2i_r1", best), "at least", share, Figure("true", "t2i_r1"), "ratio"),
            *(Condition(_flow("t2i_r1", best), "above", 0.0, Figure(run, "t2i_r1")) for run in linear),
        ],
    )
    yield AnyOf([_beats(sampler, TRANSPORT, rows) for sampler in few])
    if _has(rows, FLAT_TRANSPORT):
        yield AnyOf([_beats(sampler, FLAT_TRANSPORT, rows) for sampler in few])
    yield Goal(
        f"{FLOW} {best} finds its own image more often than ridge does (interval ends)",
        [
            Condition(_flow("self_r1", best, "low"), "above", 0.0, Figure(run, "self_r1", part="high"))
            for run in linear
        ],
    )


def _beats(sampler: str, transport: str, rows: Sequence[SummaryRow]) -> Goal:
    metric, words = _distance(rows)
    return Goal(
        f"{FLOW} {sampler} beats {transport} in R2 (interval ends) at no larger {words}",
        [
            Condition(_flow("r2", sampler, "low"), "above", 0.0, Figure(transport, "r2", part="high")),
            Condition(_flow(metric, sampler), "at most", 0.0, Figure(transport, metric)),
        ],
    )


def _beside_itself(
    few: Sequence[str], rows: Sequence[SummaryRow], demands: Mapping[str, Any]
) -> Iterator[Goal | AnyOf]:
    metric, words = _distance(rows)
    yield AnyOf(
        [
            Goal(
                f"{FLOW} {sampler} is no worse than {REFERENCE} of the same network in R2 and {words}",
                [
                    Condition(_flow("r2", sampler), "at least", 0.0, _flow("r2", REFERENCE)),
                    Condition(_flow(metric, sampler), "at most", 0.0, _flow(metric, REFERENCE)),
                ],
            )
            for sampler in few
        ]
    )
    low, high = demands["dispersion"]
    spread = _flow("dispersion", REFERENCE)
    yield Goal(
        f"the seed spread of {FLOW} {REFERENCE} is calibrated (dispersion ratio {low:g} to {high:g}); "
        "where that is not shown it is not usable as uncertainty",
        [Condition(spread, "at least", low), Condition(spread, "at most", high)],
    )


def _beside_runs(best: str, rows: Sequence[SummaryRow], demands: Mapping[str, Any]) -> Iterator[Goal]:
    flow = _flow("r2", best)
    if (demand := demands["flow_r2"]) is not None:
        yield Goal(f"{FLOW} {best} reaches R2 {demand}", [Condition(flow, "at least", demand)])
    if directs := _samplers(rows, REGRESSION):
        regression, share = Figure(REGRESSION, "r2", directs[0]), demands["regression_share"]
        yield Goal(
            f"{FLOW} {best} reaches {_percent(share)} of the R2 of {REGRESSION}",
            [Condition(flow, "at least", share, regression, "ratio")],
        )
        if (demand := demands["regression_r2"]) is not None:
            yield Goal(f"{REGRESSION} reaches R2 {demand}", [Condition(regression, "at least", demand)])
    demand = demands["above_earlier_recipe"]
    if demand is not None and (earlier := _samplers(rows, EARLIER)):
        yield Goal(
            f"{FLOW} {best} is above {EARLIER} {earlier[0]} in R2 by {demand}",
            [Condition(flow, "at least", demand, Figure(EARLIER, "r2", earlier[0]))],
        )


def _beside_views(best: str, rows: Sequence[SummaryRow]) -> Iterator[Goal]:
    directs = _samplers(rows, REGRESSION)
    for run, sampler in ((FLOW, best), (REGRESSION, directs[0] if directs else None)):
        if sampler is not None and _has(rows, run + BY_VIEW):
            paired = Figure(run, "r2", sampler, "low", less=run + BY_VIEW)
            seeds = len({row["run"] for row in rows if without_seed(row["run"]) == run})
            trained = "one training seed" if seeds == 1 else f"each of {seeds} training seeds"
            yield Goal(
                f"{run} {sampler} gains R2 over {run}{BY_VIEW}: views are better translated together (paired, "
                f"{trained})",
                [Condition(paired, "above", 0.0)],
            )


def _flow(metric: str, sampler: str, part: Part = "value") -> Figure:
    return Figure(FLOW, metric, sampler, part)


def _samplers(rows: Sequence[SummaryRow], run: str, most_evaluations: float = float("inf")) -> Sequence[str]:
    """The samplers that all training seeds of a run have and that cost few evaluations, highest R2 first.

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
            found.setdefault(row["sampler"], {})[row["run"]] = _or_lowest(row["value"])
    shared = {sampler: min(values.values()) for sampler, values in found.items() if values.keys() == seeds}
    return sorted(shared, key=lambda sampler: shared[sampler], reverse=True)


def _distance(rows: Sequence[SummaryRow]) -> tuple[str, str]:
    """The Frechet distance to judge by, and its name: that of tokens only where the flow has no other."""
    known = {row["metric"] for row in rows if without_seed(row["run"]) == FLOW and row["value"] is not None}
    metric = "fd_tok" if "fd_img" not in known and "fd_tok" in known else "fd_img"
    return metric, DISTANCES[metric]


def _has(rows: Sequence[SummaryRow], run: str) -> bool:
    return any(without_seed(row["run"]) == run for row in rows)


def _r2(rows: Sequence[SummaryRow], run: str) -> float:
    return max(
        (_or_lowest(row["value"]) for row in rows if (row["run"], row["metric"]) == (run, "r2")), default=0
    )


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value


def _exceeds(evaluations: float | None, most: float) -> bool:
    return evaluations is None or evaluations > most


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
