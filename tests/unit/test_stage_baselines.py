"""Stage `baselines`: what it commits for each baseline, from few training pairs, and after a kill."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowkit.config import load_config
from flowkit.errors import ConfigError
from flowkit.evaluation import ridge
from flowkit.evaluation.baselines import fit_baselines
from flowkit.evaluation.tokens import evenly_spaced
from flowkit.evaluation.transport import Transported
from flowkit.features.samples import SampledTokens
from flowkit.paths import Places
from flowkit.stages import baselines
from flowkit.stages.paired import open_pairs, open_training_pairs
from flowkit.stages.session import Spec, committed
from flowkit.stages.specs import Plan

IMAGES = 15
CONFIG = {
    "experiment": "small",
    "datasets": {
        "train": {"kind": "demo", "images": 36, "images_per_shard": 12, "seed": 1},
        "test": {"kind": "demo", "images": 20, "images_per_shard": 12, "seed": 2},
    },
    "data": {"evaluation": "test"},
    "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}, "batch_size": 8},
    "evaluation": {"images": IMAGES},
    "closed_forms": {"images": 10, "inputs": 30},
    "baselines": ["constant", "nearest", "ridge", "ridge_ot", "true"],
    "runs": {"flow": {}},
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of both data sets; of the three tars of the training set the last is held out."""
    folder = tmp_path_factory.mktemp("data")
    plan = Plan(load_config(CONFIG), Places("small", folder / "results", folder))
    for stage in ("shards", "weights", "extract", "pairs"):
        for job in plan.select(stage):
            importlib.import_module(f"flowkit.stages.{stage}").run(job.spec)
    return folder


@pytest.fixture
def spec(data_root: Path, tmp_path: Path) -> Spec:
    (job,) = Plan(load_config(CONFIG), Places("small", tmp_path, data_root)).select("baselines")
    return job.spec


def predictions(spec: Spec, name: str) -> SampledTokens:
    return SampledTokens(committed(spec.places.samples(name, "test"))[0] / "closed-form")


def test_predictions_are_named_stored_and_counted(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "BLOCK_VALUES", 1)  # every block of the map in a file
    baselines.run(spec)
    pairs = open_pairs(spec, "test")
    for name in CONFIG["baselines"]:
        content, manifest = committed(spec.places.samples(name, "test"))
        assert [path.name for path in content.iterdir()] == ["closed-form"]
        assert predictions(spec, name).keys == pairs.keys(np.arange(IMAGES))
        chosen = {"penalty", "inputs"} if name == "ridge" else set()
        assert set(manifest["counts"]) == {"samplers", "images", "nfe", "noise"} | chosen
        assert (manifest["counts"]["images"], manifest["counts"]["noise"]) == (IMAGES, {"closed-form": 1})
        assert not list((spec.places.samples(name, "test") / "state").glob("work-*"))
    assert (
        committed(spec.places.samples("ridge", "test"))[1]["counts"]["inputs"] == 9
    )  # 10 images differ in 9 ways
    assert np.array_equal(predictions(spec, "true")[:], pairs.target(np.arange(IMAGES))[:])


def test_fits_see_evenly_spaced_training_pairs_alone(spec: Spec) -> None:
    baselines.run(spec)
    training = open_training_pairs(spec, "train").target()[:]
    assert len(training) == 24
    chosen = training[[0, 2, 4, 7, 9, 12, 14, 16, 19, 21]]
    constant = predictions(spec, "constant")[:]
    assert constant == pytest.approx(np.stack([chosen.mean(axis=0)] * IMAGES), abs=0.01)
    for tokens in predictions(spec, "nearest")[:]:
        assert any(np.array_equal(tokens, other) for other in chosen)


def test_a_kill_leaves_what_was_committed_and_no_scratch(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Transported, source: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ridge, "BLOCK_VALUES", 1)
        patch.setattr(Transported, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            baselines.run(spec)
    ridge_before = committed(spec.places.samples("ridge", "test"))
    # in another order, so that the scratch of the first call lies in the work of a run that is not the last one now
    reordered = {**spec.target, "baselines": "true,ridge,ridge_ot"}
    baselines.run(replace(spec, target=reordered))
    assert committed(spec.places.samples("ridge", "test")) == ridge_before
    for name in ("true", "ridge_ot"):
        content, _ = committed(spec.places.samples(name, "test"))
        assert [path.name for path in content.iterdir()] == ["closed-form"]
        assert len(predictions(spec, name)) == IMAGES


def test_what_these_tokens_cannot_have_is_refused(spec: Spec) -> None:
    with pytest.raises(ConfigError, match=r"17 x 96 = 1632 .* here 10; leave ridge_ot_flat out of baselines"):
        baselines.run(replace(spec, target={**spec.target, "baselines": "constant,ridge_ot_flat"}))
    assert not list(spec.places.samples("constant", "test").glob("*.json"))


def test_objects_are_translated_view_by_view_and_the_constant_as_a_whole(tmp_path: Path) -> None:
    solids = {"kind": "solids", "objects_per_shard": 4, "views": 2}
    config = load_config(
        {
            **CONFIG,
            "datasets": {
                "train": {**solids, "objects": 12, "seed": 1},
                "test": {**solids, "objects": 5, "seed": 2},
            },
            "evaluation": {"images": 4},
            "baselines": ["constant", "nearest", "ridge", "ridge_token"],
        }
    )
    plan = Plan(config, Places("small", tmp_path / "results", tmp_path))
    for stage in ("shards", "weights", "extract", "pairs", "baselines"):
        for job in plan.select(stage):
            importlib.import_module(f"flowkit.stages.{stage}").run(job.spec)
    (job,) = plan.select("baselines")
    whole, images = (open_training_pairs(job.spec, "train", by_view=by_view) for by_view in (False, True))
    assert (len(whole), len(images)) == (8, 16)
    test = open_pairs(job.spec, "test", by_view=True)
    source, target = images.source(evenly_spaced(16, 10)), images.target(evenly_spaced(16, 10))
    fitted = fit_baselines(source, target, ["nearest", "ridge", "ridge_token"], inputs=30, scratch=tmp_path)
    for name, baseline in fitted.items():
        expected = np.concatenate(list(baseline.predict(test.source(np.arange(8)))))
        made = predictions(job.spec, name)
        assert made.keys == ["00000000", "00000001", "00000002", "00000003"]
        np.testing.assert_allclose(made[:].reshape(expected.shape), expected, rtol=2e-3, atol=2e-3)
    mean = whole.target()[:].mean(0, dtype=np.float64)
    np.testing.assert_allclose(
        predictions(job.spec, "constant")[:], np.stack([mean] * 4), rtol=2e-3, atol=2e-3
    )
