"""Jobs of exports: which runs are exported, what is refused before anything runs, what the plan says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from export_material import (
    CHANNELS,
    IMAGES,
    SAMPLERS,
    TOKENS,
    WIDTH,
    export_spec,
    write_results,
)
from typer.testing import CliRunner

from flowkit.__main__ import app
from flowkit.config import load_config
from flowkit.errors import ConfigError
from flowkit.export.consumers import CONSUMERS
from flowkit.paths import Places
from flowkit.planning.plan import machine_plan
from flowkit.planning.sizes import export_size
from flowkit.stages import export as stage
from flowkit.stages.session import committed
from flowkit.stages.specs import Plan

ALL = tuple(CONSUMERS)


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


def test_a_single_name_is_a_list_of_one(tmp_path: Path) -> None:
    places = Places("toy", tmp_path / "results", tmp_path / "data")
    settings = ("export.any_encoder=true", "export.consumers=point-e", "export.runs=true")
    plan = Plan(load_config(CONFIG, settings), places, 1)
    assert list(_exports(plan)) == ["export_true"]
    assert plan.config.export.consumers == ("point-e",)
    with pytest.raises(
        ConfigError, match=r"export.consumers=.*'pointe' is no consumer.*did you mean 'point-e'"
    ):
        load_config(CONFIG, ("export.consumers=pointe",))


@pytest.mark.parametrize("run", ["flow", "ridge", "true"])
def test_any_known_run_can_be_chosen_by_hand(tmp_path: Path, run: str) -> None:
    (job,) = _plan(tmp_path, consumers=["point-e"]).select("export", run=run)
    assert job.spec.target["run"] == run


def test_true_needs_no_class_token_in_the_layout(tmp_path: Path) -> None:
    """Stores hold one; what trained runs could not give is not asked of them."""
    raw = {**CONFIG, "data": {**CONFIG["data"], "layout": "patches"}}
    raw["export"] = {"any_encoder": True, "consumers": ["openshape"]}
    plan = Plan(load_config(raw), Places("toy", tmp_path / "results", tmp_path / "data"), 1)
    (job,) = plan.select("export", run="true")
    assert job.spec.target["run"] == "true"
    with pytest.raises(ConfigError, match="layout=patches has none"):
        plan.select("export", run="flow")


def test_a_run_that_is_not_exported_is_named_with_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--run flo is none of flow.*export\.runs.*did you mean 'flow'"):
        _plan(tmp_path, consumers=["point-e"]).select("export", run="flo")
    with pytest.raises(ConfigError, match=r"export.runs names flow; add --set 'export\.runs=\[ridge\]' --to"):
        _plan(tmp_path, consumers=["point-e"], runs=["flow"]).select("export", run="ridge")
    with pytest.raises(ConfigError, match=r"export.consumers and export.runs name nothing"):
        _plan(tmp_path).select("export", run="true")


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
