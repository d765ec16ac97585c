"""The rerun table: edit X, and exactly these rules would run, for a reason that names the value or the module."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, Project

import flowkit
from flowkit.runtime import exclusive

EVALUATED = {"evaluate_flow", "evaluate_regression", "evaluate_baselines"}
END = {"summary", "report"}
PAGES_OF_RUNS = {"page_flow", "page_regression"}
PAGES = PAGES_OF_RUNS | {"page_baselines"}
SAMPLED = {"sample_flow", "sample_regression"}
TRAINED = {"train_flow", "train_regression"}
EXTRACTED = {f"extract_{data}_{tower}" for data in ("train", "test") for tower in ("demo_eva", "demo_vit")}
PAIRED = {"pairs_train", "pairs_test"}
AFTER_PAIRS = {"survey"} | TRAINED | SAMPLED | {"baselines"} | EVALUATED | PAGES | END
AFTER_TRAINING = SAMPLED | {"evaluate_flow", "evaluate_regression"} | PAGES_OF_RUNS | END
ONE_RUN = {"train_flow", "sample_flow", "evaluate_flow", "page_flow"} | END


@dataclass(frozen=True)
class Edit:
    """A change of one text in one file, the rules that it makes run, and what the reason of one of them names."""

    name: str
    path: str
    old: str
    new: str
    runs: set[str]
    reason_of: str = ""
    names: str = ""


TABLE = (
    Edit("solver value", "tiny.yaml", "[heun-2, euler-1]", "[heun-3, euler-1]", AFTER_TRAINING,
         "sample_flow", "sampling.samplers=heun-3,euler-1"),
    Edit("number of noise seeds", "tiny.yaml", "[heun-2, euler-1]", "[heun-2, euler-1], noise_seeds: 3", AFTER_TRAINING,
         "sample_flow", "sampling.noise_seeds=3"),
    Edit("images of closed forms and of the mean", "tiny.yaml", "runs:", "closed_forms: {images: 60}\nruns:",
         {"baselines"} | EVALUATED | PAGES | END, "baselines", "closed_forms.images=60"),
    Edit("inputs of ridge", "tiny.yaml", "runs:", "closed_forms: {inputs: 100}\nruns:",
         {"baselines", "evaluate_baselines"} | PAGES | END, "baselines", "closed_forms.inputs=100"),
    Edit("hidden source", "tiny.yaml", "evaluation: test}", "evaluation: test, source_tokens: cls}",
         TRAINED | SAMPLED | {"baselines"} | EVALUATED | PAGES | END, "train_flow", "data.source_tokens=cls"),
    Edit("training value", "tiny.yaml", "steps: 6", "steps: 7", TRAINED | AFTER_TRAINING,
         "train_flow", "train.steps=7"),
    Edit("value of one run", "tiny.yaml", "flow: {}", "flow: {train: {seed: 5}}", ONE_RUN,
         "train_flow", "train.seed=5"),
    Edit("scale that reads the target's norm", "tiny.yaml", "runs:", "objective: {feature_scale: target_norm}\nruns:",
         TRAINED | AFTER_TRAINING, "train_regression", "objective.feature_scale=target_norm"),
    Edit("two values swapped", "tiny.yaml", "evaluate_every: 3, checkpoint_every: 2",
         "evaluate_every: 2, checkpoint_every: 3", TRAINED | AFTER_TRAINING, "train_flow", "train.checkpoint_every=3"),
    Edit("code of a metric", "flowkit/evaluation/retrieval.py", "TIE = 1e-6", "TIE = 2e-6", EVALUATED | PAGES | END,
         "evaluate_baselines", "flowkit.evaluation.retrieval@"),
    Edit("code of the model", "flowkit/model/dit.py", "LAYER_SCALE = 1.0", "LAYER_SCALE = 0.9",
         TRAINED | AFTER_TRAINING, "train_regression", "flowkit.model.dit@"),
    Edit("code of the earlier recipe, which no run here uses", "flowkit/flow/earlier.py", "RANK_SHARE = 3 / 4",
         "RANK_SHARE = 1 / 2", set()),
    Edit("style of the report", "flowkit/report/templates/style.css", "}", "}\n.edited { color: red }", {"report"},
         "report", "style.css@"),
    Edit("template of the pages of runs", "flowkit/report/templates/run.html.j2", "How it was made", "Its making",
         PAGES | {"report"}, "page_flow", "run.html.j2@"),
    Edit("question of a run", "tiny.yaml", "  flow: {}", "  flow: {question: Is noise needed}", {"page_flow", "report"},
         "page_flow", "questions.flow=Is noise needed"),
    Edit("size of galleries", "tiny.yaml", "gallery_images: 6", "gallery_images: 9", PAGES | {"report"},
         "page_baselines", "report.gallery_images=9"),
    Edit("images that are evaluated", "tiny.yaml", "evaluation: {images: 32", "evaluation: {images: 31",
         {"survey", "baselines"} | SAMPLED | EVALUATED | PAGES | END, "survey", "evaluation.images=31"),
    Edit("code of the survey", "flowkit/evaluation/survey.py", "MASSIVE = 10.0", "MASSIVE = 11.0", {"survey", "report"},
         "survey", "flowkit.evaluation.survey@"),
    Edit("how galleries are put together", "flowkit/report/gallery.py", 'PALETTE = "magma"', 'PALETTE = "viridis"',
         PAGES | {"report"}, "page_flow", "flowkit.report.gallery@"),
    Edit("comment", "flowkit/model/dit.py", "LAYER_SCALE = 1.0", "LAYER_SCALE = 1.0  # a remark", set()),
    Edit("code of an architecture that no run here uses", "flowkit/model/lumina_next.py", "tanh()", "sigmoid()", set()),
    Edit("docstring", "flowkit/features/loader.py", '"""Training loader', '"""The training loader', set()),
    Edit("encoder setting", "tiny.yaml", "batch_size: 16\nmodel", "batch_size: 8\nmodel",
         EXTRACTED | PAIRED | {"texts_test"} | AFTER_PAIRS, "extract_train_demo_vit", "encoders.batch_size=8"),
    Edit("how pixels are made", "tiny.yaml", "batch_size: 16\nmodel", "batch_size: 16\n  decode: fast\nmodel",
         EXTRACTED | PAIRED | {"texts_test"} | AFTER_PAIRS, "extract_test_demo_eva", "encoders.decode=fast"),
    Edit("order of training", "tiny.yaml", "data: {train: train, evaluation: test}",
         "data: {train: train, evaluation: test, shuffle: blocks}", TRAINED | AFTER_TRAINING,
         "train_flow", "data.shuffle=blocks"),
    Edit("forward pass of the encoders", "flowkit/encoders/image_encoder.py", "import torch\n",
         "import torch\n\nNEW = 1\n", EXTRACTED | PAIRED | {"texts_test", "head_demo_vit"} | AFTER_PAIRS,
         "extract_train_demo_eva", "flowkit.encoders.image_encoder@"),
    Edit("how weights are found", "flowkit/hub_access.py", 'PUBLIC_ENDPOINT = "https',
         'PUBLIC_ENDPOINT = "" or "https', set()),
    Edit("precision of the target", "tiny.yaml", "target: {name: demo-vit}",
         "target: {name: demo-vit, precision: bf16}",
         {"extract_train_demo_vit", "extract_test_demo_vit", "head_demo_vit", "texts_test"}
         | PAIRED | AFTER_PAIRS, "train_flow", "encoders.target.precision=bf16"),
    Edit("data setting", "tiny.yaml", "train: {kind: demo, images: 120", "train: {kind: demo, images: 119",
         {"shards_train", "extract_train_demo_eva", "extract_train_demo_vit", "pairs_train"} | AFTER_PAIRS,
         "shards_train", "datasets.train.images=119"),
    Edit("goal", "tiny.yaml", "report: {gallery_images: 6}", "report: {gallery_images: 6}\ngoals: {flow_r2: 0.5}",
         END, "summary", "goals.flow_r2=0.5"),
    Edit("profile setting", "profiles/local/config.yaml", "cores: 2", "cores: 1", set()),
    Edit("how progress is shown", "flowkit/progress.py", "LOG_EVERY_SECONDS = 15.0", "LOG_EVERY_SECONDS = 14.0", set()),
)  # fmt: skip


def test_a_finished_workflow_has_nothing_to_do(finished) -> None:
    assert finished.planned() == {}


@pytest.mark.parametrize("edit", TABLE, ids=lambda edit: edit.name.replace(" ", "-"))
def test_edit_reruns_exactly(finished, edit: Edit) -> None:
    original = (finished.folder / edit.path).read_text()
    try:
        finished.edit(edit.path, edit.old, edit.new)
        planned = finished.planned()
    finally:
        (finished.folder / edit.path).write_text(original)
    assert set(planned) == edit.runs
    if edit.reason_of:
        assert edit.names in planned[edit.reason_of]


def test_shards_per_job_is_no_reason_to_run(finished) -> None:
    assert finished.planned("--config", "shards_per_job=1") == {}


def test_switch_to_retrain_the_demo_encoders_plans_their_training(finished) -> None:
    planned = finished.planned("--config", "set=encoders.retrain_demo_towers=true")
    assert {"weights_demo_eva", "weights_demo_vit"} | EXTRACTED | AFTER_PAIRS <= set(planned)


def test_changed_values_by_hand_need_an_experiment_of_their_own(finished) -> None:
    said = finished.flowkit(
        "train", "--config", "tiny.yaml", "--run", "flow", "--set", "train.steps=9", check=False
    )
    assert "makes another experiment, give it a name" in said
    shared = ("--set", "experiment=trial", "--set", "datasets.train.images=80")
    said = finished.flowkit("shards", "--config", "tiny.yaml", *shared, check=False)
    assert "changes what all experiments share, give it a place: --data-root DIR" in said
    assert finished.planned() == {}


def test_training_scales_channels_by_the_norm_of_the_target_tower(finished) -> None:
    """Stage train reads the weights from the head's result; the scale it saves is their inverse."""
    values = ("experiment=by-norm", "objective.feature_scale=target_norm")
    try:
        finished.flowkit(
            "train", "--config", "tiny.yaml", "--run", "flow", *(f"--set={value}" for value in values)
        )
        scale = flowkit.load(finished.folder / "results/by-norm/runs/flow/train").statistics.target
        (head,) = finished.folder.glob("results/data/heads/demo-vit-*/*/head.safetensors")
        weight_C = load_file(head)["norm.weight"]
    finally:
        shutil.rmtree(finished.folder / "results/by-norm", ignore_errors=True)
    assert weight_C.std() > 0
    counted_C = scale.spread_C * weight_C.abs()
    assert torch.allclose(counted_C, counted_C[:1].expand_as(counted_C), rtol=1e-5)
    assert not scale.shift_C.any()


