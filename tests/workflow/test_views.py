"""A workflow on objects of several views, from the drawing to the report, and what it says of tars that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from support import Project, copy_project

from flowkit.config import load_config
from flowkit.features.samples import SampledTokens
from flowkit.paths import Places
from flowkit.planning.plan import machine_plan
from flowkit.planning.sizes import Amount
from flowkit.stages.specs import Plan
from flowkit.translator import Translator

pytestmark = pytest.mark.slow
VIEWS, OBJECTS, PATCHES = 3, 24, 16
ELSEWHERE = ("--config", "tiny.yaml", "--set", "experiment=elsewhere")
SETTINGS = f"""
experiment: views
datasets:
  train: {{kind: solids, objects: 60, objects_per_shard: 20, views: {VIEWS}, seed: 1}}
  test: {{kind: solids, objects: 30, objects_per_shard: 15, views: {VIEWS}, seed: 2}}
data: {{train: train, evaluation: test}}
encoders: {{source: {{name: demo-eva}}, target: {{name: demo-vit}}, batch_size: 16}}
model: {{size: demo, adapter_layers: 0, cross_attention: false}}
train: {{steps: 6, batch_size: 8, warmup_steps: 2, evaluate_every: 3, checkpoint_every: 2, validation_samples: 8}}
sampling: {{samplers: [heun-2, euler-1]}}
evaluation: {{images: {OBJECTS}, bootstrap_draws: 100}}
report: {{gallery_images: 6}}
runs:
  flow: {{}}
  flow_by_view: {{model: {{views: single}}, train: {{batch_size: 24}}}}
