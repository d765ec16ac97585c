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
from paired_material import FLOW, MODEL, TRAINING, Pairs

from flowkit.errors import CheckpointError, TrainingError
from flowkit.training.loop import SKIPPED_STEPS_LIMIT, TrainingResult, train
from flowkit.training.metrics import TIMING_KEYS
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


@pytest.mark.parametrize("kind", ["flow", "regression"])
def test_thirty_two_pairs_can_be_learned_by_heart(tmp_path: Path, kind: str) -> None:
    data = Pairs(32)
    config = replace(TRAINING, steps=250, batch_size=32, evaluate_every=250, checkpoint_every=250)
    objective = replace(FLOW, kind=kind, condition_dropout=0.0)
    result = train(config, objective, MODEL, data, data, tmp_path, feature_scale="factor")
    assert result.validation_r2 > 0.9
    assert result.validation_tok_cos > 0.95


def test_reduced_precision_trains_too(tmp_path: Path) -> None:
    """The weights stay float32 and end near those of full precision."""
    full, reduced = (
        _train(tmp_path / precision, config=replace(TRAINING, precision=precision))
        for precision in ("fp32", "bf16")
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
    with pytest.raises(CheckpointError, match="other tensors"):
        _train(tmp_path, model=replace(MODEL, depth=2))


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
    with pytest.raises(TrainingError, match=f"{SKIPPED_STEPS_LIMIT + 1} steps.*lower the learning rate"):
        _train(tmp_path, data=_Spoiled(64, range(1000)), config=config)


def test_features_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"target features have shape \(5, 8\).*\(5, 9\)"):
        _train(tmp_path, model=replace(MODEL, target_width=9))
