"""What a plan says against what a workflow really does: its jobs, and the bytes and files that it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from support import Project

from flowkit.config import load_config
from flowkit.errors import TrainingInterrupted
from flowkit.paths import Places
from flowkit.planning.measured import Measured
from flowkit.planning.pending import State
from flowkit.planning.plan import MachinePlan, machine_plan
from flowkit.planning.plan_text import plan_lines
from flowkit.planning.sizes import Amount, checkpoint_size, network_size
from flowkit.planning.storage import training_steps
from flowkit.stages import train
from flowkit.stages.specs import Plan

WITHIN = 0.1


def planned(folder: Path, *overrides: str, results: Path | None = None) -> MachinePlan:
    """The plan of a project in `folder`."""
    config = load_config(folder / "tiny.yaml", overrides)
    places = Places(config.experiment, results or folder / "results", folder / "results/data")
    return machine_plan(Plan(config, places), None)


def to_run(plan: MachinePlan) -> set[str]:
    """Names of the jobs that will run."""
    return {name for name, state in plan.states.items() if state is State.TO_RUN}


def on_disk(folders: Iterable[Path]) -> Amount:
    """What lies in some folders, which count themselves."""
    found = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return Amount(sum(path.stat().st_size for path in found if path.is_file()), len(found))


def assert_is_near(estimate: Amount, real: Amount) -> None:
    """Bytes and files agree within a tenth."""
    assert estimate.bytes == pytest.approx(real.bytes, rel=WITHIN)
    assert estimate.files == pytest.approx(real.files, rel=WITHIN)


def test_estimates_are_what_a_finished_workflow_leaves(finished: Project) -> None:
    plan = planned(finished.folder)
    assert not to_run(plan)
    lines = {line.what: line for line in plan.stored}
    results, data = finished.folder / "results", finished.folder / "results/data"
    for dataset in ("train", "test"):
        for encoder in ("demo-eva", "demo-vit"):
            folders = data.glob(f"features/{dataset}/{encoder}-*/*")
            assert_is_near(lines[f"tokens of {dataset}, {encoder}, float16"].done, on_disk(folders))
        assert_is_near(lines[f"tars of {dataset}"].done, on_disk([data / "shards" / dataset]))
    assert_is_near(lines["pairs"].done, on_disk(data.glob("features/*/pairs-*")))
    for encoder in ("demo-eva", "demo-vit"):
        assert_is_near(lines[f"weights of {encoder}"].done, on_disk(data.glob(f"weights/{encoder}-*")))
    samples = on_disk(results.glob("tiny/runs/*/samples/*"))
    assert_is_near(lines["samples of runs and baselines"].done, samples)
    trained = on_disk(results.glob("tiny/runs/*/train"))
    assert_is_near(lines["trained weights, at the end and at the best"].done, trained)


def test_estimates_before_a_run_are_those_after_it(finished: Project, tmp_path: Path) -> None:
    shutil.copy(finished.folder / "tiny.yaml", tmp_path)
    before = {line.what: line.to_come for line in planned(tmp_path).stored}
    after = {line.what: line.done for line in planned(finished.folder).stored}
    for what, amount in after.items():
        if not what.startswith(("checkpoints", "the generation")):
            assert before[what] == amount, what


def test_checkpoint_of_a_stopped_training_has_the_estimated_size(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "stop_requested", lambda: True)
    for optimizer in ("muon", "adamw"):
        plan = planned(finished.folder, f"train.optimizer={optimizer}", results=tmp_path / optimizer)
        (job,) = plan.plan.select("train", run="flow")
        with pytest.raises(TrainingInterrupted):
            train.run(job.spec)
        (checkpoint,) = job.folders[0].glob("state/work-*/checkpoints/step-*")
        model = tuple(plan.plan.config.run("flow").model.model_dump().items())
        network = network_size(
            model, plan.data.as_read(plan.data.source), plan.data.as_read(plan.data.target)
        )
        assert_is_near(checkpoint_size(network, optimizer), on_disk([checkpoint]))
        rate = Measured(plan.data).step_rate(job)
        assert rate is not None
        assert (rate.source, rate.steps_done) == ("its own first steps", 1)


@pytest.mark.parametrize(
    "override",
    [
        "train.muon_momentum=0.8",
        "evaluation.bootstrap_draws=200",
        "encoders.batch_size=8",
        "report.title=another",
        "goals.flow_r2=0.5",
        "encoders.source_storage=int8",
        "evaluation.images=20",
    ],
)
def test_plan_names_the_jobs_that_snakemake_would_run(finished: Project, override: str) -> None:
    asked = set(finished.planned("--config", f"set={override}"))
    assert to_run(planned(finished.folder, override)) == asked


def test_plan_agrees_with_snakemake_on_an_emptied_disk(finished: Project, tmp_path: Path) -> None:
    copy = Project(tmp_path / "copy")
    shutil.copytree(finished.folder, copy.folder, symlinks=True)
    shutil.rmtree(copy.folder / "results/data/weights")
    shutil.rmtree(next(copy.folder.glob("results/data/features/train/demo-eva-*")))
    assert to_run(planned(copy.folder)) == set(copy.planned()) == set()
    (copy.folder / "results/tiny/runs/flow/evaluation/manifest.json").unlink()
    assert to_run(planned(copy.folder)) == set(copy.planned())
    (pairs,) = copy.folder.glob("results/data/features/train/pairs-*/manifest.json")
    pairs.unlink()
    assert to_run(planned(copy.folder)) == set(copy.planned())


def test_results_by_hand_that_a_dry_run_hid_are_not_planned_anew(finished: Project) -> None:
    """A dry run with other values hides them; Snakemake shows them again as soon as their values are asked for."""
    finished.flowkit("baselines", "--config", "tiny.yaml")
    finished.planned("--config", "set=evaluation.images=20")
    assert not (finished.folder / "results/tiny/runs/ridge/samples/test/manifest.json").exists()
    assert to_run(planned(finished.folder)) == set()
    assert "baselines" in to_run(planned(finished.folder, "evaluation.images=20"))
    assert finished.planned() == {}


def test_rates_come_from_finished_work_alone(finished: Project) -> None:
    longer = planned(finished.folder, "train.steps=600")
    train_line = next(line for line in longer.stages if line.stage == "train")
    assert (train_line.measured, train_line.jobs) == (2, 2)
    assert set(train_line.sources) == {"tiny/flow", "tiny/regression"}
    (job,) = longer.plan.select("train", run="flow")
    rate = Measured(longer.data).step_rate(job)
    assert rate is not None
    assert training_steps(longer.data, "flow") == 600
    estimate = Measured(longer.data).estimate(job)
    assert estimate is not None
    assert estimate.hours == pytest.approx(600 * rate.seconds_per_step / 3600)
    larger = planned(finished.folder, "train.batch_size=32")
    assert next(line for line in larger.stages if line.stage == "train").measured == 0
    assert "not measured yet" in "\n".join(plan_lines(larger))
    more = planned(finished.folder, "datasets.train.images=200")
    extract = [line for line in more.stages if line.stage == "extract"]
    assert extract
    assert all(line.measured == line.jobs for line in extract)