baselines: [constant, ridge, true, true_fp16, true_crop]
export: {{consumers: [shap-e, openshape], any_encoder: true}}
"""


@pytest.fixture(scope="module")
def finished_views(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(copy_project(tmp_path_factory.mktemp("views") / "project"))
    (project.folder / "tiny.yaml").write_text(SETTINGS)
    project.snakemake()
    return project


def results_of(project: Project) -> Path:
    return project.folder / "results/views"


def rows_of(project: Project) -> dict[tuple[str, str, str], dict[str, Any]]:
    summary = json.loads((results_of(project) / "summary.json").read_text())
    return {(row["run"], row["sampler"], row["metric"]): row for row in summary["rows"]}


def test_translators_see_all_views_or_one(finished_views: Project) -> None:
    for run, views in (("flow", VIEWS), ("flow_by_view", 1)):
        folder = results_of(finished_views) / "runs" / run / "train"
        content = json.loads((folder / "manifest.json").read_text())["content"]
        config = Translator.load(folder / content).config
        assert (config.views, config.target_tokens) == (views, views * (PATCHES + 1))


def test_both_are_measured_on_whole_objects_and_compared_in_pairs(finished_views: Project) -> None:
    rows = rows_of(finished_views)
    for run in ("flow", "flow_by_view", "ridge", "true_crop"):
        sampler = "heun-2" if run.startswith("flow") else "closed-form"
        assert np.isfinite(rows[run, sampler, "r2"]["value"])
        assert rows[run, sampler, "emb_cos"]["value"] is not None
    assert rows["flow", "heun-2", "nfe"]["value"] == rows["flow_by_view", "heun-2", "nfe"]["value"] == 3
    assert rows["true", "closed-form", "r2"]["value"] == 1
    assert rows["true_fp16", "closed-form", "tok_cos"]["value"] > 0.9999  # the same views in the same places
    summary = json.loads((results_of(finished_views) / "summary.json").read_text())
    (paired,) = [
        one
        for one in summary["differences"]
        if (one["run"], one["sampler"], one["against"], one["metric"])
        == ("flow", "euler-1", "flow_by_view", "r2")
    ]
    assert paired["low"] <= paired["value"] <= paired["high"]
    best = max(rows["flow_by_view", sampler, "r2"]["value"] for sampler in ("heun-2", "euler-1"))
    assert paired["value"] == pytest.approx(rows["flow", "euler-1", "r2"]["value"] - best, abs=1e-6)
    verdicts = json.loads((results_of(finished_views) / "verdicts.json").read_text())["rows"]
    (goal,) = [row for row in verdicts if "translated together" in row["goal"]]
    assert (goal["verdict"] == "shown") == (goal["value"] > 0)


def test_pages_show_all_views_as_tiles(finished_views: Project) -> None:
    report = results_of(finished_views) / "report"
    page = (report / "runs/flow.html").read_text()
    pictures = re.findall(r'src="\.\./(images/[^"]+)"', page)
    maps = re.findall(r'src="\.\./(maps/[^"]+)"', page)
    assert pictures
    assert maps
    assert {Image.open(report / name).size for name in pictures} == {(64, 64)}, "3 views are 2 x 2 tiles"
    assert {Image.open(report / name).size for name in maps} == {(8, 8)}
    alpha = np.asarray(Image.open(report / maps[0]).convert("RGBA"))[..., 3]
    assert not alpha[4:, 4:].any(), "there is no fourth view"
    assert alpha[:4].all()
    assert "view 1" in page


def test_each_view_is_a_row_of_an_export(finished_views: Project) -> None:
    run = results_of(finished_views) / "runs/flow"
    exported = run / "export" / json.loads((run / "export/manifest.json").read_text())["content"] / "heun-2"
    sampled = run / "samples/test"
    content = sampled / json.loads((sampled / "manifest.json").read_text())["content"]
    tokens = SampledTokens(content / "heun-2")
    keys = json.loads((exported / "shap-e/keys.json").read_text())
    assert keys == [f"{key}.{view}" for key in tokens.keys for view in range(VIEWS)]
    grid = load_file(exported / "shap-e/embeddings.safetensors")["embeddings"].numpy()
    by_view = tokens[:].reshape(OBJECTS * VIEWS, PATCHES + 1, -1)
    np.testing.assert_array_equal(grid, by_view[:, 1:].transpose(0, 2, 1))
    pooled = load_file(exported / "openshape/embeddings.safetensors")["embeddings"]
    assert pooled.shape == (OBJECTS * VIEWS, 64)
    np.testing.assert_allclose(pooled.norm(dim=1).numpy(), 1, rtol=1e-5)


def test_plan_knows_what_several_views_take(finished_views: Project) -> None:
    config = load_config(finished_views.folder / "tiny.yaml")
    places = Places(
        config.experiment, finished_views.folder / "results", finished_views.folder / "results/data"
    )
    lines = {line.what: line for line in machine_plan(Plan(config, places), None).stored}
    data = finished_views.folder / "results/data"
    found = {
        "tars of train": [data / "shards/train"],
        "tokens of train, demo-vit, float16": list(data.glob("features/train/demo-vit-*/*")),
        "pairs": list(data.glob("features/*/pairs-*")),
        "samples of runs and baselines": list(results_of(finished_views).glob("runs/*/samples/*")),
        "trained weights, at the end and at the best": list(results_of(finished_views).glob("runs/*/train")),
        "exports": list(results_of(finished_views).glob("runs/*/export")),
    }
    for what, folders in found.items():
        files = [path for folder in folders for path in (folder, *folder.rglob("*"))]
        real = Amount(sum(path.stat().st_size for path in files if path.is_file()), len(files))
        assert lines[what].done.bytes == pytest.approx(real.bytes, rel=0.1), what
        assert lines[what].done.files == pytest.approx(real.files, rel=0.1), what


def test_folder_of_the_same_tars_gives_the_same_stores(finished_views: Project) -> None:
    data = finished_views.folder / "results/data"
    (drawn,) = data.glob("shards/test/*/00000.tar")
    as_folder = [
        "--set",
        f"datasets.test={json.dumps({'kind': 'folder', 'path': str(drawn.parent), 'views': VIEWS})}",
    ]
    elsewhere = [*ELSEWHERE, "--data-root", "results/other", *as_folder]
    for stage in ("shards", "weights", "extract"):
        finished_views.flowkit(stage, *elsewhere, *(["--dataset", "test"] if stage != "weights" else []))
    stores = "features/test/demo-vit-*/*/manifest.json"
    contents = [
        sorted(json.loads(path.read_text())["content"] for path in root.glob(stores))
        for root in (data, finished_views.folder / "results/other")
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (2, "test has 2 views in a sample, the training set train has 3"),
        (VIEWS + 1, "test has 4 views in a sample, the training set train has 3"),
    ],
)
def test_data_sets_of_unequal_views_are_refused(finished_views: Project, views: int, message: str) -> None:
    said = finished_views.flowkit("plan", "tiny.yaml", "--set", f"datasets.test.views={views}", check=False)
    assert re.search(message, said), said
    assert "Traceback" not in said


def test_tars_of_other_views_are_named_with_the_right_number(finished_views: Project) -> None:
    (drawn,) = (finished_views.folder / "results/data").glob("shards/test/*/00000.tar")
    both = [
        *("--set", f"datasets.test={json.dumps({'kind': 'folder', 'path': str(drawn.parent), 'views': 2})}"),
        *("--set", "datasets.train.views=2"),
    ]
    elsewhere = [*ELSEWHERE, "--data-root", "results/wrong", *both]
    finished_views.flowkit("shards", *elsewhere, "--dataset", "test")
    finished_views.flowkit("weights", *elsewhere)
    said = finished_views.flowkit("extract", *elsewhere, "--dataset", "test", check=False)
    assert "have 3 views, numbered 0 to 2, not 2; set views of the data set to 3" in said
    assert "Traceback" not in said
