"""Rows of all runs joined, and what the goals make of them."""

import pytest

from flowkit.evaluation.goals import experiment_goals
from flowkit.evaluation.summary import RunScore, summary_rows
from flowkit.evaluation.verdicts import Condition, Figure, Goal, flow_goals, verdicts
from flowkit.sections import Goals


def run(name, sampler="-", data="shapes", **figures):
    """One run whose intervals reach 0.01 to both sides."""
    reach = {"value": 0.0, "low": -0.01, "high": 0.01}
    rows = [
        {"metric": metric, **{part: None if v is None else v + by for part, by in reach.items()}}
        for metric, v in figures.items()
    ]
    return RunScore(name, sampler, data, rows)


def skills(*runs):
    return {(r["run"], r["data"]): r for r in summary_rows(runs) if r["metric"] == "skill_r2"}


def test_skill_is_the_share_of_ridge_gap_closed():
    found = skills(run("flow", r2=0.94), run("ridge", r2=0.86), run("true", r2=1.0), run("constant", r2=0.0))
    assert found["flow", "shapes"]["value"] == pytest.approx((0.94 - 0.86) / 0.14)
    assert found["flow", "shapes"]["low"] == pytest.approx((0.93 - 0.86) / 0.14)
    assert found["ridge", "shapes"]["value"] == 0.0
    assert found["true", "shapes"]["value"] == 1.0
    assert found["constant", "shapes"]["value"] < 0


def test_skill_uses_ridge_on_the_same_data_or_stays_unknown():
    found = skills(
        run("flow", r2=0.9), run("flow", data="photos", r2=0.9), run("ridge", data="photos", r2=0.8)
    )
    assert found["flow", "shapes"]["value"] is None
    assert found["flow", "photos"]["value"] == pytest.approx(0.5)


def test_skill_of_unknown_or_perfect_reference():
    assert skills(run("flow", r2=None), run("ridge", r2=0.8))["flow", "shapes"]["value"] is None
    assert skills(run("flow", r2=0.9), run("ridge", r2=1.0))["flow", "shapes"]["value"] is None
    assert skills(run("flow", r2=0.9), run("ridge", r2=float("nan")))["flow", "shapes"]["value"] is None


def test_rows_carry_the_promised_columns_and_no_nan():
    rows = summary_rows([run("flow", "euler-1", fd_img=float("nan"), r2=0.9)])
    assert [r["metric"] for r in rows] == ["fd_img", "r2", "skill_r2"]
    columns = ["run", "sampler", "data", "metric", "value", "low", "high", "seed_spread"]
    assert all(list(r) == columns for r in rows)
    assert rows[0]["value"] is rows[0]["low"] is None


def judge(condition, *runs):
    return verdicts(summary_rows(runs), [Goal("claim", [condition])], data="shapes")[0]


@pytest.mark.parametrize(
    ("relation", "demand", "verdict"),
    [
        ("at least", 0.9, "holds"),
        ("at least", 0.91, "not shown"),
        ("at most", 0.9, "holds"),
        ("at most", 0.8, "not shown"),
    ],
)
def test_a_single_figure(relation, demand, verdict):
    found = judge(Condition(Figure("flow", "r2"), relation, demand), run("flow", r2=0.9))
    assert found == {"goal": "claim", "verdict": verdict, "value": 0.9, "demand": demand}


def test_the_end_of_the_interval_is_the_cautious_number():
    cautious = Condition(Figure("flow", "r2", part="low"), "at least", 0.9)
    assert judge(cautious, run("flow", r2=0.905))["verdict"] == "not shown"
    assert judge(cautious, run("flow", r2=0.915))["verdict"] == "holds"


def test_against_another_run():
    pair = run("flow", r2=0.9), run("regression", r2=0.95)
    ratio = Condition(Figure("flow", "r2"), "at least", 0.9, Figure("regression", "r2"), "ratio")
    assert judge(ratio, *pair)["value"] == pytest.approx(0.9 / 0.95)
    difference = Condition(Figure("flow", "r2"), "at least", 0.0, Figure("regression", "r2"))
    assert judge(difference, *pair)["verdict"] == "not shown"
    assert judge(difference, *pair)["value"] == pytest.approx(-0.05)


