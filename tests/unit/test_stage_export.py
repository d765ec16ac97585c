"""Stage `export`: results and folders of the user's, raw scale, refusals, and jobs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from export_material import (
    CHANNELS,
    IMAGES,
    KEYS,
    SAMPLERS,
    TOKENS,
    WIDTH,
    export_spec,
    head_tensors,
    true_tokens,
    write_results,
    write_samples,
)
from paired_material import FLOW, MODEL, Pairs
from typer.testing import CliRunner

from flowkit.__main__ import app
from flowkit.config import load_config
from flowkit.encoders.head import apply_head
from flowkit.errors import ConfigError, StageError
from flowkit.export.consumers import CONSUMERS
from flowkit.export.reading import read_export
from flowkit.features.samples import SampledTokens
from flowkit.paths import CLOSED_FORM, Places
from flowkit.planning.plan import machine_plan
from flowkit.planning.sizes import export_size
from flowkit.provenance import file_digest, read_json
from flowkit.sampling.sampler import parse_sampler, sample
from flowkit.stages import export as stage
from flowkit.stages.session import committed
from flowkit.stages.specs import Plan
from flowkit.training.statistics import fit_statistics
from flowkit.translator import Translator, build_network

ALL = tuple(CONSUMERS)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return write_results(tmp_path)


def test_every_consumer_gets_its_form_of_the_first_sampler(places: Places) -> None:
    stage.run(export_spec(places, *ALL))
    content, manifest = committed(places.export("flow"))
    tokens = SampledTokens(places.samples("flow", "test") / "content" / SAMPLERS[0])[:]
    expected = {
        "channels_first": tokens[:, 1:].transpose(0, 2, 1),
        "channels_last": tokens[:, 1:],
        "pooled": torch.nn.functional.normalize(
            apply_head(torch.from_numpy(tokens), head_tensors()), dim=1
        ).numpy(),
    }
    assert {path.name for path in content.iterdir()} == {SAMPLERS[0]}
    for name in ALL:
        found = read_export(content / SAMPLERS[0] / name)
        assert found.keys == KEYS
        np.testing.assert_allclose(found.embeddings.numpy(), expected[CONSUMERS[name].form], atol=1e-6)
        assert found.description["consumer"] == name
        assert found.description["run"] == "flow"
        assert found.description["encoder"] == "open_clip:ViT-L-14-quickgelu/openai"
        assert found.description["made_from"]["samples/test"] == "content"
    assert manifest["counts"]["exports"][SAMPLERS[0]]["point-e"] == [IMAGES, CHANNELS, TOKENS - 1]
    for name, digest in manifest["files"].items():
        assert file_digest(content / name) == digest


def test_one_form_lies_there_once(places: Places) -> None:
    stage.run(export_spec(places, "point-e", "shap-e"))
    content, _ = committed(places.export("flow"))
    first, second = (
        content / SAMPLERS[0] / name / "embeddings.safetensors" for name in ("point-e", "shap-e")
    )
    assert first.samefile(second)


def test_it_is_adopted_and_made_again_for_other_values(places: Places) -> None:
    stage.run(export_spec(places, "point-e"))
    content, _ = committed(places.export("flow"))
    made = (content / SAMPLERS[0] / "point-e" / "embeddings.safetensors").stat().st_mtime_ns
    stage.run(export_spec(places, "point-e"))
    assert (content / SAMPLERS[0] / "point-e" / "embeddings.safetensors").stat().st_mtime_ns == made
    stage.run(export_spec(places, "point-e", samplers=(SAMPLERS[1],), file_format="npz"))
    other, _ = committed(places.export("flow"))
    assert [path.name for path in other.iterdir()] == [SAMPLERS[1]]
    assert (other / SAMPLERS[1] / "point-e" / "embeddings.npz").is_file()


def test_true_tokens_are_those_of_the_stores(places: Places) -> None:
    stage.run(export_spec(places, "shap-e-diffusers", "openshape", run="true", layout="patches"))
    content, _ = committed(places.export("true"))
    found = read_export(content / CLOSED_FORM / "shap-e-diffusers")
    assert np.array_equal(found.embeddings.numpy(), true_tokens()[:, 1:].astype(np.float32))
    assert read_export(content / CLOSED_FORM / "openshape").embeddings.shape == (IMAGES, WIDTH)


def test_a_standardised_translators_export_is_on_the_raw_scale(places: Places) -> None:
    """What a network makes in standardised channels leaves the export in the target's own units."""
    pairs = Pairs(64)
    shift, spread = (
        torch.linspace(-40, 40, pairs.target.shape[2]),
        torch.logspace(-1, 2, pairs.target.shape[2]),
    )
    pairs.target = pairs.target * spread + shift
    statistics = fit_statistics(pairs, feature_scale="standardize", start_noise=FLOW.start_noise)
    translator = Translator(build_network(MODEL, seed=5).eval(), MODEL, FLOW, "standardize", statistics)
    (made,) = sample(
        translator, [(KEYS, pairs.source[:IMAGES])], parse_sampler("euler-1"), seed=0, guidance_scale=1.0
    )
    write_samples(places, "scaled", {"euler-1": made.tokens_BTC.numpy()})
    stage.run(export_spec(places, "shap-e-diffusers", run="scaled"))
    content, _ = committed(places.export("scaled"))
    rows = read_export(content / "euler-1" / "shap-e-diffusers").embeddings
    np.testing.assert_allclose(rows.numpy(), made.tokens_BTC[:, 1:].half().float().numpy())
    # an untrained network says 0 in every standardised channel, which is the mean of the raw ones
    mean_D = pairs.target.mean(dim=(0, 1))
    torch.testing.assert_close(rows, mean_D.expand_as(rows), rtol=2e-3, atol=2e-3)
    assert mean_D.abs().max() > 20  # on the standardised scale it would be 0


