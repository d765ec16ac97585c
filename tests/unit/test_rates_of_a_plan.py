"""Rates of a plan of N images: precision, cards, what counts as the same work, and what nobody can tell."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flowkit.config import load_config
from flowkit.errors import ConfigError
from flowkit.paths import Places
from flowkit.planning.advice import advice
from flowkit.planning.assumptions import assumptions
from flowkit.planning.billing import Partition
from flowkit.planning.cards import Card, card_of
from flowkit.planning.rates import Rates, Work
from flowkit.planning.scale import ScalePlan, scale_plan
from flowkit.planning.scale_text import scale_json, scale_lines
from flowkit.planning.work import encoder_operations
from flowkit.provenance import write_json
from flowkit.stages.specs import Plan

ROOT = Path(__file__).parents[2]
CLIP = "open_clip:ViT-L-14-quickgelu/openai"
H100 = Card("H100", {"bf16": 989.0, "fp32": 67.0}, "gpu", is_named=True)
MATRICES = [
    {"name": name, "value": value, "device": "NVIDIA H100"}
    for name, value in (
        ("model on GPU, measured bf16 matrix rate, TFLOP/s", 700.0),
        ("model on GPU, training step, share of the matrix rate", 0.3),
    )
]
LARGE = 10**12
"""Operations of a sample of which nobody doubts that they fill a GPU."""


def planned(folder: Path, *overrides: str, config: str = "blip3o", images: int = 10**6) -> ScalePlan:
    loaded = load_config(ROOT / f"workflow/config/{config}.yaml", overrides)
    return scale_plan(Plan(loaded, Places("x", folder / "results", folder / "data")), None, images)


def partition(**more: object) -> Partition:
    return Partition.model_validate({"cores": 64, "gpus": 4, "memory_gb": 720, **more})


def test_precision_decides_the_rate_and_is_said(tmp_path: Path) -> None:
    """fp32, the default, runs at 67 of 989 TFLOP/s."""
    half = planned(tmp_path)
    single = planned(tmp_path, "train.precision=fp32")
    fp16 = planned(tmp_path, "train.precision=fp16")
    rates = [plan.training[0].rate.per_second for plan in (half, fp16, single)]
    assert rates[0] == rates[1] == pytest.approx(0.35 * 989e12 / half.training[0].operations)
    assert rates[2] == pytest.approx(0.35 * 67e12 / single.training[0].operations)
    assert (single.training[0].times_in_bf16, half.training[0].times_in_bf16) == (
        pytest.approx(989 / 67),
        None,
    )
    target = single.extraction[1]
    assert target.precision == "fp32"
    in_fp32 = 0.425 * 67e12 / target.operations
    assert target.rate.per_second == pytest.approx(in_fp32)
    assert target.times_in_bf16 == pytest.approx(181 / in_fp32), "then one core would hold it up by decoding"
    text = "\n".join(scale_lines(single))
    assert any(line.split()[:2] == ["flow", "fp32"] for line in text.splitlines())
    assert "train of flow: about 14.8 times as fast" in text
    assert "train of flow: about" not in "\n".join(scale_lines(half))
    assert scale_json(single)["training"][0]["precision"] == "fp32"


def test_fp32_of_an_encoder_is_slower(tmp_path: Path) -> None:
    rates = Rates(Places("x", tmp_path, tmp_path))
    operations = encoder_operations(CLIP)
    plenty = rates.training({}, 1, Work(LARGE, "bf16", 64), H100)
    found = [
        rates.extraction("id", CLIP, Work(operations, precision, 64), H100, plenty).per_second
        for precision in ("bf16", "fp16", "fp32")
    ]
    assert plenty.per_second == pytest.approx(0.35 * 989)
    assert found == [plenty.per_second, plenty.per_second, pytest.approx(0.425 * 67e12 / operations)]


def test_bench_in_bf16_says_nothing_of_fp32(tmp_path: Path) -> None:
    places = Places("x", tmp_path, tmp_path)
    write_json(tmp_path / "bench/gpu.json", MATRICES)
    found = [
        Rates(places).training({}, 1, Work(LARGE, precision, 64), H100)
        for precision in ("bf16", "fp32", "fp16")
    ]
    assert [rate.is_measured for rate in found] == [True, False, False]
    assert [rate.per_second for rate in found] == pytest.approx([0.3 * 700, 0.35 * 67, 0.35 * 989])


@pytest.mark.parametrize(
    "content", [{"rows": []}, [{"name": "x"}], ["row"], [[1]], [{"name": "a", "value": "1"}], 7]
)
def test_report_of_another_shape_is_skipped_by_name(
    tmp_path: Path, content: object, caplog: pytest.LogCaptureFixture
) -> None:
    places = Places("x", tmp_path, tmp_path)
    write_json(tmp_path / "bench/a.json", content)
    write_json(tmp_path / "bench/b.json", MATRICES)
    with caplog.at_level(logging.WARNING, "flowkit"):
        assert (
            Rates(places)
            .training({}, 1, Work(LARGE, "bf16", 64), H100)
            .source.endswith("b.json on NVIDIA H100")
        )
    assert f"file={tmp_path / 'bench/a.json'} skipped" in caplog.text


def test_damaged_report_is_skipped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/a.json").write_text("[{")
    with caplog.at_level(logging.WARNING, "flowkit"):
        found = Rates(Places("x", tmp_path, tmp_path)).training({}, 1, Work(LARGE, "bf16", 64), H100)
    assert not found.is_measured
    assert caplog.text.count("a.json skipped") == 1, "said once, not for each row that is looked for"


@pytest.mark.parametrize(
    ("views", "of_network", "wanted", "is_same"),
    [("joint", 4, 4, True), ("joint", 1, 4, False), ("single", 1, 1, True), ("joint", None, 1, False)],
)
def test_rate_of_other_views_is_not_taken(
    tmp_path: Path, views: str, of_network: int | None, wanted: int, is_same: bool
) -> None:
    """A sample of four views is four times the work; where nothing tells the views, nothing was measured."""
    values = {"model": {"views": views}, "data": {"layout": "cls_patches", "source_tokens": "all"}}
    folder = tmp_path / "e/runs/flow/train"
    spec = {"values": values, "experiment": "e", "target": {"run": "flow"}}
    host = {"accelerator": {"name": "NVIDIA H100"}}
    write_json(folder / "run.json", {"host": host, "rates": {"samples_per_s": 100.0}, "spec": spec})
    if of_network is not None:
        write_json(folder / "manifest.json", {"content": "one"})
        write_json(folder / "one/config.json", {"network": {"views": of_network}})
    rates, work = Rates(Places("x", tmp_path, tmp_path)), Work(LARGE, "bf16", 64)
    assert rates.training(values, wanted, work, H100).is_measured is is_same
    other = {**values, "data": {"layout": "cls_patches", "source_tokens": "cls"}}
    assert not rates.training(other, wanted, work, H100).is_measured, "other source tokens"


def test_named_card_has_its_own_rate_or_none() -> None:
    a100 = card_of("gpu", partition(gpu="A100"))
    assert (a100.peak("bf16"), a100.peak("fp16"), a100.peak("fp32")) == (312, 312, 19.5)
    assert (
        a100.assumption("fp32") == "fp32_tflops of gpu is not set in machine.yaml; data sheet of the SXM card"
    )
    given = card_of("gpu", partition(gpu="H100", bf16_tflops=756))
    assert (given.peak("bf16"), given.assumption("bf16")) == (756, "")
    unknown = card_of("gpu", partition(gpu="L40S", bf16_tflops=362))
    assert unknown.peak("bf16") == 362
    with pytest.raises(ConfigError, match=r"partitions.gpu: fp32_tflops of L40S is not set"):
        unknown.peak("fp32")
    nobody = card_of("", None)
    assert (nobody.name, nobody.peak("fp32")) == ("H100", 67)
    assert nobody.assumption("bf16").startswith("no GPU is named")
    assert card_of("gpu", partition(bf16_tflops=100)).peak("bf16") == 100, "a rate without a name is one"


def test_no_rate_is_guessed_of_small_networks(tmp_path: Path) -> None:
    """10 ms at 35 % of 989 TFLOP/s are 3.5 TFLOP."""
    rates = Rates(Places("x", tmp_path, tmp_path))
    found = [rates.training({}, 1, Work(1e10, "bf16", batch), H100) for batch in (345, 347)]
    assert found[0].per_second is None
    assert found[0].source == "not measured, too small to guess: a batch is 3.5 TFLOP, below 3.5"
    assert found[1].per_second == pytest.approx(0.35 * 989e12 / 1e10)
    demo = planned(tmp_path, config="demo")
    assert all(line.rate.per_second is None for line in (*demo.extraction, *demo.training))
    text = "\n".join(scale_lines(demo))
    assert "not measured, too small to guess" in text
    assert "not known how many GPU h" in text
    assert not any(one.what.startswith("rate of") for one in assumptions(demo)), "it is not assumed either"
    cache = next(one for one in advice(demo) if one.question.startswith("cache"))
    assert cache.answer == "cache; which takes less is not known"