def test_without_a_sampler_the_worst_one_counts():
    runs = run("flow", "euler-1", r2=0.9), run("old", "euler-1", r2=0.3), run("old", "heun-50", r2=0.7)
    assert judge(Condition(Figure("old", "r2"), "at least", 0.5), *runs)["value"] == 0.3
    above = Condition(Figure("flow", "r2", "euler-1"), "at least", 0.5, Figure("old", "r2"))
    assert judge(above, *runs)["value"] == pytest.approx(0.2)
    assert judge(above, *runs)["verdict"] == "not shown"


def test_seeds_of_a_run_have_a_spread_and_the_worst_of_them_counts():
    runs = run("flow", "euler-1", r2=0.9), run("flow_seed_1", "euler-1", r2=0.8), run("flow_seed_x", r2=0.1)
    spread = {row["run"]: row["seed_spread"] for row in summary_rows(runs) if row["metric"] == "r2"}
    assert spread["flow"] == spread["flow_seed_1"] == pytest.approx(0.1 / 2**0.5)
    assert spread["flow_seed_x"] is None
    assert judge(Condition(Figure("flow", "r2"), "at least", 0.85), *runs)["value"] == 0.8
    assert judge(Condition(Figure("flow_seed_1", "r2"), "at least", 0.85), *runs)["value"] == 0.8


def test_four_times_the_training_has_a_goal_of_its_own():
    demands = Goals().model_dump()
    rows = summary_rows(
        [run("flow", "euler-1", r2=0.9), run("flow_4x", "euler-1", r2=0.96), run("ridge", r2=0.87)]
    )
    found = {row["goal"]: row for row in verdicts(rows, experiment_goals(rows, demands), data="shapes")}
    (goal,) = (name for name in found if "four times" in name)
    assert found[goal]["value"] == pytest.approx(0.09 / 0.13)
    assert found[goal]["verdict"] == "holds"
    assert not any("four times" in goal.goal for goal in experiment_goals(rows[:2], demands))


@pytest.mark.parametrize("runs", [[], [run("flow", r2=None)], [run("flow", data="photos", r2=1.0)]])
def test_a_missing_figure_shows_nothing(runs):
    for relation in ("at least", "at most"):
        found = judge(Condition(Figure("flow", "r2"), relation, 0.0), *runs)
        assert (found["verdict"], found["value"]) == ("not shown", None)


def test_one_sampler_without_a_figure_spoils_a_claim_about_all():
    runs = run("flow", "euler-1", r2=0.9), run("flow", "heun-50", r2=None)
    assert judge(Condition(Figure("flow", "r2"), "at least", 0.5), *runs)["verdict"] == "not shown"


def test_every_condition_must_hold_and_the_failing_one_is_shown():
    first, second = (Condition(Figure("flow", m), "at least", 0.5) for m in ("r2", "tok_cos"))
    rows = summary_rows([run("flow", r2=0.9, tok_cos=0.2)])
    found = verdicts(rows, [Goal("both", [first, second]), Goal("first", [first])], data="shapes")
    assert [(v["verdict"], v["value"]) for v in found] == [("not shown", 0.2), ("holds", 0.9)]
    with pytest.raises(ValueError, match="no condition"):
        verdicts(rows, [Goal("empty", [])], data="shapes")


GOALS = flow_goals(flow="flow", regression="regression", few="euler-1", many="heun-50")


def experiment(flow_distance):
    return [
        run("flow", "euler-1", r2=0.94, fd_img=flow_distance, self_r1=0.95),
        run("flow", "heun-50", r2=0.93, fd_img=0.0039, self_r1=0.95),
        run("regression", "direct-1", r2=0.945, fd_img=0.0024),
        run("ridge", r2=0.867, self_r1=0.88, fd_img=0.0057),
        run("ridge_ot", r2=0.86, self_r1=0.88, fd_img=0.0029),
    ]


@pytest.mark.parametrize(("flow_distance", "lost"), [(0.0026, []), (0.0035, [2]), (0.005, [1, 2])])
def test_goals_of_a_flow_fail_where_the_figures_do(flow_distance, lost):
    found = verdicts(summary_rows(experiment(flow_distance)), GOALS, data="shapes")
    assert [number for number, row in enumerate(found) if row["verdict"] == "not shown"] == lost


def test_goals_without_figures_are_not_shown():
    assert [row["verdict"] for row in verdicts([], GOALS, data="shapes")] == ["not shown"] * len(GOALS)
