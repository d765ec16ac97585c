"""Every row of the table for people who come from the earlier code does here what it says."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from support import CONFIG, ROOT, Project, copy_project
from test_fetched_data import REPOSITORY, make_site
from web_server import WebServer

import flowkit
from flowkit.config import load_config
from flowkit.encoders.registry import load_encoder
from flowkit.features.store import TokenStore

TABLE = ROOT / "workflow/config/earlier.md"
Row = tuple[str, str]


def _rows() -> list[Row]:
    """Both cells of every row, without the heads of the tables."""
    cells = re.findall(r"^\| (.+?) \| (.+?) \|$", TABLE.read_text(), re.MULTILINE)
    return [(earlier, here) for earlier, here in cells if earlier != "earlier"]


def _here(earlier: str) -> list[str]:
    """The quoted pieces of the right cell of a row."""
    (here,) = (here for cell, here in _rows() if cell == earlier)
    return re.findall(r"`([^`]+)`", here)


def _words(command: str, **names: str) -> list[str]:
    """A command of the table as words, with its placeholders replaced, behind the `flowkit` in front."""
    return [names.get(word, word) for word in command.split()][1:]


SETTINGS = {
    "--model_size base": "base",
    "--batch_size 128": 128,
    "--num_epochs 15": 15.0,
    "--semantic_weight 0.5": 0.5,
    "--cosine_weight 0.2": 0.2,
    "--consistency_weight 0.3": 0.3,
    "--use_eva_adapter": 6,
    "--use_heun_inference": ("heun-50",),
    "--simple_scale_factor 1.0": "none",
    "--num_inference_steps 50 --use_heun": ("heun-50",),
    "--max_samples 1000": 1000,
    "--training_mode patch_only": "patches",
}
"""Flags that are settings here, and the value that the configuration then holds."""


@pytest.mark.parametrize("flag", SETTINGS)
def test_a_flag_is_a_setting_with_the_same_value(flag: str) -> None:
    key, _, value = _here(f"`{flag}`")[0].partition(": ")
    config = load_config(ROOT / "tests/workflow/tiny.yaml", (f"{key}={value}",))
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == SETTINGS[flag]


def _write(project: Project, **changes: Any) -> None:
    raw = yaml.safe_load((ROOT / "tests/workflow" / CONFIG).read_text())
    (project.folder / CONFIG).write_text(yaml.safe_dump({**raw, **changes}))


@pytest.mark.slow
def test_download_data(tmp_path: Path) -> None:
    entry, command = _here("`download_data.py --shard 0 --num_samples 1000`")
    with WebServer() as web:
        site = make_site(tmp_path, web)
        settings = yaml.safe_load(entry.partition(": ")[2]) | {
            "repository": REPOSITORY,
            "samples_per_shard": 20,
        }
        raw = yaml.safe_load((site.project.folder / CONFIG).read_text())
        raw["datasets"]["shapes"] = settings
        raw["data"] |= {"train": "coco", "evaluation": "shapes"}
        (site.project.folder / CONFIG).write_text(yaml.safe_dump(raw))
        site.project.flowkit(*_words(command, FILE=CONFIG, NAME="shapes"))
        found = sorted(site.project.folder.glob("results/data/shards/shapes/*/*/*.tar"))
        assert [path.name for path in found] == ["00000.tar"]


@pytest.mark.slow
def test_cache_features(tmp_path: Path, finished: Project) -> None:
    entry, *commands = _here("`cache_features.py --dataset_path DIR --shard 0`")
    tars = tmp_path / "tars"
    tars.mkdir()
    for path in finished.folder.glob("results/data/shards/train/*/*.tar"):
        shutil.copy(path, tars)
    project = Project(copy_project(tmp_path / "project"))
    settings = yaml.safe_load(entry.partition(": ")[2]) | {"path": str(tars)}
    _write(
        project,
        datasets={
            "train": {"kind": "demo", "images": 80, "images_per_shard": 40, "seed": 1},
            "test": settings,
        },
    )
    project.flowkit("weights", "--config", CONFIG)
    for command in commands:
        project.flowkit(*_words(command, FILE=CONFIG, NAME="test"))
    stores = [
        TokenStore(path.parent) for path in project.folder.glob("results/data/features/test/*/*/*/zarr.json")
    ]
    assert [len(store) for store in stores] == [40, 40]


@pytest.mark.slow
def test_train_and_evaluate_by_hand(finished: Project) -> None:
    alone, together = _here("`train.py --config model_config.yaml`")
    sample, evaluate = _here("`evaluate` with `--model_path --coco_embeddings_file`")
    names = {"FILE": "trial.yaml", "NAME": "flow"}
    raw = yaml.safe_load((finished.folder / CONFIG).read_text())
    (finished.folder / "trial.yaml").write_text(yaml.safe_dump({**raw, "experiment": "trial"}))
    try:
        finished.flowkit(*_words(alone, **names))
        train = finished.folder / "results/trial/runs/flow/train"
        one = json.loads((train / "manifest.json").read_text())["counts"]
        shutil.rmtree(train)
        words = [word.replace("4", "2") for word in _words(together, **names)]
        finished.run([sys.executable, "-m", "torch.distributed.run", *words])
        two = json.loads((train / "manifest.json").read_text())["counts"]
        assert two["steps"] == one["steps"] == 6
        assert two["validation_r2"] == pytest.approx(one["validation_r2"], abs=1e-3)
        for command in (sample, evaluate):
            finished.flowkit(*_words(command, **names))
        assert (finished.folder / "results/trial/runs/flow/evaluation/manifest.json").is_file()
    finally:
        (finished.folder / "trial.yaml").unlink()
        shutil.rmtree(finished.folder / "results/trial", ignore_errors=True)


@pytest.mark.slow
def test_places_are_flags(tmp_path: Path, finished: Project) -> None:
    (data_root,) = _here("`--chunked_embeddings_dir DIR`")
    results, _ = _here("`--output_dir DIR`")
    data = _words(f"flowkit {data_root}", DIR="results/data")
    out = _words(f"flowkit {results}", DIR=str(tmp_path / "out"))
    finished.flowkit("train", "--config", CONFIG, "--run", "flow", *data, *out)
    assert (tmp_path / "out/tiny/runs/flow/train/manifest.json").is_file()


@pytest.mark.slow
def test_python(finished: Project) -> None:
    (load, *_) = _here("`load_trained_model()`")
    folder = re.search(r'"(.+)"', load)
    assert folder is not None
    place = folder[1].replace("EXPERIMENT", "tiny").replace("NAME", "flow")
    translator = flowkit.load(finished.folder / place)
    encoder = load_encoder("demo-eva")
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "green")]
    encode = _here("`extract_eva_features(images)`")[2]
    tokens, _ = eval(encode, {"encoder": encoder, "torch": torch, "images": images})
    (generate,) = _here(
        "`model.generate(eva_features=x, num_inference_steps=50, use_heun=True, guidance_scale=1.0)`"
    )
    made = eval(generate, {"translator": translator, "x": tokens})
    assert made.shape == (2, 17, 96)
    assert made.isfinite().all()


@pytest.mark.slow
def test_all_of_it_in_order(finished: Project) -> None:
    (command,) = _here("all of it, in order")
    said = finished.run([sys.executable, "-m", "snakemake", *_words(command, FILE=CONFIG), "-n"])
    assert "Nothing to be done" in said


@pytest.mark.slow
def test_model_path_and_batch_size(finished: Project) -> None:
    """`--model_path DIR`, and `--batch_size 64`, for which there is nothing to set."""
    assert _here("`--model_path DIR`") == ["--run NAME", "flowkit.load(DIR)"]
    assert _here("`--batch_size 64`") == []
    translator = flowkit.load(finished.folder / "results/tiny/runs/flow/train")
    source, white = torch.randn(6, 17, 128), torch.randn(6, 17, 96)
    together = translator.generate(source, num_inference_steps=2, white_noise=white)
    parts = [
        translator.generate(source[rows], num_inference_steps=2, white_noise=white[rows])
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-4, rtol=1e-4)


def test_the_evaluation_set_is_a_data_set() -> None:
    key, kind = _here("`--coco_embeddings_file FILE`")
    config = load_config(ROOT / "workflow/config/earlier.yaml")
    assert key == "data.evaluation: NAME"
    assert kind == f"kind: {config.datasets[config.data.evaluation].kind}"


def test_every_row_is_tested() -> None:
    source = Path(__file__).read_text()
    for earlier, _ in _rows():
        assert earlier.strip("`") in SETTINGS or f'"{earlier}"' in source, f"no test for {earlier}"
    assert len(_rows()) == 25
