"""Rows of all runs joined, and what the goals make of them."""

import pytest

from flowkit.evaluation.goals import experiment_goals
from flowkit.evaluation.summary import RunScore, summary_rows
from flowkit.evaluation.verdicts import Condition, Figure, Goal, verdicts
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
        ("at least", 0.9, "shown"),
        ("at least", 0.91, "not shown"),
        ("at most", 0.9, "shown"),
        ("at most", 0.8, "not shown"),
        ("above", 0.89, "shown"),
        ("above", 0.9, "not shown"),
    ],
)
def test_a_single_figure(relation, demand, verdict):
    found = judge(Condition(Figure("flow", "r2"), relation, demand), run("flow", r2=0.9))
    assert found == {"goal": "claim", "verdict": verdict, "value": 0.9, "demand": demand}


def test_the_end_of_the_interval_is_the_cautious_number():
    cautious = Condition(Figure("flow", "r2", part="low"), "at least", 0.9)
    assert judge(cautious, run("flow", r2=0.905))["verdict"] == "not shown"
    assert judge(cautious, run("flow", r2=0.915))["verdict"] == "shown"


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


@pytest.mark.parametrize("runs", [[], [run("flow", r2=None)], [run("flow", data="photos", r2=1.0)]])
def test_a_missing_figure_is_not_measured(runs):
    for relation in ("at least", "at most", "above"):
        found = judge(Condition(Figure("flow", "r2"), relation, 0.0), *runs)
        assert (found["verdict"], found["value"]) == ("not measured", None)


def test_one_sampler_without_a_figure_spoils_a_claim_about_all():
    runs = run("flow", "euler-1", r2=0.9), run("flow", "heun-50", r2=None)
    assert judge(Condition(Figure("flow", "r2"), "at least", 0.5), *runs)["verdict"] == "not measured"


def test_every_condition_must_hold_and_the_failing_one_is_shown():
    first, second = (Condition(Figure("flow", m), "at least", 0.5) for m in ("r2", "tok_cos"))
    rows = summary_rows([run("flow", r2=0.9, tok_cos=0.2)])
    found = verdicts(rows, [Goal("both", [first, second]), Goal("first", [first])], data="shapes")
    assert [(v["verdict"], v["value"]) for v in found] == [("not shown", 0.2), ("shown", 0.9)]
    unknown = Condition(Figure("flow", "fd_img"), "at most", 0.5)
    found = verdicts(rows, [Goal("both", [first, unknown]), Goal("failed", [unknown, second])], data="shapes")
    assert [(v["verdict"], v["value"]) for v in found] == [("not measured", None), ("not shown", 0.2)]
    with pytest.raises(ValueError, match="no condition"):
        verdicts(rows, [Goal("empty", [])], data="shapes")


def experiment(**changes):
    """Runs whose figures bear every goal, with what one of them is changed to."""
    flow = {"r2": 0.94, "fd_img": 0.0026, "self_r1": 0.95, "t2i_r1": 0.92, "nfe": 1.0, "dispersion": 0.0}
    flow |= {name: value for name, value in changes.items() if name in flow}
    return [
        run("flow", "euler-1", **flow),
        run("flow", "heun-50", r2=0.93, fd_img=0.0039, nfe=99.0, dispersion=changes.get("spread", 0.9)),
        run("regression", "direct-1", r2=0.945, fd_img=0.0024, nfe=1.0),
        run(
            "ridge",
            "closed-form",
            r2=0.867,
            self_r1=0.88,
            fd_img=0.0057,
            t2i_r1=changes.get("ridge_t2i", 0.9),
        ),
        run("ridge_ot", "closed-form", r2=0.86, fd_img=0.0029),
        run("ridge_ot_flat", "closed-form", r2=0.84, fd_img=0.0028),
        run("true", "closed-form", r2=1.0, t2i_r1=0.93),
        run("earlier_recipe", "heun-50", r2=0.5, nfe=99.0),
    ]


def judged(runs, **demands):
    rows = summary_rows(runs)
    goals = experiment_goals(rows, Goals(**demands).model_dump())
    return {row["goal"]: row["verdict"] for row in verdicts(rows, goals, data="shapes")}


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, []),
        ({"fd_img": 0.00285}, ["beats ridge_ot_flat in"]),
        ({"fd_img": 0.0035}, ["beats ridge_ot in", "beats ridge_ot_flat in"]),
        ({"fd_img": 0.005}, ["beats ridge_ot in", "beats ridge_ot_flat in", "no worse than heun-50"]),
        ({"r2": 0.9}, ["closes 50 %", "no worse than heun-50", "of the R2 of regression"]),
        ({"self_r1": 0.89}, ["finds its own image"]),
        ({"t2i_r1": 0.9}, ["98 % of the text-image"]),
        ({"ridge_t2i": 0.92}, ["98 % of the text-image"]),
        ({"spread": 0.3}, ["is calibrated"]),
        ({"spread": 2.5}, ["is calibrated"]),
    ],
)
def test_each_goal_is_lost_where_its_figures_fail(changes, lost):
    found = judged(experiment(**changes))
    assert len(found) == 8
    failed = [goal for goal, verdict in found.items() if verdict == "not shown"]
    assert len(failed) == len(lost)
    assert all(any(words in goal for goal in failed) for words in lost)
    assert set(found.values()) <= {"shown", "not shown"}


