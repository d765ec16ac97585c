"""A training that is killed with -9 again and again ends with the bits of one that ran through."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowkit.training.metrics import TIMING_KEYS

WORKER = Path(__file__).with_name("training_worker.py")
STEPS, KILLS = 100, 10
SETTINGS = {"steps": STEPS, "checkpoint_every": 4, "evaluate_every": 7, "optimizer": "muon"}


def _start(work: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(work), json.dumps(SETTINGS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _finish(work: Path) -> None:
    process = _start(work)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]


def _steps_seen(work: Path) -> int:
    metrics = work / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def _kill_after(work: Path, step: int, delay_seconds: float) -> bool:
    """Kill a training a while after it began, and after it reported `step`; False if it ended before."""
    process = _start(work)
    while process.poll() is None and _steps_seen(work) < step:
        time.sleep(0.001)
    time.sleep(delay_seconds)
    if process.poll() is not None:
        process.communicate()
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def _content(work: Path) -> dict[str, object]:
    """Everything that a training leaves, without times."""
    content: dict[str, object] = {}
    for file in (path for path in work.rglob("*") if path.is_file()):
        name = file.relative_to(work).as_posix()
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            content[name] = [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]
        elif file.name == "state.json":
            state = json.loads(file.read_text())
            state["counters"].pop("seconds")
            del state["digest"]  # is over the seconds too; the tensors are compared byte by byte
            content[name] = state
        else:
            content[name] = file.read_bytes()
    return content


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    process = _start(straight)
    while process.poll() is None and not _steps_seen(straight):
        time.sleep(0.01)
    started_seconds = time.monotonic() - began
    process.communicate()
    assert process.returncode == 0
    chance = random.Random(time.time_ns())
    moments: list[tuple[int, float]] = []
    for number in range(1, KILLS + 1):
        if number % 3 == 0:  # any moment of a start: imports, statistics, restoring
            moments.append((0, chance.uniform(0.1, 0.7) * started_seconds))
        else:
            step = max(_steps_seen(killed) + 1, number * 3 * STEPS // (4 * KILLS) - chance.randrange(3))
            moments.append((step, chance.random() * 0.05))
        assert _kill_after(killed, *moments[-1]), f"a kill came too late: {moments}"
    _finish(killed)
    assert _content(killed).keys() == _content(straight).keys(), moments
    assert _content(killed) == _content(straight), moments
