"""Several processes (gloo) against one: the same batches, draws and, up to rounding, the same weights."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from flowkit.training.metrics import TIMING_KEYS

WORKER = Path(__file__).with_name("training_worker.py")


def _run(work: Path, *options: str, processes: int = 1, **overrides: object) -> Path:
    """Train in `work` with some processes and return it; every process must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in world.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, str(WORKER), str(work), json.dumps(overrides), *options]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    return work


def _parameters(work: Path, step: int) -> dict[str, Tensor]:
    tensors = load_file(work / f"checkpoints/step-{step:08d}/tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("network/", "average/"))}


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    squares = [(one[name].double() - other[name].double()).square().sum() for name in one]
    return float(sum(squares)) ** 0.5


WAYS = {
    "two processes": {"processes": 2},
    "two processes with shards": {"processes": 2, "parallel": "fsdp"},
    "two micro-batches": {"gradient_accumulation": 2},
    "two processes, two micro-batches": {"processes": 2, "gradient_accumulation": 2},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("alone"), "double", steps=20, checkpoint_every=20)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in float32 that stands at step 5."""
    work = _run(tmp_path_factory.mktemp("begun"), steps=6, checkpoint_every=5)
    shutil.rmtree(work / "checkpoints/step-00000006")
    return work


@pytest.mark.parametrize("way", WAYS)
def test_weights_after_twenty_steps_are_those_of_one_process(alone: Path, tmp_path: Path, way: str) -> None:
    """In float64, where rounding leaves room for nothing else."""
    shared = _run(tmp_path, "double", steps=20, checkpoint_every=20, **WAYS[way])
    expected = _parameters(alone, 20)
    assert _distance(_parameters(shared, 20), expected) <= 1e-9
    moved = _distance(expected, _parameters(_run(tmp_path / "other", "double", steps=20, seed=4), 20))
    assert moved > 1, "the bound means something"


@pytest.mark.parametrize("way", WAYS)
def test_one_step_from_the_same_state_agrees_in_float32(begun: Path, tmp_path: Path, way: str) -> None:
    one, other = (shutil.copytree(begun, tmp_path / name) for name in ("one", "other"))
    _run(one, steps=6, checkpoint_every=1)
    _run(other, steps=6, checkpoint_every=1, **WAYS[way])
    assert _distance(_parameters(one, 6), _parameters(other, 6)) <= 1e-6


def test_metrics_are_those_of_the_whole_batch(alone: Path, tmp_path: Path) -> None:
    shared = _run(tmp_path, "double", steps=20, processes=2)
    for one, other in zip(*((_lines(work)) for work in (alone, shared)), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - set(TIMING_KEYS):
            if one[name] is None:  # no image had such a time
                assert other[name] is None, name
            else:
                assert other[name] == pytest.approx(one[name], rel=1e-9), name


def _lines(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
