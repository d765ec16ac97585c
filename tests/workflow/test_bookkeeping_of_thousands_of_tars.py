"""Two thousand tars, five million pairs: listing, jobs, dry run, pairs, order, resume, survey and data page.

The stores are stubs (`scale_material.py`): everything of them is true but for what was computed. Nothing here is timed;
`make bench` does that. Memory is held against what each job asks for.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support import PROJECT_PARTS, ROOT, Project

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from scale_material import CONFIG, MEMBERS, TARS, existing_plan, refused_of, stub_plan, write_stub_stores

from flowkit.features.loader import PairedTokens
from flowkit.features.order import Schedule
from flowkit.features.store import TokenStore
from flowkit.paths import RUN_RECORD
from flowkit.planning.pending import State
from flowkit.planning.plan import machine_plan
from flowkit.provenance import read_json
from flowkit.report.data_page import data_page
from flowkit.report.rendering import Facts, Renderer
from flowkit.report.survey import read_survey
from flowkit.report.workflow_nodes import read_nodes
from flowkit.stages.graph import nodes_of
from flowkit.stages.paired import open_training_pairs
from flowkit.stages.session import committed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BATCH, RANKS, SEED = 256, 4, 3
ENCODERS = {"source": "demo-eva", "target": "demo-vit"}


class Workplace(Project):
    """A project whose configuration is that of the stubs."""

    def dry_run(self) -> dict[str, int]:
        """How many jobs of each stage would run."""
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            "profiles/local",
            "--configfile",
            CONFIG,
            "-n",
        ]
        names = re.findall(r"Job \d+: (\S+)\nReason:", self.run(command))
        stages: dict[str, int] = {}
        for name in names:
            stages[name.partition("_")[0]] = stages.get(name.partition("_")[0], 0) + 1
        return stages


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A project with listings alone; later tests find what earlier ones made."""
    folder = tmp_path_factory.mktemp("thousands") / "project"
    stub_plan(folder)
    for part in PROJECT_PARTS:
        (folder / part).symlink_to(ROOT / part)
    return Workplace(folder)


@pytest.fixture(scope="module")
def bare(place: Workplace) -> dict[str, int]:
    """The dry run before anything is there."""
    return place.dry_run()


@pytest.fixture(scope="module")
def paired(place: Workplace, bare: dict[str, int]) -> Workplace:
    """With token stores of all tars, without pooled vectors, and their pairs."""
    write_stub_stores(existing_plan(place.folder), place.folder / "variants", pooled_width=None)
    for dataset in ("test", "train"):
        place.flowkit("pairs", "--config", CONFIG, "--dataset", dataset)
    return place


@pytest.fixture(scope="module")
def pairs(paired: Workplace) -> PairedTokens:
    """The pairs as training opens them: all tars but the one held out."""
    (job,) = existing_plan(paired.folder).select("train", run="flow")
    return open_training_pairs(job.spec, "train")


def fell_out(tars: range) -> dict[str, int]:
    """What must be missing of the tars' pairs."""
    both = source = target = 0
    for number in tars:
        left, right = (refused_of("train", number, name) for name in ENCODERS.values())
        both, source, target = (
            both + len(left & right),
            source + len(left - right),
            target + len(right - left),
        )
    reason = "image undecodable"
    return {f"both: {reason}": both, f"source: {reason}": source, f"target: {reason}": target}


