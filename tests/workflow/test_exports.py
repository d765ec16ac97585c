"""Exports of a finished workflow: into a folder by hand, and as rules that nothing else waits for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from support import Project

from flowkit.export.reading import read_export
from flowkit.features.samples import SampledTokens
from flowkit.provenance import read_json

TRIAL = ("--set", "export.any_encoder=true", "--set", "export.consumers=[point-e,openshape]")


def test_a_folder_gets_the_samples_at_the_raw_scale(finished: Project, tmp_path: Path) -> None:
    finished.flowkit(
        "export", "--config", "tiny.yaml", "--run", "flow", "--to", str(tmp_path / "mine"), *TRIAL
    )
    samples = finished.folder / "results/tiny/runs/flow/samples/test"
    tokens = SampledTokens(samples / read_json(samples / "manifest.json")["content"] / "heun-2")
    grid = read_export(tmp_path / "mine/flow/heun-2/point-e")
    assert grid.keys == tokens.keys
    assert np.array_equal(grid.embeddings.numpy(), tokens[:][:, 1:].transpose(0, 2, 1))
    pooled = read_export(tmp_path / "mine/flow/heun-2/openshape").embeddings
    np.testing.assert_allclose(pooled.norm(dim=1).numpy(), 1, atol=1e-6)
    assert not (finished.folder / "results/tiny/runs/flow/export").exists()
    again = finished.flowkit(
        "export",
        "--config",
        "tiny.yaml",
        "--run",
        "flow",
        "--to",
        str(tmp_path / "mine"),
        *TRIAL,
        check=False,
    )
    assert "flow: exists, and exports are not written over one another" in again


def test_rules_of_exports_run_alone(finished: Project) -> None:
    config = finished.folder / "tiny.yaml"
    before = config.read_text()
    try:
        config.write_text(before + "export: {consumers: [shap-e], any_encoder: true}\n")
        assert set(finished.planned()) == {"export_flow", "export_regression"}
        finished.snakemake("--", "export_flow")
        assert set(finished.planned()) == {"export_regression"}
    finally:
        config.write_text(before)
        shutil.rmtree(finished.folder / "results/tiny/runs/flow/export", ignore_errors=True)
