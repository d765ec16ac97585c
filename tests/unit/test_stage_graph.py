"""The graph of jobs that the report draws: works instead of jobs, patterns instead of names, no implied edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowkit.config import load_config
from flowkit.paths import Places
from flowkit.report.workflow_nodes import folders_of
from flowkit.stages.graph import nodes_of, patterns, without_implied
from flowkit.stages.jobs import Job
from flowkit.stages.session import Spec
from flowkit.stages.specs import Plan

ROOT = Path(__file__).parents[2]
PLACES = Places("small", Path("/results"), Path("/results/data"))


def job(
    name: str, stage: str, inputs: tuple[Path, ...], folders: tuple[Path, ...], **target: str
) -> tuple[str, Job]:
    return name, Job(name, Spec(stage, target, {}, PLACES, ()), inputs, folders)


def hub_jobs(tars: int, per_job: int) -> dict[str, Job]:
    """Fetch and extract of many tars in batches, and a training that reads all of them."""
    jobs = []
    names = [f"sa_{number:06d}.tar" for number in range(tars)]
    fetched = tuple(PLACES.fetched("hub", name) for name in names)
    stores = tuple(PLACES.store("hub", "eva-0123abcd", name) for name in names)
    for first in range(0, tars, per_job):
        batch = slice(first, first + per_job)
        number = f"_{first // per_job:04d}" if tars > per_job else ""
        jobs.append(job(f"fetch_hub{number}", "fetch", (), fetched[batch], dataset="hub"))
        target = {"dataset": "hub", "encoder": "eva-0123abcd"}
        jobs.append(job(f"extract_hub_eva{number}", "extract", fetched[batch], stores[batch], **target))
    jobs.append(job("train_flow", "train", (*fetched, *stores), (PLACES.train("flow"),), run="flow"))
    return dict(jobs)


def test_batches_of_tars_are_one_node_whatever_shares_a_job() -> None:
    found = nodes_of(hub_jobs(2000, 32), PLACES)
    assert found == nodes_of(hub_jobs(2000, 7), PLACES) == nodes_of(hub_jobs(2000, 5000), PLACES)
    assert [node["name"] for node in found] == ["fetch_hub", "extract_hub_eva", "train_flow"]
    assert [node["after"] for node in found] == [[], ["fetch_hub"], ["extract_hub_eva"]]
    assert [node["label"] for node in found] == ["hub", "eva · hub", "flow"]
    assert len(json.dumps(found)) < 1500
    places = [place for node in found for place in folders_of(node)]
    assert len(places) == 4001
    assert places[2000] == "data:features/hub/eva-0123abcd/sa_000000"
    assert places[-1] == "results:small/runs/flow/train"


@pytest.mark.parametrize("per_job", [1, 2, 32])
def test_graph_of_the_demo_is_that_of_its_stages(per_job: int) -> None:
    config = load_config(ROOT / "workflow/config/demo.yaml")
    plan = Plan(config, Places("demo", Path("results"), Path("results/data")), per_job)
    found = {node["name"]: node for node in nodes_of(plan.jobs, plan.places)}
    assert len(json.dumps(list(found.values()))) < 8000
    assert "report" not in found
    assert found["train_flow"]["after"] == ["pairs_shapes_train"]
    assert found["sample_flow"]["after"] == ["pairs_shapes_test", "train_flow"]
    assert found["page"]["label"] == "14 runs"
    assert found["evaluate_baselines"]["label"] == "11 runs"
    everything = {folder for job in plan.jobs.values() if job.name != "report" for folder in job.folders}
    assert sum(len(list(folders_of(node))) for node in found.values()) == len(everything)


def test_encoders_of_one_name_are_told_apart_by_their_settings() -> None:
    jobs = [
        job(f"extract_{mark}", "extract", (), (PLACES.store("d", f"vit-{mark * 8}", "0.tar"),), dataset="d",
            encoder=f"vit-{mark * 8}")
        for mark in "ab"
    ]  # fmt: skip
    assert [node["label"] for node in nodes_of(dict(jobs), PLACES)] == [
        "vit-aaaaaaaa · d",
        "vit-bbbbbbbb · d",
    ]


def test_data_below_the_results_and_results_below_the_data_keep_their_root() -> None:
    for places in (Places("x", Path("/r"), Path("/r/data")), Places("x", Path("/d/r"), Path("/d"))):
        jobs = [
            Job("shards", Spec("shards", {"dataset": "a"}, {}, places, ()), (), (places.shards("a"),)),
            Job("train", Spec("train", {"run": "a"}, {}, places, ()), (), (places.train("a"),)),
        ]
        found = nodes_of({one.name: one for one in jobs}, places)
        assert [node["folders"] for node in found] == [["data:shards/a"], ["results:x/runs/a/train"]]


def test_implied_edges_are_left_out_and_circles_named() -> None:
    diamond = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}, "e": {"a", "d"}}
    assert without_implied(diamond) == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "e": {"d"}}
    with pytest.raises(ValueError, match="a -> b -> a"):
        without_implied({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([f"{number:05d}" for number in range(100)], 1),
        ([f"{number}" for number in range(8, 120)], 4),
        ([f"train-{number:05d}-of-00100" for number in range(100)], 1),
        ([f"{number:05d}" for number in (*range(10), *range(20, 30))], 2),
        (["00001", "00002"], 2),
        (["plain", "names", "no-number", "a[1]", "{b}", "ünï"], 6),
        (["1", "01", "2", "02", "3", "03"], None),
        (["x9y1", "x9y2", "x8y1", "x8y2"], None),
    ],
)
def test_patterns_name_the_same_folders_in_fewer_words(names: list[str], count: int | None) -> None:
    folders = [f"data:some/place/{name}" for name in names] + [f"data:other/{name}" for name in names]
    found: list[Any] = patterns(folders)
    assert sorted(folders_of({"folders": found})) == sorted(folders)
    assert count is None or len(found) == 2 * count
