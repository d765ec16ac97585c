"""The goal of translating views together: a paired difference with an interval above zero, in every training seed."""

import pytest

from flowkit.evaluation.goals import experiment_goals
from flowkit.evaluation.summary import RunScore, summary_rows
from flowkit.evaluation.verdicts import Condition, DifferenceRow, Figure, Goal, verdicts
from flowkit.sections import Goals


def run(name, sampler, r2):
    rows = [{"metric": m, "value": v, "low": v, "high": v} for m, v in (("r2", r2), ("nfe", 1.0))]
    return RunScore(name, sampler, "solids", rows)


def gain(name, against, low, value=0.02, sampler="euler-1", data="solids"):
    return DifferenceRow(
        run=name,
        sampler=sampler,
        data=data,
        against=against,
        metric="r2",
        value=value,
        low=low,
        high=value + 0.01,
    )


RUNS = [run("flow", "euler-1", 0.9), run("flow_by_view", "euler-1", 0.88), run("regression", "direct-1", 0.9)]


def judged(differences, runs=RUNS):
    rows = summary_rows(runs)
    goals = experiment_goals(rows, Goals().model_dump())
    found = verdicts(rows, goals, data="solids", differences=differences)
    return {row["goal"].partition(":")[0]: row for row in found if "translated together" in row["goal"]}


@pytest.mark.parametrize(("low", "verdict"), [(0.001, "shown"), (0.0, "not shown"), (-0.01, "not shown")])
def test_gain_is_shown_where_the_paired_interval_is_above_zero(low, verdict):
    found = judged([gain("flow", "flow_by_view", low)])
    assert list(found) == ["flow euler-1 gains R2 over flow_by_view"]
    (row,) = found.values()
    assert (row["verdict"], row["value"], row["demand"]) == (verdict, low, 0.0)


def test_differences_of_others_do_not_count():
    others = [
        gain("flow", "ridge", 0.5),
        gain("flow", "flow_by_view", 0.5, sampler="heun-50"),
        gain("flow", "flow_by_view", 0.5, data="elsewhere"),
        gain("flow_by_view", "flow_by_view", 0.5),
    ]
    assert [row["verdict"] for row in judged(others).values()] == ["not measured"]


def test_every_seed_of_both_must_bear_it():
    both = [gain("flow", "flow_by_view", 0.01), gain("flow", "flow_by_view_seed_1", 0.02)]
    (row,) = judged(both).values()
    assert row["verdict"] == "shown"
    assert "one training seed" in row["goal"]
    seeds = judged(both, [*RUNS, run("flow_seed_1", "euler-1", 0.9)])
    assert "each of 2 training seeds" in next(iter(seeds.values()))["goal"]
    lost = [*both, gain("flow_seed_1", "flow_by_view_seed_1", -0.001)]
    assert [(row["verdict"], row["value"]) for row in judged(lost).values()] == [("not shown", -0.001)]


def test_regression_is_judged_beside_its_namesake_and_others_have_no_such_goal():
    assert judged([], [run("flow", "euler-1", 0.9)]) == {}
    runs = [*RUNS, run("regression_by_view", "direct-1", 0.89)]
    found = judged([gain("regression", "regression_by_view", 0.004, sampler="direct-1")], runs)
    assert found["regression direct-1 gains R2 over regression_by_view"]["verdict"] == "shown"


def test_value_of_a_difference_can_be_asked_for():
    goal = Goal("claim", [Condition(Figure("flow", "r2", less="flow_by_view"), "at least", 0.02)])
    (row,) = verdicts([], [goal], data="solids", differences=[gain("flow", "flow_by_view", 0.01)])
    assert (row["verdict"], row["value"]) == ("shown", 0.02)