def test_what_an_experiment_does_not_have_is_not_measured():
    runs = [one for one in experiment() if one.run == "flow"]
    found = judged(runs)
    assert not any("ridge_ot_flat" in goal or "regression" in goal for goal in found)
    assert len(found) == 6
    measured = [goal for goal, verdict in found.items() if verdict != "not measured"]
    assert len(measured) == 2  # beside itself
    assert judged([]) == {}
    assert judged([run("other", "euler-1", r2=0.9)]) == {}


def test_without_a_sampler_of_few_evaluations_its_goals_are_not_measured():
    found = judged([one for one in experiment() if one.sampler != "euler-1"])
    named = [goal for goal in found if "flow of at most 4 evaluations" in goal]
    assert len(named) == 7
    assert {found[goal] for goal in named} == {"not measured"}
    assert [verdict for goal, verdict in found.items() if "is calibrated" in goal] == ["shown"]


def test_any_sampler_of_few_evaluations_may_be_no_worse_than_the_reference():
    """The one with the best R2 has a larger distance than heun-50; another is better in both."""
    runs = [
        run("flow", "euler-1", r2=0.72, fd_img=0.0075, nfe=1.0),
        run("flow", "euler-2", r2=0.66, fd_img=0.0055, nfe=2.0),
        run("flow", "euler-8", r2=0.54, fd_img=0.0043, nfe=8.0),
        run("flow", "heun-50", r2=0.51, fd_img=0.0064, nfe=99.0),
    ]
    words = "is no worse than heun-50 of the same network in R2 and image Frechet distance"
    assert judged(runs)[f"flow euler-2 {words}"] == "shown"
    assert judged([runs[0], *runs[2:]])[f"flow euler-1 {words}"] == "not shown"


def test_each_training_seed_is_compared_with_itself():
    runs = [
        run("flow", "euler-1", r2=0.980, fd_img=0.002, nfe=1.0),
        run("flow", "heun-50", r2=0.979, fd_img=0.003, nfe=99.0),
        run("flow_seed_1", "euler-1", r2=0.982, fd_img=0.002, nfe=1.0),
        run("flow_seed_1", "heun-50", r2=0.981, fd_img=0.003, nfe=99.0),
    ]
    goal = "flow euler-1 is no worse than heun-50 of the same network in R2 and image Frechet distance"
    assert judged(runs)[goal] == "shown"
    assert judged([*runs[:3], run("flow_seed_1", "heun-50", r2=0.983, fd_img=0.003)])[goal] == "not shown"


def test_the_better_linear_map_is_the_one_to_beat():
    stronger = run("ridge_token", "closed-form", r2=0.91, self_r1=0.93, t2i_r1=0.91)
    found = judged([*experiment(), stronger])
    assert found["flow euler-1 closes 50 % of the R2 gap between ridge_token and perfect"] == "not shown"
    weaker = run("ridge_token", "closed-form", r2=0.75, self_r1=0.5, t2i_r1=0.5)
    found = judged([*experiment(), weaker])
    assert found["flow euler-1 closes 50 % of the R2 gap between ridge and perfect"] == "shown"


def test_token_distances_judge_where_there_are_too_few_images():
    runs = [
        run("flow", "euler-1", r2=0.9, fd_img=None, fd_tok=0.002, nfe=1.0),
        run("flow", "heun-50", r2=0.8, fd_img=None, fd_tok=0.003, nfe=99.0),
        run("ridge_ot", r2=0.7, fd_img=None, fd_tok=0.001),
    ]
    found = {goal: verdict for goal, verdict in judged(runs).items() if "too few images" in goal}
    assert sorted(found.values()) == ["not shown", "shown"]


def test_demands_of_an_experiment_make_goals_of_their_own():
    found = judged(experiment(), flow_r2=0.95, regression_r2=0.94, above_earlier_recipe=0.4)
    assert found["flow euler-1 reaches R2 0.95"] == "not shown"
    assert found["regression reaches R2 0.94"] == "shown"
    assert found["flow euler-1 is above earlier_recipe heun-50 in R2 by 0.4"] == "shown"


def test_the_best_sampler_of_few_evaluations_is_judged():
    runs = [*experiment(), run("flow", "midpoint-2", r2=0.945, fd_img=0.003, nfe=4.0)]
    assert any(goal.startswith("flow midpoint-2 closes") for goal in judged(runs))
    assert any(goal.startswith("flow euler-1 closes") for goal in judged(runs, few_evaluations=3))


def test_every_training_seed_must_bear_a_goal():
    runs = [*experiment(), run("flow_seed_1", "euler-1", r2=0.91, fd_img=0.0026, nfe=1.0)]
    closes = next(goal for goal in judged(runs) if "closes" in goal)
    assert judged(runs)[closes] == "not shown"


def test_a_sampler_that_one_seed_lacks_is_not_judged():
    """Or a seed could be spared by leaving its bad sampler out."""
    runs = [*experiment(), run("flow", "euler-2", r2=0.96, fd_img=0.002, nfe=2.0)]
    runs.append(run("flow_seed_1", "euler-1", r2=0.1, fd_img=0.5, nfe=1.0))
    found = judged(runs)
    assert not any("euler-2" in goal for goal in found)
    assert found[next(goal for goal in found if "closes" in goal)] == "not shown"


def test_a_sampler_of_unknown_cost_is_not_one_of_few_evaluations():
    runs = [*experiment(), run("flow", "adaptive-3", r2=0.99, fd_img=0.001, nfe=None)]
    assert not any("adaptive" in goal for goal in judged(runs))