def test_what_was_refused_is_named_in_the_log(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    tokens = true_tokens().astype(np.float32)
    tokens[4] = np.nan
    write_samples(places, "lost", {"euler-1": tokens})
    with caplog.at_level(logging.WARNING):
        stage.run(export_spec(places, "point-e", run="lost"))
    assert "left_out=1" in caplog.text
    assert KEYS[4] in caplog.text


@pytest.mark.parametrize("encoder", ["demo-vit", "open_clip:ViT-B-16/openai"])
def test_stores_of_the_wrong_encoder_are_refused(tmp_path: Path, encoder: str) -> None:
    places = write_results(tmp_path, encoder=encoder)
    with pytest.raises(ConfigError, match=f"these tokens are of {encoder}"):
        stage.run(export_spec(places, "point-e"))
    stage.run(export_spec(places, "point-e", any_encoder=True))
    content, _ = committed(places.export("flow"))
    described = read_json(content / SAMPLERS[0] / "point-e" / "export.json")
    assert (described["encoder"], described["any_encoder"]) == (encoder, True)


def test_pooled_from_patches_is_refused(places: Places) -> None:
    with pytest.raises(ConfigError, match="the tower makes of its class token"):
        stage.run(export_spec(places, "openshape", layout="patches"))


def test_a_sampler_that_was_not_run_is_refused(places: Places) -> None:
    with pytest.raises(ConfigError, match="run flow was sampled with heun-2, euler-1"):
        stage.run(export_spec(places, "point-e", samplers=("heun-7",)))


def test_a_folder_of_the_users_gets_the_same_files_and_digests(places: Places, tmp_path: Path) -> None:
    spec = export_spec(places, "point-e", "openshape")
    (written,) = stage.run_into([spec], tmp_path / "mine")
    assert written == tmp_path / "mine" / "flow"
    assert not places.export("flow").exists()
    manifest = read_json(written / "manifest.json")
    for name, digest in manifest["files"].items():
        assert file_digest(written / name) == digest
    stage.run(spec)
    assert committed(places.export("flow"))[1]["files"] == manifest["files"]


def test_nothing_is_written_over_what_is_there(places: Places, tmp_path: Path) -> None:
    specs = [export_spec(places, "point-e", run="true"), export_spec(places, "point-e")]
    (tmp_path / "mine" / "flow").mkdir(parents=True)
    with pytest.raises(StageError, match=r"mine/flow: exists, and exports are not written over"):
        list(stage.run_into(specs, tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["flow"]


def test_a_failed_export_leaves_nothing(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list(
            stage.run_into([export_spec(places, "point-e", "openshape", layout="patches")], tmp_path / "mine")
        )
    assert not list((tmp_path / "mine").iterdir())


CONFIG: dict[str, Any] = {
    "experiment": "toy",
    "datasets": {
        "train": {"kind": "demo", "images": 120, "images_per_shard": 40, "seed": 0},
        "test": {"kind": "demo", "images": 64, "images_per_shard": 32, "seed": 1},
    },
    "data": {"train": "train", "evaluation": "test"},
    "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}},
    "evaluation": {"images": 32},
    "runs": {"flow": {}, "regression": {"objective": {"kind": "regression"}}},
}


def _plan(tmp_path: Path, **export: Any) -> Plan:
    config = load_config({**CONFIG, "export": {"any_encoder": True, **export}})
    return Plan(config, Places("toy", tmp_path / "results", tmp_path / "data"), 1)


def _exports(plan: Plan) -> dict[str, Any]:
    return {name: job.spec for name, job in plan.jobs.items() if job.spec.stage == "export"}


def test_jobs_are_one_per_run(tmp_path: Path) -> None:
    assert not _exports(_plan(tmp_path))
    assert list(_exports(_plan(tmp_path, consumers=["point-e"]))) == ["export_flow", "export_regression"]
    chosen = _exports(_plan(tmp_path, consumers=["point-e"], runs=["flow", True, "ridge"]))
    assert list(chosen) == ["export_flow", "export_true", "export_ridge"]
    assert "samplers" not in chosen["export_true"].values["export"]


@pytest.mark.parametrize(
    ("export", "reason"),
    [
        (
            {"consumers": ["shape-e"]},
            r"export.consumers=.*'shape-e' is no consumer, they are point-e.*mean 'shap-e'",
        ),
        (
            {"consumers": ["point-e"], "runs": ["flo"]},
            r"export.runs=flo is none of flow.*did you mean 'flow'",
        ),
        ({"consumers": ["point-e"], "samplers": ["heun-5"]}, r"run flow has heun-50.*did you mean 'heun-50'"),
        (
            {"consumers": ["point-e"], "any_encoder": False},
            r"point-e was trained on .*these tokens are of demo-vit",
        ),
        ({"consumers": ["point-e", "point-e"]}, "the same name stands there twice"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(
    tmp_path: Path, export: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        _ = _plan(tmp_path, **export).jobs


def test_pooled_from_patches_is_refused_before_anything_runs(tmp_path: Path) -> None:
    raw = {**CONFIG, "data": {**CONFIG["data"], "layout": "patches"}}
    raw["export"] = {"any_encoder": True, "consumers": ["openshape"]}
    places = Places("toy", tmp_path / "results", tmp_path / "data")
    with pytest.raises(ConfigError, match="layout=patches has none"):
        _ = Plan(load_config(raw), places, 1).jobs
    raw["export"] = {**raw["export"], "runs": ["true"]}
    assert "export_true" in Plan(load_config(raw), places, 1).jobs


def test_the_command_says_what_to_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    done = CliRunner().invoke(app, ["export", "--config", str(path), "--to", str(tmp_path / "mine")])
    assert isinstance(done.exception, ConfigError)
    assert "export.consumers and export.runs name nothing" in str(done.exception)
    done = CliRunner().invoke(app, ["summary", "--config", str(path), "--to", str(tmp_path / "mine")])
    assert "--to goes with flowkit export alone" in str(done.exception)


def test_the_plan_knows_the_size(tmp_path: Path) -> None:
    """What is planned is what lies on the disk, links counted once."""
    places = write_results(tmp_path)
    stage.run(export_spec(places, *ALL, samplers=SAMPLERS))
    content, _ = committed(places.export("flow"))
    found = [*content.rglob("*")]
    inodes = {path.stat().st_ino: path for path in found}
    expected = export_size([(TOKENS - 1) * CHANNELS, (TOKENS - 1) * CHANNELS, WIDTH], len(ALL), IMAGES)
    assert expected.times(2).files == len(inodes)
    tensors = sum(path.stat().st_size for path in inodes.values() if path.suffix == ".safetensors")
    assert 0 <= tensors - 2 * 4 * IMAGES * (2 * (TOKENS - 1) * CHANNELS + WIDTH) < 6 * 200
    planned = _plan(tmp_path / "plan", consumers=["point-e", "shap-e", "openshape"], runs=["flow"])
    machine = machine_plan(planned, None)
    (line,) = [line for line in machine.stored if line.what == "exports"]
    assert line.to_come is not None
    assert line.to_come.bytes == pytest.approx(32 * 4 * (16 * 96 + 64), rel=0.1)