def test_a_changed_value_is_not_forgotten_when_its_job_fails(finished, tmp_path) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(finished.folder, project.folder, symlinks=True)
    project.edit("tiny.yaml", "bootstrap_draws: 100", "bootstrap_draws: 120")
    manifest = project.folder / "results/tiny/runs/flow/evaluation/manifest.json"
    with exclusive(manifest.parent / "state/lock"):
        said = project.snakemake("--", "results/tiny/runs/flow/evaluation/manifest.json", check=False)
    assert "flowkit: error: evaluate_flow: failed: " in said
    assert "held by process" in said
    assert not manifest.exists()
    assert set(project.planned()) == EVALUATED | PAGES | END
    project.snakemake("--", str(manifest.relative_to(project.folder)))
    assert "evaluate_flow" not in project.planned()


def test_touch_accepts_a_harmless_edit(finished) -> None:
    original = (ROOT / "flowkit/evaluation/retrieval.py").read_text()
    try:
        finished.edit("flowkit/evaluation/retrieval.py", "TIE = 1e-6", "TIE = 1.0e-6 * 1")
        assert "evaluate_flow" in finished.planned()
        finished.snakemake("--touch")
        assert finished.planned() == {}
    finally:
        (finished.folder / "flowkit/evaluation/retrieval.py").write_text(original)
        finished.snakemake("--touch")