def test_jobs_of_listed_tars_are_planned_in_batches(bare: dict[str, int], place: Workplace) -> None:
    plan, batches = existing_plan(place.folder), -(-TARS // 32)
    assert len(plan.tars("train")) == TARS
    assert bare["fetch"] == batches + 1
    assert bare["extract"] == 2 * (batches + 1)
    assert sum(len(job.folders) for job in plan.jobs.values() if job.spec.stage == "extract") == 2 * (
        TARS + 2
    )


def test_extracted_tars_leave_what_comes_after_them(paired: Workplace) -> None:
    stages = paired.dry_run()
    assert not stages.keys() & {"fetch", "extract", "weights", "pairs"}
    assert stages["train"] == stages["sample"] == 2
    assert stages["report"] == 1


def test_pairs_join_what_both_kept_and_count_the_rest(paired: Workplace) -> None:
    plan = existing_plan(paired.folder)
    (job,) = plan.select("pairs", dataset="train")
    lost = fell_out(range(TARS))
    _, manifest = committed(job.folders[0])
    assert manifest["counts"]["fell_out"] == lost
    assert manifest["counts"]["pairs"] == TARS * MEMBERS - sum(lost.values())
    assert manifest["counts"]["pairs"] > 5_000_000
    peak = read_json(job.folders[0] / RUN_RECORD)["peak_memory_mb"]
    assert peak < job.memory_mb, "what the job asks Slurm for"


def test_an_epoch_visits_every_pair_once_whatever_the_ranks(pairs: PairedTokens) -> None:
    count = len(pairs)
    assert count == (TARS - 1) * MEMBERS - sum(fell_out(range(TARS - 1)).values())
    steps = count // BATCH
    seen = np.zeros(count, np.uint8)
    ranks = [Schedule(count, BATCH, SEED, rank, RANKS).steps(2 * steps) for rank in range(RANKS)]
    for _ in range(steps):
        for rank in ranks:
            seen[next(rank)[1]] += 1
    assert seen.max() == 1
    assert seen.sum() == steps * BATCH
    assert next(ranks[0])[0] == 3 * steps, "and the next epoch begins"


@pytest.mark.parametrize("step", [0, 1, 19_000, 19_530, 123_456])
def test_resume_at_any_step_gives_the_batch_of_that_step(
    paired: Workplace, pairs: PairedTokens, step: int
) -> None:
    whole = np.concatenate(
        [next(Schedule(len(pairs), BATCH, SEED, rank, RANKS).steps(step))[1] for rank in range(RANKS)]
    )
    batches = pairs.batches(seed=SEED, batch_size=BATCH, start_step=step)
    found, ids, source, target = next(batches)
    assert (found, ids.tolist()) == (step, whole.tolist())
    rows = pairs.rows
    for place in range(0, BATCH, 37):
        tar, left, right = (
            int(part[ids[place], 0]) for part in (rows.tar_NV, rows.source_row_NV, rows.target_row_NV)
        )
        stores = [stored(paired.folder, role, tar) for role in ENCODERS]
        keys = [store.samples["key"].iloc[row] for store, row in zip(stores, (left, right), strict=True)]
        assert keys[0] == keys[1]
        for store, row, tokens in zip(stores, (left, right), (source, target), strict=True):
            assert np.array_equal(store.read_tokens([row])[0], tokens[place].numpy())
    batches.close()


def stored(folder: Path, role: str, tar: int) -> TokenStore:
    """A store, opened and checked as a whole."""
    plan, name = existing_plan(folder), f"{tar:05d}.tar"
    encoder_id = {"source": plan.source_id, "target": plan.target_id}[role]
    store = TokenStore(committed(plan.places.store("train", encoder_id, name))[0])
    assert store.attributes["source"]["name"] == name
    return store


def test_survey_counts_all_tars_and_the_data_page_shows_them(paired: Workplace) -> None:
    paired.flowkit("survey", "--config", CONFIG)
    plan = existing_plan(paired.folder)
    (job,) = plan.select("survey")
    assert read_json(plan.places.survey / RUN_RECORD)["peak_memory_mb"] < job.memory_mb
    content, _ = committed(plan.places.survey)
    found = read_survey(content).found
    training, lost = found.dataset("training"), fell_out(range(TARS))
    assert (training.tars, training.pairs) == (TARS, TARS * MEMBERS - sum(lost.values()))
    assert training.refused == sum(lost.values())
    per_encoder = sum(len(refused_of("train", number, "demo-eva")) for number in range(TARS))
    assert [one.refused for one in training.encoders] == [per_encoder, per_encoder]
    assert [one.encoded for one in training.encoders] == [TARS * MEMBERS - per_encoder] * 2
    facts = Facts("stub", "Stub", "demo-eva", "demo-vit", is_demo=True)
    page = data_page(Renderer(facts), content, "")["data.html"].decode()
    assert len(page) < 1_500_000
    for number in (TARS, training.pairs, training.refused):
        assert f"{number:,}" in page


def test_workflow_page_and_plan_know_every_result(paired: Workplace) -> None:
    plan = existing_plan(paired.folder)
    nodes = read_nodes(nodes_of(plan.jobs, plan.places), plan.places.results, plan.places.data_root)
    done = {node.name: (node.done, node.results) for node in nodes if node.stage in ("fetch", "extract")}
    assert done == {
        f"{stage}_{dataset}{encoder}": (count, count)
        for dataset, count in (("train", TARS), ("test", 2))
        for stage, encoder in (("fetch", ""), ("extract", "_demo_eva"), ("extract", "_demo_vit"))
    }
    planned = machine_plan(plan, None)
    running = {plan.jobs[name].spec.stage for name, state in planned.states.items() if state is State.TO_RUN}
    assert not running & {"fetch", "extract", "pairs"}
    assert "train" in running
    kept = (MEMBERS - len(refused_of("train", number, "demo-vit")) for number in range(TARS))
    assert planned.data.images("train") == sum(kept)
