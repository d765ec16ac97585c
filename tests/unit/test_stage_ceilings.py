"""Stage `ceilings`: the target's tokens once more, in the order of the pairs, and what must run for them."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from features_material import files_of

from flowkit.config import load_config
from flowkit.errors import ConfigError, ShardError
from flowkit.features.samples import SampledTokens, UnroundedTokens, open_samples
from flowkit.paths import MANIFEST, Places
from flowkit.planning.plan import machine_plan
from flowkit.planning.sizes import Amount
from flowkit.provenance import read_json
from flowkit.sections import CEILINGS, USUAL_BASELINES
from flowkit.stages import ceilings
from flowkit.stages.fingerprint import code_of
from flowkit.stages.jobs import Job
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import committed
from flowkit.stages.specs import Plan

IMAGES = 15
CONFIG = {
    "experiment": "small",
    "datasets": {
        "train": {"kind": "demo", "images": 24, "images_per_shard": 12, "seed": 1},
        "test": {"kind": "demo", "images": 20, "images_per_shard": 12, "seed": 2},
    },
    "data": {"evaluation": "test"},
    "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}, "batch_size": 8},
    "evaluation": {"images": IMAGES},
    "runs": {"flow": {}},
}


def plan_of(folder: Path, *overrides: str) -> Plan:
    config = load_config(CONFIG, overrides)
    return Plan(config, Places(config.experiment, folder, folder / "data"))


def run_stage(plan: Plan, stage: str) -> list[Job]:
    """Run the jobs of a stage that only need the evaluation set, here."""
    jobs = [job for job in plan.select(stage) if job.spec.target.get("dataset", "test") == "test"]
    for job in jobs:
        importlib.import_module(f"flowkit.stages.{stage}").run(job.spec)
    return jobs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the pairs of the evaluation set: tars of 12 and 8 images, in batches of 8."""
    folder = tmp_path_factory.mktemp("results")
    plan = plan_of(folder)
    for stage in ("shards", "weights", "extract", "pairs"):
        run_stage(plan, stage)
    return folder


def stored(plan: Plan, job: Job) -> np.ndarray:
    """The target tokens that figures are measured on."""
    layout = {"layout": job.spec.values["data"]["layout"], "source_tokens": "all"}
    return open_pairs(job.spec, "test", data=layout).target(np.arange(IMAGES))[:]


def made(plan: Plan) -> dict[str, UnroundedTokens | SampledTokens]:
    """What the stage committed, by ceiling."""
    folders = {name: plan.places.samples(name, "test") for name in CEILINGS}
    return {name: open_samples(committed(folder)[0] / "closed-form") for name, folder in folders.items()}


@pytest.mark.parametrize(
    ("layout", "shape"), [("cls_patches", (17, 96)), ("patches", (16, 96)), ("pooled", (1, 64))]
)
def test_ceilings_line_up_with_the_pairs_in_every_layout(
    data: Path, layout: str, shape: tuple[int, int]
) -> None:
    plan = plan_of(data, f"data.layout={layout}", f"experiment={layout}")
    (job,) = run_stage(plan, "ceilings")
    true, found = stored(plan, job), made(plan)
    keys = [f"{index:08d}" for index in range(IMAGES)]
    for name, samples in found.items():
        assert samples.shape == true.shape == (IMAGES, *shape), name
        assert (samples.keys, samples.refused_keys) == (keys, [])
        counts = read_json(plan.places.samples(name, "test") / MANIFEST)["counts"]
        assert counts == {
            "samplers": ["closed-form"],
            "images": IMAGES,
            "nfe": {"closed-form": 0},
            "noise": {"closed-form": 1},
        }
    exact = found["true_fp16"][:]
    assert np.array_equal(exact.astype(np.float16), true.astype(np.float16))
    assert not np.array_equal(exact, true), "what is not rounded differs from what is"
    for name in ("true_jpeg75", "true_crop"):
        similar = cosines(found[name][:], true)
        assert 0.9 < similar.mean() < 1, name
        assert similar.max() < 1, "every image was changed"
        others = cosines(found[name][:], np.roll(true, 1, axis=0))
        assert similar.mean() > others.mean(), "each image lies nearest to itself"


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    flat = one.reshape(len(one), -1), other.reshape(len(other), -1)
    return np.sum(flat[0] * flat[1], axis=1) / np.prod(
        [np.linalg.norm(side, axis=1) for side in flat], axis=0
    )


def test_a_restart_leaves_the_same_bytes_and_what_is_done_is_adopted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data / "data", tmp_path / "data")
    plan = plan_of(tmp_path)
    (job,) = run_stage(plan, "ceilings")
    whole = {folder: files_of(committed(folder)[0]) for folder in job.folders}
    shutil.rmtree(tmp_path / "small")
    encode_again, calls = ceilings.encode_again, []

    def dying(*arguments, **options):
        for batch in encode_again(*arguments, **options):
            calls.append(len(batch[0]))
            if len(calls) == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(ceilings, "encode_again", dying)
    with pytest.raises(KeyboardInterrupt):
        run_stage(plan, "ceilings")
    assert [folder.name for folder in job.folders if (folder / MANIFEST).exists()] == ["test"]
    monkeypatch.undo()
    run_stage(plan, "ceilings")
    assert {folder: files_of(committed(folder)[0]) for folder in job.folders} == whole
    monkeypatch.setattr(ceilings, "load_encoder", None)
    run_stage(plan, "ceilings")


