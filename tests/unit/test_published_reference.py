"""The published network that the model's bars are measured against, and the bars themselves at a tiny size."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import model_bench
import model_gpu_bench
from model_peers import (
    OURS,
    PUBLISHED,
    Inputs,
    build,
    count_work,
    fresh_train_pass,
    kept_bytes,
    measure,
    our_config,
)
from published_dit import PublishedConfig, PublishedDiT, rotary_table, turned

from flowkit.model.sizes import SIZES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = PublishedConfig(
    source_width=48,
    target_width=20,
    grid=(3, 2),
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=40,
    adapter_layers=3,
)
BASE_PARAMETERS = {
    "position table": 196_608,
    "input": 787_200,
    "time": 787_968,
    "adapter": 44_176_734,
    "self-attention": 18_874_368,
    "cross-attention": 18_874_368,
    "feed-forward": 56_623_104,
    "layer scales": 27_648,
    "norms": 110_592,
    "modulation": 85_045_248,
    "output": 1_970_176,
}
"""As counted in the published network at base size."""


def _part(name: str) -> str:
    """Return the part of the published count that a parameter belongs to."""
    top, _, rest = name.partition(".")
    tops = {"position_TD": "position table", "norm": "output", "modulation": "output"}
    if top != "blocks":
        return tops.get(top, top)
    inner = {
        ".attention.": "self-attention",
        ".cross.": "cross-attention",
        ".feed_forward.": "feed-forward",
        ".layer_scale_D": "layer scales",
        ".linear.": "modulation",
        "norm": "norms",
    }
    return next(part for mark, part in inner.items() if mark in f".{rest}")


def test_every_part_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = PublishedDiT(PublishedConfig())
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[_part(name)] += parameter.numel()
    assert dict(counts) == BASE_PARAMETERS
    assert counts.total() == 227_474_014


def test_both_sides_do_the_published_work_at_base_size() -> None:
    published, ours = count_work(PUBLISHED, PublishedConfig()), count_work(OURS, PublishedConfig())
    assert published.forward == pytest.approx(76.7e9, rel=1e-3)
    assert ours == published


def test_base_size_is_ours_too() -> None:
    config = our_config(PublishedConfig())
    assert {key: getattr(config, key) for key in SIZES["base"]} == SIZES["base"]


@pytest.mark.parametrize("side", [OURS, PUBLISHED])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_reach_all_that_is_used(side: str, bf16: bool) -> None:
    model, inputs = build(side, TINY), Inputs.make(TINY, 2)
    assert model(inputs.x_BTC, inputs.t_B, inputs.source_BTE).shape == (2, 6, 20)
    fresh_train_pass(model, inputs, bf16=bf16)
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert {name.rpartition(".")[2] for name in unused} <= {"position_TD", "null_D"}
    assert all(
        parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None
    )


def test_kept_memory_is_counted_once_and_without_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(20, 20)

        def forward(self, x: Tensor, t: Tensor, source: Tensor) -> Tensor:
            y = self.linear(x)
            return y * y.view(-1, 20).view_as(y)

    inputs = Inputs.make(TINY, 2)
    assert kept_bytes(Twice(), inputs) == 2 * 2 * 6 * 20 * 4  # the input and y, in float32


def test_attention_is_the_softmax_of_products() -> None:
    attention = build(PUBLISHED, TINY).blocks[0].cross
    x_TD, source_SD = torch.randn(2, 6, TINY.width, generator=torch.Generator().manual_seed(1))
    heads = []
    for head in range(TINY.heads):
        of_query = slice(head * TINY.head_width, (head + 1) * TINY.head_width)
        group = head // (TINY.heads // TINY.kv_heads)
        of_key = slice(group * TINY.head_width, (group + 1) * TINY.head_width)
        q, k = x_TD @ attention.query.weight[of_query].T, source_SD @ attention.key.weight[of_key].T
        logits = q @ k.T / math.sqrt(TINY.head_width)
        heads.append(logits.softmax(-1) @ (source_SD @ attention.value.weight[of_key].T))
    expected = torch.cat(heads, -1) @ attention.output.weight.T
    torch.testing.assert_close(attention(x_TD[None], source_SD[None], positions=False)[0], expected)


def test_positions_depend_on_row_and_column_and_not_on_depth() -> None:
    cosine, sine = rotary_table((3, 2), 8, torch.device("cpu"))
    assert not sine[0].any()
    torch.testing.assert_close(sine[3, :4], torch.tensor([1.0, 0.01, 1.0, 0.01]).sin())
    assert not sine[:, 4:].any()
    x = torch.randn(1, 2, 6, 8)
    torch.testing.assert_close(turned(x, cosine, sine)[..., 4:], x[..., 4:] + x[..., :4] * sine[:, 4:])


def test_works_are_done_in_turn_and_the_first_does_not_count() -> None:
    done: list[str] = []
    found = measure({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2)
    assert "".join(done) == "ab" + "ab" + "ba"
    assert {name: len(turns) for name, turns in found.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("instructions", [False, True])
def test_every_row_of_the_model_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: bool
) -> None:
    monkeypatch.setattr(model_bench, "has_bf16_instructions", lambda: instructions)
    bench = model_bench.Bench(TINY, repeats=3, passes=1, matrix=64)
    rows = {row["name"]: row for row in model_bench.rows(tmp_path, bench=bench)}
    bf16 = rows["model, forward + backward in bf16 / published in fp32"]
    assert (bf16["holds"] is None) == ("reason" in bf16) == (not instructions)
    assert bf16["median_of"] == (3 if instructions else 1)
    memory = rows["model, peak memory of forward + backward / published, batch 2"]
    assert memory["ours_peak_gib"] >= memory["ours_imports_gib"] > 0
    assert sum(row["demand"] is not None for row in rows.values()) == 4 + instructions
    assert all(row["value"] > 0 for row in rows.values())


def test_a_sampling_is_put_together_from_single_calls() -> None:
    seconds = model_bench.Seconds
    turns = {
        model_bench.ENCODE: [seconds(2.0, 4.0)],
        OURS: [seconds(1.0, 2.0)],
        PUBLISHED: [seconds(3.0, 12.0)],
    }
    many, one = model_bench.sampling_rows(turns)
    assert many["value"] == pytest.approx(300 / 102)
    assert one["value"] == pytest.approx(300 / 3)
    assert many["wall"] == pytest.approx(1200 / 204, abs=1e-3)


def test_every_gpu_row_runs_on_the_cpu() -> None:
    bench = model_gpu_bench.GpuBench(
        TINY,
        batch=2,
        repeats=2,
        steps=2,
        evaluations=(3, 1),
        matrix=32,
        products=2,
        device="cpu",
        backend="aot_eager",
    )
    rows = {row["name"]: row for row in model_gpu_bench.gpu_rows(bench)}
    assert len(rows) == 7
    assert all(row["value"] > 0 for row in rows.values())
    assert rows["model on GPU, seconds per training step, batch 2"]["holds"]


def test_gpu_rows_import_on_a_bare_image() -> None:
    missing = ("pydantic", "snakemake", "zarr", "open_clip", "typer", "timm", "pyarrow", "PIL")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); import model_gpu_bench"
    root = BENCHMARKS.parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{BENCHMARKS}:{root}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
