"""Trainings of several nodes and processes on a real Slurm give what one process gives, also when interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cluster import Cluster
from jobs_material import LOOP, STEP, Training, errors, restarts, set_steps
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TWO_BY_TWO = {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2, "memory_gb": 8}
BOUND = 1e-9
"""Norm of the difference of all parameters, float64, after 20 steps."""


def _in_double_precision(training: Training) -> None:
    """Let a copy of the project train in float64, where only the order of sums is left to differ."""
    project = training.project
    project.edit(
        "flowkit/training/run.py",
        "seed=config.seed).to(self._device)",
        "seed=config.seed).to(self._device).double()",
    )
    loader = project.folder / "flowkit/features/loader.py"
    loader.write_text(loader.read_text().replace("torch.float32", "torch.float64"))


def _parameters(training: Training) -> dict[str, torch.Tensor]:
    (file,) = training.folder.glob("[0-9a-f]*/model.safetensors")
    return load_file(file)


def _train_alone(training: Training) -> dict[str, torch.Tensor]:
    """The parameters that one process gets, which are then removed."""
    training.project.flowkit("train", "--config", "tiny.yaml", "--run", training.run)
    alone = _parameters(training)
    training.folder.rename(training.folder.with_name("alone"))
    return alone


def _difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return float(sum((ours[name].double() - theirs[name].double()).square().sum() for name in ours) ** 0.5)


@pytest.mark.parametrize("interrupted", [False, True], ids=["through", "interrupted"])
def test_two_nodes_with_two_tasks_equal_one_process(
    training: Training, cluster: Cluster, interrupted: bool
) -> None:
    set_steps(training.project, 20)
    _in_double_precision(training)
    alone = _train_alone(training)
    assert {value.dtype for value in alone.values()} == {torch.float64}
    set_steps(training.project, 20, seconds_per_step=0.5 if interrupted else 0.0)
    follower = training.start(**TWO_BY_TWO)
    if interrupted:
        training.wait_for_step(4)
        cluster.call("scancel", "--signal=USR2", str(training.job))
    assert follower.end() == 0, follower.printed[-4000:]
    assert "of=4" in follower.printed
    assert restarts(cluster, training.job) == int(interrupted)
    assert ("training resumed step=" in follower.printed) == interrupted
    assert _difference(_parameters(training), alone) <= BOUND


def test_four_processes_lose_a_node_and_resume(training: Training, cluster: Cluster) -> None:
    set_steps(training.project, 20)
    _in_double_precision(training)
    alone = _train_alone(training)
    set_steps(training.project, 20, seconds_per_step=0.5)
    follower = training.start(**{**TWO_BY_TWO, "partition": "rome", "gpus_per_node": 0})
    training.wait_for_step(6)
    with cluster.without_node_of(training.job):
        assert follower.end() == 0, follower.printed[-4000:]
    assert restarts(cluster, training.job) == 1
    assert "training resumed step=" in follower.printed
    assert _difference(_parameters(training), alone) <= BOUND


def test_sharded_training_over_two_nodes_leaves_a_whole_result(training: Training) -> None:
    config = training.project.folder / "tiny.yaml"
    config.write_text(config.read_text().replace("train: {steps: 6,", "train: {steps: 6, parallel: fsdp,"))
    _in_double_precision(training)
    alone = _train_alone(training)
    training.finish(nodes=2, tasks_per_node=1)
    assert _difference(_parameters(training), alone) <= BOUND


def test_a_failure_in_one_of_four_processes_ends_the_job(training: Training, cluster: Cluster) -> None:
    failing = "        if run.step == 3 and world.rank == 2: raise RuntimeError('rank two is out of order')\n"
    training.project.edit(LOOP, STEP, STEP + failing)
    follower = training.start(**TWO_BY_TWO)
    assert follower.end(120) == 1
    (error,) = errors(follower.printed)
    assert "RuntimeError: rank two is out of order; log " in error
    assert cluster.jobs()[training.job] == "FAILED", "no process goes on"
    assert not training.is_committed
    assert not list(Path(training.folder).glob("[0-9a-f]*/model.safetensors"))