def test_extraction_by_hand_from_other_values_is_made_again(finished) -> None:
    """Its stores are read by finished rules only, and Snakemake does not miss such files by itself."""
    finished.flowkit("extract", "--config", "tiny.yaml", "--dataset", "test")
    original = (finished.folder / "tiny.yaml").read_text()
    stores = [str(path) for path in finished.folder.glob("results/data/features/test/demo-*/*/manifest.json")]
    finished.snakemake("--cleanup-metadata", *(path.removeprefix(f"{finished.folder}/") for path in stores))
    assert finished.planned() == {}
    try:
        finished.edit("tiny.yaml", "batch_size: 16\nmodel", "batch_size: 8\nmodel")
        planned = finished.planned()
        assert "extract_test_demo_eva" in planned
        assert "Missing output" in planned["extract_test_demo_eva"]
    finally:
        (finished.folder / "tiny.yaml").write_text(original)
    assert finished.planned() == {}


def test_what_was_made_by_hand_from_other_values_is_made_again(finished) -> None:
    """Snakemake has no record of it; without one it would take any file for the right one."""
    original = (finished.folder / "tiny.yaml").read_text()
    finished.flowkit("baselines", "--config", "tiny.yaml")
    manifest = "results/tiny/runs/ridge/samples/test/manifest.json"
    finished.snakemake("--cleanup-metadata", manifest, manifest.replace("ridge", "constant"))
    assert finished.planned() == {}, "made by hand from the same values"
    try:
        finished.edit("tiny.yaml", "evaluation: {images: 32", "evaluation: {images: 31")
        assert "baselines" in finished.planned()
    finally:
        (finished.folder / "tiny.yaml").write_text(original)
    assert finished.planned() == {}, "the old values are asked for again"
