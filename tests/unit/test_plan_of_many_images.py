"""The plan for numbers of images that are not there: its arithmetic, its sources, and what it recommends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowkit.__main__ import app
from flowkit.config import load_config
from flowkit.encoders.token_shapes import encoder_shape
from flowkit.errors import ConfigError
from flowkit.paths import Places
from flowkit.planning.advice import advice
from flowkit.planning.assumptions import assumptions
from flowkit.planning.billing import machine_facts
from flowkit.planning.cards import Card
from flowkit.planning.commands import number_of_images
from flowkit.planning.fitting import chosen_storage, stored_in_all
from flowkit.planning.layout import bytes_text
from flowkit.planning.rates import decoding_rate
from flowkit.planning.scale import ScalePlan, scale_plan
from flowkit.planning.scale_text import COLUMNS, scale_json, scale_lines
from flowkit.planning.sizes import network_size
from flowkit.planning.work import encoder_operations, training_operations
from flowkit.provenance import write_json
from flowkit.stages.specs import Plan

ROOT = Path(__file__).parents[2]
EVA, CLIP, EVA_L = (
    "eva_clip:EVA-CLIP-8B",
    "open_clip:ViT-L-14-quickgelu/openai",
    "open_clip:EVA02-L-14/merged2b_s4b_b131k",
)
MILLION = 10**6
MACHINE = """
quotas:
  - {{paths: [{folder}], bytes: {limit}, files: 3000000}}
partitions:
  gpu: {{cores: 64, gpus: 4, memory_gb: 720, smallest_share: 1/4, sbu_per_gpu_hour: 192, gpu: H100, bf16_tflops: 989}}
read_gb_per_s: {reading}
prices: {{currency: EUR, per_sbu: 0.01, per_tb_year: 150}}
"""
PROFILE = """
executor: slurm
config:
  stages: {extract: {partition: gpu, gpus: 1, cpus: 16, memory_gb: 180}}
  training: {executor: slurm, partition: gpu, gpus_per_node: 1, cpus_per_task: 16, memory_gb: 180}
