"""What a plan of N images recommends: room, images that nobody reads, keeping tokens or encoding anew, job sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flowkit.__main__ import app
from flowkit.config import load_config
from flowkit.paths import Places
from flowkit.planning.advice import Advice, advice
from flowkit.planning.billing import MachineFacts
from flowkit.planning.caching import compared, share_read
from flowkit.planning.fitting import is_configured_held
from flowkit.planning.job_size import FETCHING_MINUTES, MINUTES, MINUTES_PER_TAR, job_size
from flowkit.planning.scale import ScalePlan
from flowkit.planning.scale_text import scale_json, scale_lines
from flowkit.slurm.job_requests import JobRequests
from flowkit.stages.specs import Plan

ROOT = Path(__file__).parents[2]
MILLION = 10**6
EXTRACT = {"partition": "gpu", "gpus": 1, "cpus": 16, "memory_gb": 180}
GPU = {
    "cores": 64,
    "gpus": 4,
    "memory_gb": 720,
    "gpu": "H100",
    "sbu_per_gpu_hour": 192,
    "smallest_share": "1/4",
}
CACHE = "cache the tokens, or recompute them in every pass?"


def planned(
    folder: Path,
    *overrides: str,
    images: int = 5 * MILLION,
    config: str = "blip3o",
    stages: dict[str, Any] | None = None,
    partition: dict[str, Any] | None = None,
    **facts: Any,
) -> ScalePlan:
    loaded = load_config(ROOT / f"workflow/config/{config}.yaml", overrides)
    training = {"executor": "slurm", "partition": "gpu", "gpus_per_node": 1, "memory_gb": 180}
    requests = JobRequests({"extract": EXTRACT, **(stages or {})}, training)
    machine = MachineFacts.model_validate({"partitions": {"gpu": {**GPU, **(partition or {})}}, **facts})
    return ScalePlan(
        Plan(loaded, Places("x", folder / "results", folder / "data")), requests, machine, images
    )


def answer(plan: ScalePlan, question: str) -> Advice:
    return next(one for one in advice(plan) if one.question.startswith(question))


def test_images_that_nobody_reads_are_not_needed(tmp_path: Path) -> None:
    """A quarter of a pass reads a quarter of the images; to cache all of them once was the wrong advice."""
    plan = planned(tmp_path, "train.epochs=0.25")
    said = answer(plan, "are all images read?")
    assert said.answer == (
        "no: training sees 1,250,000 of 5,000,000 images; extract 1,250,000 (datasets.blip3o-short.shards=481, "
        "or a smaller samples_per_shard) or set train.epochs"
    )
    hours = sum(line.cost.gpu_hours or 0 for line in plan.extraction)
    found = compared(plan, plan.stores[0])
    assert found.keeping.gpu_hours == pytest.approx(0.25 * hours + (found.waiting.gpu_hours or 0))
    assert found.anew.gpu_hours == pytest.approx(0.5 * hours), "two runs, each its own quarter"
    assert f"of that, {0.75 * hours:.1f} GPU h encode images that no run reads" in scale_lines(plan)
    by_steps = planned(tmp_path, "train.epochs=null", "train.steps=1000", images=500 * MILLION)
    assert "training sees 128,000 of 500,000,000 images" in answer(by_steps, "are all images read?").answer


def test_the_run_that_reads_most_decides(tmp_path: Path) -> None:
    plan = planned(tmp_path, "train.epochs=0.25", "runs.regression.train={epochs: 2}")
    assert share_read(plan) == 1
    assert not any(one.question == "are all images read?" for one in advice(plan))
    hours = sum(line.cost.gpu_hours or 0 for line in plan.extraction)
    assert compared(plan, plan.stores[0]).anew.gpu_hours == pytest.approx(2.25 * hours)
    alone = planned(tmp_path, "train.epochs=1", "runs={flow: {}}")
    assert answer(alone, CACHE).answer == "cache for one pass: extract, train, delete"


def test_the_smaller_amount_decides_and_both_are_said(tmp_path: Path) -> None:
    """13.2 TB for a year against 60 passes of about 21 GPU hours."""
    assert answer(planned(tmp_path), CACHE).answer == "cache"
    for per_tb_year, is_kept in ((10, True), (1000, False)):
        plan = planned(tmp_path, prices={"per_sbu": 0.01, "per_tb_year": per_tb_year})
        found = compared(plan, plan.stores[0])
        assert found.in_money is not None
        assert found.year is not None
        assert found.year == pytest.approx(plan.stores[0].stored.bytes / 1e12 * per_tb_year)
        assert found.in_money[0] == pytest.approx(0.01 * (found.keeping.sbu or 0) + found.year)
        assert found.in_money[1] == pytest.approx(0.01 * 192 * (found.anew.gpu_hours or 0))
        assert found.is_keeping_cheaper is is_kept is (found.in_money[0] <= found.in_money[1])
        said = answer(plan, CACHE)
        assert (said.answer == "cache") is is_kept
        amounts = "keeping {:,.0f} and encoding anew {:,.0f} EUR in all".format(*found.in_money)
        assert any(amounts in reason for reason in said.reasons)
        assert any("not built yet" in reason for reason in said.reasons) is not is_kept


def test_a_slow_file_system_speaks_against_keeping(tmp_path: Path) -> None:
    """One pass of two runs: encoding anew is the cheaper, the longer trainings wait for what they read."""
    epochs = "train.epochs=1"
    fast, slow = (planned(tmp_path, epochs, read_gb_per_s=speed) for speed in (100, 0.05))
    assert compared(fast, fast.stores[0]).waiting.gpu_hours == 0
    found = compared(slow, slow.stores[0])
    times = (slow.training[0].bytes_per_second("fp16") or 0) / 0.05e9
    training = sum(line.cost.gpu_hours or 0 for line in slow.training)
    assert found.waiting.gpu_hours == pytest.approx((times - 1) * training)
    assert answer(fast, CACHE).answer == "cache"
    assert answer(slow, CACHE).answer == "recomputing takes less, but is not built: cache"


def test_waiting_of_an_unknown_rate_is_bounded_by_what_is_read(tmp_path: Path) -> None:
    """Pooled embeddings: 39 GB are read in 20 s at 2 GB/s, whatever else a training does."""
    overrides = ("train.epochs=3", "runs={flow: {}}")
    plan = planned(tmp_path, *overrides, config="eva02_to_clip_pooled")
    assert plan.training[0].cost.gpu_hours is None
    found = compared(plan, plan.stores[0])
    assert found.is_most
    assert found.waiting.gpu_hours == pytest.approx(
        3 * 5 * MILLION * plan.training[0].read_bytes["fp16"] / 2e9 / 3600
    )
    assert answer(plan, CACHE).answer == "cache"
    slow = planned(tmp_path, *overrides, config="eva02_to_clip_pooled", read_gb_per_s=1e-4)
    slow = replace(slow, plan=replace(slow.plan, shards_per_job=1000))
    assert compared(slow, slow.stores[0]).is_keeping_cheaper is None, "it may wait less than that"


def test_views_are_images_on_both_sides(tmp_path: Path) -> None:
    plan = planned(tmp_path, config="views", images=100_000)
    joint = next(line for line in plan.training if line.views == 4)
    least = min(plan.training, key=lambda line: line.operations / line.views)
    ratio = sum(line.operations for line in plan.extraction) / (least.operations / least.views)
    assert answer(plan, CACHE).reasons[0].startswith(f"an image costs {ratio:.1f} times")
    assert joint.samples == 25_000


def test_configured_storage_decides_the_exit_code(tmp_path: Path) -> None:
    """The float16 tokens stay beside the int8 ones until somebody deletes them."""
    quotas = [{"paths": [str(tmp_path)], "bytes": "9 TB"}]
    int8 = "encoders.source_storage=int8"
    found = {
        (storage, count): is_configured_held(
            planned(tmp_path, *storage, images=count * MILLION, quotas=quotas)
        )
        for storage, count in (((), 3), ((), 4), ((int8,), 2), ((int8,), 3))
    }
    assert list(found.values()) == [True, False, True, False]
    plan = planned(tmp_path, int8, images=3 * MILLION, quotas=quotas)
    said = answer(plan, "does it fit as configured, int8 source?")
    assert said.answer.startswith("not while converting")
    assert any(reason.startswith("while converting it takes 11.3 TB of 9 TB") for reason in said.reasons)
    assert answer(planned(tmp_path, quotas=quotas), "does it fit as configured, fp16?").answer == "no"
    assert is_configured_held(planned(tmp_path)), "no quota is known"


def test_command_fails_where_the_configured_storage_exceeds_the_quota(tmp_path: Path) -> None:
    command = [
        *("plan", str(ROOT / "workflow/config/blip3o.yaml"), "--profile", str(ROOT / "profiles/snellius")),
        *("--images", "5M", "--results", str(tmp_path), "--data-root", "/scratch-shared/x", "--json"),
    ]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 1
    quota = json.loads(said.output)["quotas"][0]
    assert quota["holds"] == {"fp16": False, "int8 source": True, "int8 both": True}
    assert quota["holds_while_converting"]["int8 source"] is False


def test_quotas_of_the_document_count_the_tars(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    tokens, tars = plan.stores[0].stored.bytes, plan.tars.kept.bytes
    for limit, holds in ((tokens + tars // 2, False), (tokens + tars, True)):
        quotas = [{"paths": [str(tmp_path)], "bytes": f"{limit / 1000:.3f} kB"}]
        limited = planned(tmp_path, quotas=quotas)
        assert scale_json(limited)["quotas"][0]["holds"]["fp16"] is holds
        assert is_configured_held(limited) is holds


@pytest.mark.parametrize(
    ("images", "stages", "partition", "tars", "bound"),
    [
        (5 * MILLION, {}, {}, 223, "1.5 h of work"),
        (5 * MILLION, {"extract": {**EXTRACT, "minutes": 60}}, {}, 73, "the time limit of extraction"),
        (5 * MILLION, {}, {"longest_hours": 1}, 73, "the time limit of extraction"),
        (5 * MILLION, {"fetch": {"minutes": 10}}, {}, 72, "the time limit of fetching"),
        (26_050, {}, {}, 5, "a job has half of the tars at most, so that two can share them"),
        (1000, {}, {}, 1, "a job has half of the tars at most, so that two can share them"),
    ],
)
def test_tars_of_a_job_are_bound(
    tmp_path: Path, images: int, stages: dict[str, Any], partition: dict[str, Any], tars: int, bound: str
) -> None:
    """16 s to read the weights and 24.2 s for a tar: (30 min - 16 s) / 24.2 s = 73; 5 min x 50 MB/s / 206 MB = 72."""
    plan = planned(tmp_path, images=images, stages=stages, partition=partition)
    size = job_size(plan)
    assert size is not None
    assert (size.tars, size.bound) == (tars, bound)


def test_a_job_of_all_tars_or_beyond_its_limit_is_changed(tmp_path: Path) -> None:
    usual = planned(tmp_path)
    wide = replace(usual, plan=replace(usual.plan, shards_per_job=100))
    assert answer(wide, "tars in a job?").answer == "100, as it is"
    short = replace(wide, requests=replace(wide.requests, stages={"extract": {**EXTRACT, "minutes": 60}}))
    assert answer(short, "tars in a job?").answer == "73 (shards_per_job of the profile, now 100)"
    few = planned(tmp_path, images=26_050)
    assert answer(few, "tars in a job?").answer == "5 (shards_per_job of the profile, now 10)"


def test_limits_are_those_that_the_stages_estimate(tmp_path: Path) -> None:
    config = load_config(ROOT / "workflow/config/demo.yaml")
    jobs = Plan(config, Places("x", tmp_path, tmp_path)).jobs.values()
    for job in jobs:
        if job.spec.stage == "extract":
            assert job.runtime_minutes == MINUTES + MINUTES_PER_TAR * len(job.folders)
    source = (ROOT / "flowkit/stages/data_jobs.py").read_text()
    assert f"runtime_minutes={FETCHING_MINUTES}" in source
