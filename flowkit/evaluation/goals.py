"""Which goals an experiment is judged by: the demands of its configuration, and the claims a flow run must bear.

A goal about a run that the experiment does not have is left out; where a run has several seeds, each must bear it. The
flow is judged by euler-1, one evaluation; the earlier recipe is judged by whichever of its samplers does best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowkit.evaluation.summary import SummaryRow
from flowkit.evaluation.verdicts import Condition, Figure, Goal, flow_goals

FLOW, FLOW_4X, REGRESSION, EARLIER = "flow", "flow_4x", "regression", "earlier_recipe"
ONE_STEP, REFERENCE = "euler-1", "heun-50"


def experiment_goals(rows: Sequence[SummaryRow], demands: Mapping[str, float]) -> list[Goal]:
    """Return the goals that the runs in `rows` can be judged by; `demands` are the values of section `goals`."""
    r2 = {(row["run"], row["sampler"]): row["value"] for row in rows if row["metric"] == "r2"}
    if (FLOW, ONE_STEP) not in r2:
        return []
    flow = Figure(FLOW, "r2", ONE_STEP)
    goals = [
        Goal(
            f"{FLOW} {ONE_STEP} reaches R2 {demands['flow_r2']}",
            [Condition(flow, "at least", demands["flow_r2"])],
        ),
        Goal(
            f"{FLOW} {ONE_STEP} closes {demands['ridge_gap_closed']:.0%} of the R2 gap between ridge and perfect",
            [Condition(Figure(FLOW, "skill_r2", ONE_STEP), "at least", demands["ridge_gap_closed"])],
        ),
    ]
    if (FLOW_4X, ONE_STEP) in r2:
        demand = demands["ridge_gap_closed_4x"]
        goals.append(
            Goal(
                f"{FLOW_4X} {ONE_STEP}, four times the training, closes {demand:.0%} of that gap",
                [Condition(Figure(FLOW_4X, "skill_r2", ONE_STEP), "at least", demand)],
            )
        )
    if (best := _best_sampler(r2, EARLIER)) is not None:
        demand = demands["above_earlier_recipe"]
        goals.append(
            Goal(
                f"{FLOW} {ONE_STEP} is above {EARLIER} {best} in R2 by {demand}",
                [Condition(flow, "at least", demand, Figure(EARLIER, "r2", best))],
            )
        )
    if (direct := _best_sampler(r2, REGRESSION)) is not None:
        demand = demands["regression_r2"]
        goals.append(
            Goal(
                f"{REGRESSION} reaches R2 {demand}",
                [Condition(Figure(REGRESSION, "r2", direct), "at least", demand)],
            )
        )
        if (FLOW, REFERENCE) in r2:
            goals += flow_goals(flow=FLOW, regression=REGRESSION, few=ONE_STEP, many=REFERENCE, direct=direct)
    return goals


def _best_sampler(r2: Mapping[tuple[str, str], float | None], run: str) -> str | None:
    known = {sampler: value for (name, sampler), value in r2.items() if name == run and value is not None}
    return max(known, key=lambda sampler: known[sampler]) if known else None
