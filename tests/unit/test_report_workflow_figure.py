"""The picture of the workflow: columns, crossings, distances, the longest chain, words, and texts that fit."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from workflow_material import known

from flowkit.report.workflow_figure import BOX_WIDTH, cut, duration, text_width, workflow_figure
from flowkit.report.workflow_layout import (
    GAP,
    LANE_HEIGHT,
    MOST_IN_A_COLUMN,
    columns_of,
    folded,
    lay_out,
    longest_chain,
)
from flowkit.report.workflow_nodes import Node

DIAMOND = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "late": ("a", "d")}


def graph(edges: dict[str, tuple[str, ...]], **seconds: float) -> list[Node]:
    return [known(name, *after, seconds=seconds.get(name, 1.0)) for name, after in edges.items()]


def experiment(runs: int) -> list[Node]:
    """Data, and three stages for each run."""
    nodes = [known("shards"), known("pairs", "shards", seconds=2.0)]
    for number in range(runs):
        name = f"run_{number}"
        nodes.append(known(f"train_{name}", "pairs", seconds=60.0 + number, stage="train", label=name))
        nodes.append(known(f"sample_{name}", f"train_{name}", seconds=5.0, stage="sample", label=name))
        nodes.append(known(f"evaluate_{name}", f"sample_{name}", seconds=3.0, stage="evaluate", label=name))
    return [*nodes, known("summary", *(f"evaluate_run_{number}" for number in range(runs)))]


def test_columns_follow_the_longest_way() -> None:
    assert columns_of(DIAMOND) == {"a": 0, "b": 1, "c": 1, "d": 2, "late": 3}
    assert columns_of({"b": ("gone",)}) == {"b": 0}


def test_longest_chain_is_by_time_and_not_by_number() -> None:
    assert [node.name for node in longest_chain(graph(DIAMOND, c=9.0))] == ["a", "c", "d", "late"]
    short = graph({"a": (), "b": ("a",), "c": ("b",), "dear": ("a",)}, dear=50.0)
    assert [node.name for node in longest_chain(short)] == ["a", "dear"]
    assert longest_chain([known("a", seconds=None)]) == []


def test_longest_chain_takes_the_longest_process_of_shared_work() -> None:
    """A hundred jobs of a minute side by side are a minute on the way to the end."""
    nodes = [known("extract", seconds=6000.0, longest=60.0), known("train", seconds=100.0)]
    assert [node.name for node in longest_chain(nodes)] == ["train"]


@pytest.mark.parametrize(
    "nodes", [graph(DIAMOND), experiment(5), experiment(14)], ids=["diamond", "five", "many"]
)
def test_boxes_keep_apart_and_lanes_pass_between_them(nodes: list[Node]) -> None:
    found = lay_out(nodes, dict.fromkeys((node.name for node in nodes), 60.0))
    for column in set(found.column.values()):
        spots = sorted((height, spot) for spot, height in found.height.items() if spot[1] == column)
        sizes = [60.0 if found.column[name] == column else LANE_HEIGHT for _, (name, _) in spots]
        for ((upper, _), above), ((lower, _), below) in pairwise(zip(spots, sizes, strict=True)):
            assert lower - upper >= (above + below) / 2 + GAP - 1e-6
    assert min(found.height[spot] - 30 for spot in found.height if found.column[spot[0]] == spot[1]) >= -1e-6
    assert all(target[1] == source[1] + 1 for source, target in found.steps)


def test_ways_that_need_not_cross_do_not() -> None:
    """Two chains whose members are named in turns."""
    nodes = graph({"a0": (), "b0": (), "b1": ("b0",), "a1": ("a0",), "b2": ("b1",), "a2": ("a1",)})
    found = lay_out(nodes, dict.fromkeys((node.name for node in nodes), 60.0))
    upper = {name: found.height[name, found.column[name]] < found.lower_edge / 2 for name in found.column}
    assert upper["a0"] == upper["a1"] == upper["a2"] != upper["b0"]
    assert upper["b0"] == upper["b1"] == upper["b2"]


def test_crowds_of_one_stage_share_a_box_and_small_ones_do_not() -> None:
    shown, shown_by = folded(experiment(100))
    assert [(node.stage, node.label, node.results, node.seconds) for node in shown][2:5] == [
        ("train", "100 runs", 100, sum(60.0 + number for number in range(100))),
        ("sample", "100 runs", 100, 500.0),
        ("evaluate", "100 runs", 100, 300.0),
    ]
    assert {shown_by[f"train_run_{number}"] for number in range(100)} == {shown[2].name}
    assert [node.after for node in shown][3:] == [(shown[2].name,), (shown[3].name,), (shown[4].name,)]
    nodes = experiment(MOST_IN_A_COLUMN)
    assert folded(nodes)[0] == nodes


def test_a_folded_box_says_how_much_is_done() -> None:
    nodes = [
        known(f"train_{number}", stage="train", label=str(number), done=number % 2, seconds=None)
        for number in range(20)
    ]
    shown, _ = folded(nodes)
    assert [(node.label, node.state, node.seconds) for node in shown] == [("20 runs", "10 of 20 done", None)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (0.01, "under 0.1 s"), (4.21, "4.2 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"),
        (190, "3 min 10 s"), (3599.6, "1.0 h"), (15_120, "4.2 h"), (3_600_000, "1,000 h"),
    ],
)  # fmt: skip
def test_durations_are_said_as_people_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_words_for_those_who_do_not_see_it_come_from_the_numbers() -> None:
    plot = workflow_figure(graph(DIAMOND, b=40.0, c=30.0, d=20.0, late=9.0))
    assert "5 pieces of work, 5 of them done, 1 min 40 s in all" in plot.alt
    assert "Most time went into b x (40 s, 40 %), c x (30 s, 30 %), d x (20 s, 20 %)." in plot.alt
    assert "has 4 of them and ends with late x" in plot.alt
    assert "longest chain, 1 min 10 s: a x → b x → d x → late x" in plot.caption
    assert list(plot.data.columns[:3]) == ["stage", "what", "after"]
    assert list(plot.data.iloc[3, :3]) == ["d", "x", "b x; c x"]


def test_what_is_not_done_says_so_in_words() -> None:
    nodes = [
        known("extract", results=20, done=13, seconds=50.0),
        known("train", "extract", done=0, seconds=None),
        known("lost", "extract", seconds=None),
    ]
    plot = workflow_figure(nodes)
    assert {"13 of 20", "50 s", "not run yet", "time unknown"} <= set(texts(plot.svg))
    assert "3 pieces of work, 1 of them done" in plot.alt
    assert "Dashed" in plot.caption
    assert plot.svg.count("stroke-dasharray") == 2


def test_nothing_run_yet_is_a_picture_too() -> None:
    plot = workflow_figure([known("train", done=0, seconds=None)])
    assert texts(plot.svg) == ["train", "x", "not run yet"]
    assert "longest chain" not in plot.caption


LONG = "größenübertragung_mit_sehr_langem_namen"
WIDE = "训练数据集的名字很长很长很长"


@pytest.mark.parametrize(
    "name", [LONG, WIDE, "a" * 200, "W" * 40, "\u202e" + "evil\x00\n" * 9, "e\u0301" * 60, "🦊" * 20]
)
def test_no_text_is_wider_than_its_box(name: str) -> None:
    plot = workflow_figure([known("extract", stage=name, label=f"{name} · {name}")])
    found = texts(plot.svg)
    assert len(found) == 4
    for text in found:
        assert text_width(text, 12.5, is_bold=True) < BOX_WIDTH * 1.15, text
        assert text.isprintable()
    assert all(text.endswith("…") for text in found[:3])
    assert plot.data.loc[0, "stage"] == name


def test_texts_are_cut_only_where_they_must_be() -> None:
    assert cut("short", 100, 11) == "short"
    assert cut("training", text_width("training", 11), 11) == "training"
    assert cut("training", text_width("trai…", 11), 11) == "trai…"
    assert cut("training", 1, 11) == "…"
    assert text_width(WIDE, 10) == pytest.approx(10 * len(WIDE))


def test_picture_keeps_to_the_palette_and_gives_the_same_bytes() -> None:
    first, second = (workflow_figure(experiment(3)).svg for _ in range(2))
    assert first == second
    assert "prefers-color-scheme:dark" in first
    assert not re.search(r"#0[0-9a]0\d0\d", first), "a placeholder colour was left"


def test_pictures_of_any_number_of_runs_stay_small() -> None:
    for runs in (1, 3, 100):
        plot = workflow_figure(experiment(runs))
        assert plot.width < 1200
        assert plot.height < 400
        assert len(plot.svg) < 60_000
        assert len(plot.data) == 3 + 3 * runs