def test_a_ceiling_has_its_own_key_whatever_the_others_are(data: Path) -> None:
    run_stage(plan_of(data, "experiment=three"), "ceilings")
    (job,) = run_stage(plan_of(data, "experiment=three", "baselines=[ridge, true_crop]"), "ceilings")
    assert job.spec.target["ceilings"] == "true_crop"
    assert len(list((job.folders[0] / "state").glob("made-*.json"))) == 1, "it was adopted"


def test_an_image_that_cannot_be_decoded_again_is_named(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "data", tmp_path / "data")
    (tar,) = (tmp_path / "data/shards/test").glob("*/00000.tar")
    content = tar.read_bytes()
    place = content.index(b"\x89PNG", content.index(b"00000003.png")) + 40
    tar.write_bytes(content[:place] + bytes(60) + content[place + 60 :])
    with pytest.raises(ShardError, match=r"00000\.tar: image 00000003 cannot be encoded again"):
        run_stage(plan_of(tmp_path), "ceilings")


def test_ceilings_are_a_rule_of_their_own_beside_the_baselines(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    jobs = plan.jobs
    assert jobs["ceilings"].spec.target["ceilings"] == ",".join(CEILINGS)
    closed_forms = jobs["baselines"].spec.target["baselines"].split(",")
    assert set(closed_forms) == set(USUAL_BASELINES) - set(CEILINGS)
    assert jobs["evaluate_baselines"].spec.target["runs"] == ",".join(USUAL_BASELINES)
    assert {plan.places.samples(name, "test") for name in USUAL_BASELINES} <= set(
        jobs["evaluate_baselines"].inputs
    )
    assert list(jobs).index("ceilings") < list(jobs).index("evaluate_baselines")
    assert plan.select("ceilings", run="true_crop") == [jobs["ceilings"]]
    assert {line.stage for line in machine_plan(plan, None).stages} >= {"baselines", "ceilings"}
    without = plan_of(tmp_path, "baselines=[ridge]").jobs
    assert "ceilings" not in without
    alone = plan_of(tmp_path, "baselines=[true_jpeg75]").jobs
    assert "baselines" not in alone
    with pytest.raises(ConfigError, match="no job for"):
        plan_of(tmp_path).select("ceilings", run="ridge")


def test_what_extraction_depends_on_makes_ceilings_run_again_and_nothing_of_the_source(
    tmp_path: Path,
) -> None:
    def tracked(*overrides: str) -> set[str]:
        return set(plan_of(tmp_path, *overrides).jobs["ceilings"].tracked)

    usual = tracked()
    for override in (
        "encoders.batch_size=4",
        "encoders.decode=fast",
        "encoders.target.precision=bf16",
        "evaluation.images=14",
        "data.layout=patches",
    ):
        key, _, value = override.partition("=")
        assert any(leaf.endswith(f"{key.rpartition('.')[2]}={value}") for leaf in tracked(override) - usual)
    for override in ("encoders.source.precision=bf16", "data.source_tokens=cls", "evaluation.seed=7"):
        assert tracked(override) == usual
    names = {leaf.partition("@")[0] for leaf in usual if "@" in leaf}
    assert {"flowkit.features.perturbation", "flowkit.encoders.demo_towers"} <= names
    assert not {name for name in names if name.startswith(("flowkit.model", "flowkit.evaluation"))}
    other = code_of("ceilings", {"encoder": {"name": "open_clip:ViT-B-32/openai"}})
    assert "flowkit.encoders.demo_towers" not in {entry.partition("@")[0] for entry in other}


def test_planned_sizes_are_those_on_disk(data: Path) -> None:
    plan = plan_of(data, "experiment=sizes", f"baselines=[{','.join(CEILINGS)}]")
    (job,) = run_stage(plan, "ceilings")
    lines = {line.what: line for line in machine_plan(plan, None).stored}
    found = Amount()
    for folder in job.folders:
        paths = [folder, *folder.rglob("*")]
        found += Amount(sum(path.stat().st_size for path in paths if path.is_file()), len(paths))
    estimate = lines["samples of runs and baselines"].done
    assert estimate.bytes == pytest.approx(found.bytes, rel=0.1)
    assert estimate.files == pytest.approx(found.files, rel=0.1)


def test_the_spec_of_a_ceiling_says_what_extraction_was_told(tmp_path: Path) -> None:
    jobs = plan_of(tmp_path, "encoders.decode=fast").jobs
    extract, ceiling = jobs["extract_test_demo_vit"].spec.values, jobs["ceilings"].spec.values
    assert {name: ceiling[name] for name in extract} == extract
    assert jobs["ceilings"].memory_mb == jobs["extract_test_demo_vit"].memory_mb
