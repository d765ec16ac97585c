"""Whole trainings on small pairs: overfitting, kill and resume, non-finite steps, the final folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paired_material import FLOW, MODEL, TRAINING, LinearPairs, Pairs

from flowkit.errors import CheckpointError, TrainingError
from flowkit.model.sizes import SIZES
from flowkit.training.loop import SKIPPED_STEPS_LIMIT, TrainingResult, train
from flowkit.training.metrics import TIMING_KEYS, validate
from flowkit.translator import Translator

FOUR_PARTS = replace(
    FLOW, prediction="velocity", time_gate=False, clean_weight=0.0, velocity_weight=1.0, semantic_weight=0.5,
    cosine_weight=0.2, consistency_weight=0.3,
)  # fmt: skip


def _train(work: Path, *, objective=FLOW, data=None, config=TRAINING, model=MODEL, **rest) -> TrainingResult:
    data = data or Pairs(64)
    return train(config, objective, model, data, Pairs(16, seed=9), work, feature_scale="factor", **rest)


def _lines(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in lines]


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "metrics.jsonl")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


LEARNING = replace(
    TRAINING,
    steps=300,
    batch_size=32,
    ema_decay=0.99,
    evaluate_every=300,
    checkpoint_every=300,
    validation_samples=128,
)
DEMO = replace(MODEL, **SIZES["demo"])


@pytest.mark.parametrize("kind", ["flow", "regression"])
def test_thirty_two_pairs_can_be_learned_by_heart(tmp_path: Path, kind: str) -> None:
    data = Pairs(32)
    objective = replace(FLOW, kind=kind, condition_dropout=0.0)
    result = train(LEARNING, objective, DEMO, data, data, tmp_path, feature_scale="factor")
    assert result.validation_r2 > 0.99
    assert result.validation_tok_cos > 0.99


def test_a_known_linear_map_is_learned(tmp_path: Path) -> None:
    """On images that training has not seen."""
    data, validation = (LinearPairs(images, seed=images) for images in (4096, 128))
    objective = replace(FLOW, condition_dropout=0.0)
    result = train(LEARNING, objective, DEMO, data, validation, tmp_path, feature_scale="standardize")
    assert result.validation_r2 > 0.99


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_too(tmp_path: Path, precision: str) -> None:
    """The weights stay float32 and end near those of full precision."""
    full, reduced = (
        _train(tmp_path / name, config=replace(TRAINING, precision=name)) for name in ("fp32", precision)
    )
    assert reduced.skipped_steps == 0
    assert reduced.validation_r2 == pytest.approx(full.validation_r2, abs=0.05)
    assert _bytes(full.folder)["model.safetensors"] != _bytes(reduced.folder)["model.safetensors"]


def test_an_unknown_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'fp8'"):
        _train(tmp_path, config=replace(TRAINING, precision="fp8"))


def test_metrics_hold_every_step_and_validation_where_asked(tmp_path: Path) -> None:
    reported: list[dict[str, object]] = []
    result = _train(tmp_path, objective=FOUR_PARTS, report=reported.append)
    lines = _lines(result.folder)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_r2" in line] == [5, 10, 12]
    assert {"loss_velocity", "loss_semantic", "loss_cosine", "loss_consistency", "grad_norm"} < set(lines[0])
    assert {"error_t_0", "error_t_below_0.25", "error_t_below_1.00", "share_of_peak"} < set(reported[0])
    assert all(0 < line["share_of_peak"] < 1.5 and line["memory_mb"] > 100 for line in reported)
    assert len(reported) == 12
    assert lines[-1]["validation_r2"] == result.validation_r2


def test_equal_trainings_write_equal_bytes(tmp_path: Path) -> None:
    first, second = (_train(tmp_path / name) for name in ("a", "b"))
    other = _train(tmp_path / "c", config=replace(TRAINING, seed=4))
    assert _bytes(first.folder) == _bytes(second.folder)
    assert _lines(first.folder) == _lines(second.folder)
    assert _bytes(first.folder)["model.safetensors"] != _bytes(other.folder)["model.safetensors"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = replace(TRAINING, optimizer=optimizer)
    straight = _train(tmp_path / "straight", config=config)
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from dataclasses import replace; from pathlib import Path\n"
        "import paired_material as m; from flowkit.training.loop import train\n"
        "def report(line):\n"
        "    if line['step'] == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(replace(m.TRAINING, optimizer=sys.argv[3]), m.FLOW, m.MODEL, m.Pairs(64), m.Pairs(16, seed=9),\n"
        "      Path(sys.argv[2]), feature_scale='factor', report=report)\n"
    )
    killed = tmp_path / "killed"
    # the numbers of threads decide the order of sums, so the child has those of this process
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    here = str(Path(__file__).parent)
    ended = subprocess.run(
        [sys.executable, "-c", script, here, str(killed), optimizer], env=environment, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert not (killed / "final").exists()
    assert len((killed / "metrics.jsonl").read_text().splitlines()) == 7
    resumed = _train(killed, config=config)
    assert _bytes(resumed.folder) == _bytes(straight.folder)
    assert _lines(resumed.folder) == _lines(straight.folder)


def test_the_best_weights_on_held_out_images_are_kept_beside_the_last(tmp_path: Path) -> None:
    """A learning rate that explodes half-way, so that best and last differ."""
    steps = [line["step"] for line in _lines(_train(tmp_path / "a").folder)]
    assert steps == list(range(1, 13))
    config = replace(
        TRAINING, steps=40, learning_rate=3.0, muon_learning_rate=3.0, warmup_steps=30, ema_decay=0.0
    )
    result = _train(tmp_path / "b", config=config)
    measured = {
        line["step"]: line["validation_r2"] for line in _lines(result.folder) if "validation_r2" in line
    }
    assert result.best_validation_r2 == max(measured.values()) == measured[result.best_step]
    assert result.best_step < 40
    best, last = (Translator.load(folder) for folder in (result.folder / "best", result.folder))
    scores = [validate(one, Pairs(16, seed=9), images=16, seed=config.seed) for one in (best, last)]
    assert [score["validation_r2"] for score in scores] == pytest.approx(
        [max(measured.values()), measured[40]]
    )


def test_recomputed_blocks_change_nothing(tmp_path: Path) -> None:
    plain = _train(tmp_path / "plain")
    recomputed = _train(tmp_path / "recomputed", config=replace(TRAINING, activation_checkpointing=True))
    assert _bytes(plain.folder) == _bytes(recomputed.folder)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"batch_size=8 does not divide.*gradient_accumulation=3"):
        _train(tmp_path, config=replace(TRAINING, gradient_accumulation=3))


def test_a_finished_training_is_finished_again_without_a_step(tmp_path: Path) -> None:
    first = _train(tmp_path)
    before = _bytes(first.folder)
    reported: list[dict[str, object]] = []
    again = _train(tmp_path, report=reported.append)
    assert reported == []
    assert _bytes(again.folder) == before
    assert again == first


def test_checkpoints_of_another_network_are_refused(tmp_path: Path) -> None:
    _train(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="network depth is 1 there, 2 here"):
        _train(tmp_path, model=replace(MODEL, depth=2))
    with pytest.raises(CheckpointError, match="objective prediction is 'clean' there"):
        _train(tmp_path, objective=FOUR_PARTS)
    with pytest.raises(CheckpointError, match="training seed is 3 there, 4 here"):
        _train(tmp_path, config=replace(TRAINING, seed=4))
    with pytest.raises(CheckpointError, match="training optimizer is 'muon' there, 'adamw' here"):
        _train(tmp_path, config=replace(TRAINING, optimizer="adamw"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_training_may_go_on_under_settings_that_change_nothing(tmp_path: Path) -> None:
    first = _train(tmp_path)
    again = _train(tmp_path, config=replace(TRAINING, checkpoint_every=3, gradient_accumulation=2))
    assert again == first


def test_statistics_belong_to_their_scale_and_are_fitted_again_when_damaged(tmp_path: Path) -> None:
    straight = _bytes(_train(tmp_path / "straight").folder)
    work = tmp_path / "damaged"
    work.mkdir()
    (work / "statistics-standardize-target_covariance.safetensors").write_bytes(b"of another scale")
    (work / f"statistics-factor-{FLOW.start_noise}.safetensors").write_bytes(b"damaged")
    assert _bytes(_train(work).folder) == straight


@pytest.mark.parametrize("noise", ["isotropic", "target_covariance"])
def test_images_that_are_not_finite_are_left_out_of_the_statistics_and_named(
    tmp_path: Path, noise: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = Pairs(64)
    data.target[7, 0, 0] = float("nan")
    result = _train(tmp_path, data=data, objective=replace(FLOW, start_noise=noise))
    assert result.skipped_steps > 0
    assert "image-7" in caplog.text
    assert 0 < result.best_validation_r2 <= 1
    assert all(torch.isfinite(p).all() for p in Translator.load(result.folder).network.parameters())
    data.source[:] = float("inf")
    with pytest.raises(TrainingError, match="no training image has finite features; verify"):
        _train(tmp_path / "none", data=data)


def test_a_velocity_is_not_squeezed_through_fewer_channels(tmp_path: Path) -> None:
    narrow = replace(MODEL, width=6, heads=1, kv_heads=1)
    assert narrow.width < narrow.target_width
    velocity = replace(FOUR_PARTS, prediction="velocity")
    with pytest.raises(TrainingError, match=r"velocity of \d+ channels .* choose objective.prediction=clean"):
        _train(tmp_path, model=narrow, objective=velocity)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_train_as_plain_ones(tmp_path: Path, recompute: bool) -> None:
    config = replace(TRAINING, steps=6, compile=True, activation_checkpointing=recompute)
    plain = _lines(_train(tmp_path / "plain", config=replace(config, compile=False)).folder)
    compiled = _lines(_train(tmp_path / "compiled", config=config).folder)
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=1e-4)
    resumed = _train(tmp_path / "compiled", config=config)
    assert _lines(resumed.folder) == compiled


class _Spoiled(Pairs):
    """Pairs of which some batches hold a value that is not finite."""

    def __init__(self, images: int, spoiled_steps: range) -> None:
        super().__init__(images)
        self.spoiled_steps = spoiled_steps

    def batches(self, **arguments):
        for step, ids, source, target in super().batches(**arguments):
            if step in self.spoiled_steps:
                target = target.clone()
                target[0, 0, 0] = float("inf")
            yield step, ids, source, target


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    result = _train(tmp_path, data=_Spoiled(64, range(2, 4)))
    lines = _lines(result.folder)
    assert result.skipped_steps == 2
    assert [line["skipped_steps"] for line in lines[:5]] == [0, 0, 1, 2, 2]
    assert lines[2]["loss"] is None
    assert all(torch.isfinite(p).all() for p in Translator.load(result.folder).network.parameters())


def test_too_many_steps_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    config = replace(TRAINING, steps=SKIPPED_STEPS_LIMIT + 10)
    with pytest.raises(
        TrainingError, match=f"{SKIPPED_STEPS_LIMIT + 1} steps.*not finite: image-\\d+\\).*lower the"
    ):
        _train(tmp_path, data=_Spoiled(64, range(1000)), config=config)


def test_features_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"target features have shape \(5, 8\).*\(5, 9\)"):
        _train(tmp_path, model=replace(MODEL, target_width=9))