"""
DEVICE = "NVIDIA H100 80GB HBM3"
BENCH = [
    {"name": name, "value": value, "device": DEVICE}
    for name, value in (
        ("extraction, EVA-CLIP-8B bf16, images per second", 130.0),
        ("measured bf16 matrix rate, TFLOP/s", 700.0),
        ("extraction, EVA-CLIP-8B + ViT-L-14-quickgelu / measured matrix rate", 0.6),
        ("model on GPU, measured bf16 matrix rate, TFLOP/s", 710.0),
        ("model on GPU, training step, share of the matrix rate", 0.3),
    )
]
Planned = Callable[..., ScalePlan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """The full-size experiment on a machine that is described in words of a test."""

    def make(
        images: int = 5 * MILLION, *overrides: str, limit: str = "8 TiB", reading: float = 2
    ) -> ScalePlan:
        profile = tmp_path / "profile"
        profile.mkdir(exist_ok=True)
        (profile / "config.yaml").write_text(PROFILE)
        (profile / "machine.yaml").write_text(MACHINE.format(folder=tmp_path, limit=limit, reading=reading))
        usual = ("train.epochs=15", "encoders.target.precision=bf16")
        config = load_config(ROOT / "workflow/config/blip3o.yaml", (*usual, *overrides))
        places = Places(config.experiment, tmp_path / "results", tmp_path / "data")
        return scale_plan(Plan(config, places), profile, images)

    return make


def test_operations_are_those_of_the_published_towers() -> None:
    """3.90 TFLOP and 0.162 TFLOP for an image: two operations for each of 1.95 and 0.081 T multiplications."""
    assert encoder_operations(EVA) == pytest.approx(3.90e12, rel=0.002)
    assert encoder_operations(CLIP) == pytest.approx(0.162e12, rel=0.002)
    assert encoder_operations(EVA_L) == pytest.approx(0.162e12, rel=0.002)
    width, layers, tokens = 1024, 24, 257
    matrices, attention = tokens * 12 * width**2, 2 * tokens**2 * width
    assert encoder_operations(CLIP) == pytest.approx(2 * layers * (matrices + attention), rel=0.01)


def test_operations_of_training_are_three_passes_of_the_matrices(planned: Planned) -> None:
    """Six operations for each weight that a token passes; those of the modulation are passed once in an image."""
    plan = planned(1000, "data.layout=patches")
    source, target = (replace(encoder_shape(name), tokens=256) for name in (EVA, CLIP))
    model = tuple(plan.plan.config.run("flow").model.model_dump().items())
    operations, network = training_operations(model, source, target), network_size(model, source, target)
    attention = 3 * 12 * 2 * 4 * 256**2 * 768
    no_gradient = 2 * 256 * 4096 * (3541 + 768)  # nobody asks for that of the source
    expected = 6 * network.matrix_parameters * 256 + attention - no_gradient
    assert operations == pytest.approx(expected, rel=0.01)
    everything = 6 * network.parameters * 256 + attention
    assert 0.55 < operations / everything < 0.7, (
        "counting every weight for every token would be half as much again"
    )
    assert plan.training[0].operations == operations


@pytest.mark.parametrize(("share", "per_second", "hours"), [(0.35, 85, 16), (0.50, 122, 11)])
def test_hours_of_extraction_are_those_of_the_paper_plan(
    share: float, per_second: float, hours: float
) -> None:
    """5 M images through both towers on an H100 at 35 and 50 % of 989 TFLOP/s: 16 and 11 GPU hours."""
    rates = [share * 989e12 / encoder_operations(name) for name in (EVA, CLIP)]
    pair = 1 / sum(1 / rate for rate in rates)
    assert pair == pytest.approx(per_second, rel=0.01)
    assert 5 * MILLION / pair / 3600 == pytest.approx(hours, rel=0.04)


def test_storage_is_that_of_the_paper_plan(planned: Planned) -> None:
    """13.1 TB as float16, 7.9 TB with the source as int8, 6.6 TB with both, for 5 M images."""
    plan = planned()
    stored = {line.storage: line.stored.bytes / 1e12 for line in plan.stores}
    assert stored == pytest.approx({"fp16": 13.1, "int8 source": 7.9, "int8 both": 6.6}, rel=0.01)
    by_hand = 257 * (4096 + 1024) * 2 + (1280 + 768) * 2
    for line in plan.stores[:1]:
        assert line.image_bytes == pytest.approx(by_hand, rel=0.001)
        assert line.read_bytes["cls_patches"] == line.read_bytes["patches"] == 257 * 5120 * 2 + 2 * 4
        assert line.read_bytes["pooled"] == 2048 * 2 + 2 * 4
    assert plan.store("int8 both").read_bytes["patches"] == 257 * 5120 + 2 * 257 * 4 + 4 * 4
    exact = {name: plan.store(name).converting.bytes / 1e12 for name in ("int8 source", "int8 both")}
    assert exact == pytest.approx({"int8 source": 5 * 257 * 4096 * 2e-6, "int8 both": 13.1}, rel=0.01)
    files = 8 + 3 * 2 + 3  # a result and, of two arrays, folder, document and data; a document and two tables
    assert plan.stores[0].stored.files == 2 * plan.tars.count * files + 10
    hundred = planned(500 * MILLION)
    assert hundred.stores[0].stored.bytes == pytest.approx(100 * plan.stores[0].stored.bytes, rel=0.001)


def test_reading_and_cost_follow_the_rate(planned: Planned) -> None:
    plan = planned()
    line = plan.training[0]
    assert line.rate.per_second == pytest.approx(0.35 * 989e12 / line.operations)
    assert line.cost.gpu_hours is not None
    assert line.bytes_per_second("fp16") == line.rate.per_second * 2_631_688
    assert line.cost.gpu_hours == pytest.approx(15 * 5 * MILLION / line.rate.per_second / 3600)
    assert line.cost.sbu == pytest.approx(192 * line.cost.gpu_hours), "a quarter of a node of four GPUs"
    assert line.cost.money == pytest.approx(0.01 * 192 * line.cost.gpu_hours)
    assert line.read_bytes["fp16"] * line.samples_seen == pytest.approx(197e12, rel=0.01)
    wide = planned(5 * MILLION, "train.steps=1000", "train.epochs=null")
    assert wide.training[0].epochs == 1000 * 128 / (5 * MILLION)


def test_jobs_follow_the_tars(planned: Planned) -> None:
    plan = planned(5 * MILLION, "datasets.blip3o-short.samples_per_shard=2500")
    assert (plan.tars.count, plan.tars.images) == (2000, 2500)
    assert plan.jobs == {"fetch": 63, "extract": 126}
    hours = plan.extraction[0]
    loading = 32_883_305_721 / 2e9
    assert hours.rate.per_second is not None
    assert hours.job_hours == pytest.approx((32 * 2500 / hours.rate.per_second + loading) / 3600)
    assert hours.cost.gpu_hours == pytest.approx(
        (5 * MILLION / hours.rate.per_second + 63 * loading) / 3600
    ), "each job loads the weights"
    assert planned(5 * MILLION, "encoders.source_storage=int8").jobs["convert"] == 60
    assert plan.order_bytes == 5 * MILLION * (12 + 24)


def test_listed_tars_tell_their_bytes_and_nothing_is_asked_of_the_network(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.stages.datasets.list_tars_of_hub", pytest.fail)
    plan = planned()
    assert any(one.what == "bytes of an image" for one in assumptions(plan))
    places = plan.plan.places
    listed = [{"name": f"{n:05d}.tar", "bytes": 10**8 * (n + 1), "sha256": f"{n:064x}"} for n in range(3)]
    name = plan.dataset.repository
    write_json(
        places.listing(name, "main"), {"repository": name, "revision": "main", "commit": "c", "tars": listed}
    )
    plan = planned()
    assert plan.tars.bytes == 2 * 10**8
    assert not any(one.what == "bytes of an image" for one in assumptions(plan))


def test_measured_rates_come_first_and_are_named(planned: Planned) -> None:
    plan = planned()
    bench = plan.plan.places.results / "bench"
    write_json(bench / "gpu.json", BENCH)
    assert not any("rate of" in one.what for one in assumptions(planned()))
    eva, clip = planned().extraction
    assert (eva.rate.per_second, eva.rate.source) == (130.0, f"gpu.json on {DEVICE}")
    assert clip.rate.per_second == pytest.approx(0.6 * 700e12 / encoder_operations(CLIP))
    assert clip.rate.source.startswith("60% of 700 TFLOP/s, gpu.json")
    assert planned().training[0].rate.per_second == pytest.approx(0.3 * 710e12 / plan.training[0].operations)
    other = [{**row, "device": "NVIDIA A100"} for row in BENCH]
    write_json(bench / "gpu.json", other)
    assert not planned().extraction[0].rate.is_measured, "another card says nothing of this one"
    write_json(bench / "gpu.json", [{**row, "device": "AMD EPYC, 2 cores"} for row in other])
    assert not planned().training[0].rate.is_measured


def test_run_records_of_the_same_work_are_rates(planned: Planned) -> None:
    plan = planned()
    places, config = plan.plan.places, plan.plan.config
    host = {"accelerator": {"name": "NVIDIA H100", "count": 1}}
    encoder_id = plan.plan.encoder_id(config.encoders.source)
    for number, rate in enumerate((90.0, 100.0, 300.0)):
        folder = places.store("any", encoder_id, f"{number}.tar")
        write_json(folder / "run.json", {"host": host, "rates": {"images_per_s": rate}})
    found = planned().extraction[0].rate
    assert (found.per_second, found.is_measured, found.source) == (
        100.0,
        True,
        "3 extracted tars, NVIDIA H100",
    )
    sections = config.run("flow")
    values = {
        "model": sections.model.model_dump(),
        "objective": sections.objective.model_dump(),
        "train": sections.train.model_dump(),
        "data": config.data.model_dump(),
        "encoders": config.encoders.model_dump(),
    }
    spec = {"values": values, "experiment": "small", "target": {"run": "flow"}}
    record = {"host": host, "rates": {"samples_per_s": 4000.0}, "spec": spec, "tasks": 4}
    write_json(places.results / "small/runs/flow/train/run.json", record)
    write_network(places.results / "small/runs/flow/train", views=1)
    flow, regression = planned().training
    assert (flow.rate.per_second, flow.rate.source) == (1000.0, "small/flow, NVIDIA H100")
    assert not regression.rate.is_measured, "it is another objective"
    assert planned(5 * MILLION, "model.size=large").training[0].rate.is_measured is False


def write_network(folder: Path, views: int) -> None:
    write_json(folder / "manifest.json", {"content": "one"})
    write_json(folder / "one/config.json", {"network": {"views": views}})


def test_decoding_holds_a_fast_encoder_up(planned: Planned) -> None:
    assert decoding_rate("exact", 16).per_second == 2896
    by_card = 0.425 * 989e12 / encoder_operations(CLIP)
    assert planned().extraction[1].rate.per_second == pytest.approx(min(2896, by_card))
    fast = decoding_rate("fast", 0)
    assert (fast.per_second, fast.source) == (458, "1 core to decode, 458 images/s each")
    assert fast.why == "no profile sets stages.extract.cpus, so extraction asks for one core"
    slow = planned()
    facts = {**slow.requests.stages, "extract": {"partition": "gpu", "gpus": 1, "cpus": 1}}
    held_up = replace(slow, requests=replace(slow.requests, stages=facts))
    assert [line.rate.per_second for line in held_up.extraction][1] == 181
    reasons = {one.value: one.why for one in assumptions(held_up)}
    assert "640 x 480" in reasons["1 core to decode, 181 images/s each"]
    write_json(slow.plan.places.results / "bench/gpu.json", BENCH)
    held_up = replace(slow, requests=replace(slow.requests, stages=facts))
    assert [line.rate.per_second for line in held_up.extraction] == [130, 181], (
        "a bench decoded with its own cores"
    )


def test_what_fits_is_recommended_with_its_figures(planned: Planned) -> None:
    def answers(plan: ScalePlan) -> dict[str, str]:
        return {one.question.split("?")[0]: one.answer for one in advice(plan)}

    roomy, usual, tight = planned(limit="15 TB"), planned(), planned(limit="1 TB")
    assert answers(roomy)["fp16 or int8"] == "fp16"
    assert answers(usual)["fp16 or int8"] == "int8 source"
    assert any("in parts" in reason for one in advice(usual) for reason in one.reasons), (
        "both do not fit beside"
    )
    assert answers(tight)["fp16 or int8"].startswith("neither fits; int8 source holds 601,")
    assert chosen_storage(tight) is None
    cache = "cache the tokens, or recompute them in every pass"
    assert (answers(usual)[cache], answers(tight)[cache][:9]) == (
        "recomputing takes less, but is not built: cache",
        "recompute",
    )
    draws = "noise draws for each loaded sample of flow, regression"
    asked = usual.training[0].bytes_per_second("int8 source") / 1e9
    assert answers(planned(reading=asked * 1.01))[draws] == "1"
    assert answers(planned(reading=asked / 2.5))[draws] == "3"
    assert "one data set" not in answers(usual)
    assert answers(planned(500 * MILLION))["one data set"].startswith("no: 20 data sets")


def test_room_of_a_quota_is_what_really_fits(planned: Planned) -> None:
    room = planned().own_quota
    assert room is not None
    for storage, images in room.images.items():
        assert images is not None
        for count, fits in ((int(images * 0.995), True), (int(images * 1.005), False)):
            plan = planned(count)
            assert plan.own_quota is not None
            assert plan.own_quota.holds(stored_in_all(plan, plan.store(storage))) is fits
    few_files = room.quota.model_copy(update={"files": 1000})
    plan = planned()
    facts = plan.facts.model_copy(update={"quotas": (few_files,)})
    limited = ScalePlan(plan.plan, plan.requests, facts, plan.images).own_quota
    assert limited is not None
    assert limited.images["fp16"] == int(1000 / (stored_in_all(plan, plan.stores[0]).files / plan.images))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5M", 5 * MILLION),
        ("1.5M", 1_500_000),
        ("500M", 500 * MILLION),
        ("120k", 120_000),
        ("5,000,000", 5 * MILLION),
        ("7828", 7828),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, count: int) -> None:
    assert number_of_images(text) == count


@pytest.mark.parametrize("text", ["", "M", "5X", "-5M", "0", "5 M", "1e6"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number of images, for instance 5M"):
        number_of_images(text)


@pytest.mark.parametrize("config", ["demo", "blip3o", "eva02_to_clip_pooled", "views"])
@pytest.mark.parametrize("images", [1, 5 * MILLION, 500 * MILLION])
def test_text_fits_and_document_holds_it(tmp_path: Path, config: str, images: int) -> None:
    loaded = load_config(ROOT / f"workflow/config/{config}.yaml")
    plan = scale_plan(Plan(loaded, Places("x", tmp_path, tmp_path / "data")), None, images)
    lines = list(scale_lines(plan))
    assert all(len(line) <= COLUMNS for line in lines), max(lines, key=len)
    document = json.loads(json.dumps(scale_json(plan)))
    assert document["images"] == images
    assert bytes_text(document["stores"][0]["stored"]["bytes"]) in "\n".join(lines)
    assert [one["answer"] for one in document["advice"]] == [one.answer for one in advice(plan)]


def test_command_prints_text_or_json_and_says_what_does_not_fit(tmp_path: Path) -> None:
    config, folder = (
        str(ROOT / "workflow/config/blip3o.yaml"),
        ["--results", str(tmp_path), "--data-root", "/scratch-shared/x"],
    )
    snellius = ["--profile", str(ROOT / "profiles/snellius")]
    fits = CliRunner().invoke(app, ["plan", config, *folder, *snellius, "--images", "3M"])
    assert fits.exit_code == 0, fits.output
    assert "blip3o-short with 3,000,000 images" in fits.output
    assert "SBU and money" not in fits.output
    too_many = CliRunner().invoke(app, ["plan", config, *folder, *snellius, "--images", "500M", "--json"])
    assert too_many.exit_code == 1
    said = {one["question"]: one["answer"] for one in json.loads(too_many.output)["advice"]}
    assert said["cache the tokens, or recompute them in every pass?"].startswith("recompute")
    plain = CliRunner().invoke(
        app, ["plan", str(ROOT / "tests/workflow/tiny.yaml"), "--results", str(tmp_path), "--json"]
    )
    assert {"stored", "stages", "reading", "warnings"} <= json.loads(plain.output).keys()


def test_cards_of_snellius_are_named() -> None:
    partitions = machine_facts(ROOT / "profiles/snellius").partitions
    assert {name: one.gpu for name, one in partitions.items() if one.gpu} == {
        "gpu_a100": "A100",
        "gpu_h100": "H100",
    }
    assert [(one.bf16_tflops, one.fp32_tflops) for one in partitions.values() if one.gpu] == [
        (312, 19.5),
        (989, 67),
    ]
    assert Card("H100", {}, "gpu", is_named=True).is_called("NVIDIA H100 80GB HBM3")
    assert not Card("H100", {}, "gpu", is_named=True).is_called("NVIDIA A100-SXM4-40GB")
