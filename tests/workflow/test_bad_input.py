"""Bad input is one line that names the thing, the value and the remedy, or a counted reject; never a traceback."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support import ROOT

FOLDER_CONFIG = {
    "experiment": "own",
    "datasets": {
        "train": {"kind": "folder", "path": "own/train"},
        "test": {"kind": "folder", "path": "own/test"},
    },
    "data": {"train": "train", "evaluation": "test"},
    "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}, "batch_size": 4},
    "runs": {"flow": {}},
}


def _png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (colour, 30, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def own(finished, tmp_path: Path):
    """A folder with own tars and a configuration for them, and the command line."""
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(FOLDER_CONFIG))
    good = {
        f"{key}.{extension}": content
        for key in "abcd"
        for extension, content in (("png", _png(ord(key))), ("txt", b"a dot"))
    }
    _tar(tmp_path / "own/train/0.tar", good)
    _tar(tmp_path / "own/train/1.tar", good)
    _tar(tmp_path / "own/test/0.tar", good)
    return type(finished)(tmp_path)


def _error(project, *arguments: str) -> str:
    """Run a command that must fail, and return its error lines."""
    said = project.run([*_command(), *arguments], check=False)
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("flowkit: error: ")]
    assert lines, said
    return "\n".join(lines)


def _command() -> list[str]:
    import sys

    return [sys.executable, "-m", "flowkit"]


def test_misspelt_key(own) -> None:
    said = _error(own, "check", "own.yaml", "--set", "train.stesp=3")
    assert said == "flowkit: error: train.stesp: unknown key, did you mean 'steps'?"


def test_misspelt_key_in_the_workflow(finished) -> None:
    said = finished.snakemake("-n", "--config", "set=train.stesp=3", check=False)
    assert "train.stesp: unknown key, did you mean 'steps'?" in said
    assert "Traceback" not in said


def test_missing_and_empty_folder(own) -> None:
    assert "own/nowhere is not a folder" in _error(
        own, "check", "own.yaml", "--set", "datasets.train.path=own/nowhere"
    )
    (own.folder / "own/empty").mkdir()
    assert "own/empty has no *.tar file" in _error(
        own, "check", "own.yaml", "--set", "datasets.train.path=own/empty"
    )


def _extract(own, dataset: str = "train") -> None:
    for stage in ("shards", "weights"):
        own.run([*_command(), stage, "--config", "own.yaml"])
    own.run([*_command(), "extract", "--config", "own.yaml", "--dataset", dataset])


def test_tar_without_images_and_truncated_tar(own) -> None:
    _tar(own.folder / "own/train/1.tar", {"a.txt": b"only words"})
    for stage in ("shards", "weights"):
        own.run([*_command(), stage, "--config", "own.yaml"])
    said = _error(own, "extract", "--config", "own.yaml", "--dataset", "train")
    assert "own/train/1.tar" in said
    cut = own.folder / "own/train/1.tar"
    cut.write_bytes((own.folder / "own/train/0.tar").read_bytes()[:1500])
    own.run([*_command(), "shards", "--config", "own.yaml"])
    assert "own/train/1.tar" in _error(own, "extract", "--config", "own.yaml", "--dataset", "train")


def test_tar_that_came_later_names_the_stage_to_run(own) -> None:
    _extract(own)
    (own.folder / "own/train/0.tar").rename(own.folder / "own/train/2.tar")
    said = _error(own, "extract", "--config", "own.yaml", "--dataset", "train")
    assert "2.tar: not among the tars that stage shards found for train" in said


def test_undecodable_image_is_a_counted_reject(own) -> None:
    _tar(
        own.folder / "own/train/1.tar",
        {"x.png": _png(1)[:40], "x.txt": b"broken", "y.png": _png(2), "y.txt": b"whole"},
    )
    _extract(own)
    manifests = [
        json.loads(path.read_text())
        for path in own.folder.glob("results/data/features/train/*/1/manifest.json")
    ]
    assert [manifest["counts"] for manifest in manifests] == [{"samples": 1, "rejects": 1}] * 2


def test_store_of_another_encoder_is_refused(own) -> None:
    """A store that was put where another encoder's belongs is not taken for it."""
    _extract(own)
    eva, vit = sorted((own.folder / "results/data/features/train").iterdir())
    _swap(eva / "0", vit / "0")
    said = _error(own, "pairs", "--config", "own.yaml", "--dataset", "train")
    assert "demo-vit" in said
    assert "demo-eva" in said


def _swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def test_missing_input_names_the_stage_to_run(own) -> None:
    assert "manifest.json: missing, run the stage that makes it first" in _error(
        own, "train", "--config", "own.yaml"
    )


def test_unknown_run_and_spec_of_another_stage(own) -> None:
    assert "this experiment has train_flow" in _error(own, "train", "--config", "own.yaml", "--run", "floww")
    assert "--spec: not a spec" in _error(own, "train", "--spec", "{}")


def test_own_images_go_through_to_pairs(own) -> None:
    """A folder of tars needs no network and nothing but the configuration."""
    for dataset in ("train", "test"):
        _extract(own, dataset)
    own.run([*_command(), "pairs", "--config", "own.yaml"])
    manifest = json.loads(
        next(own.folder.glob("results/data/features/train/pairs-*/manifest.json")).read_text()
    )
    assert manifest["counts"]["pairs"] == 8
    assert ROOT.name not in json.dumps(manifest)
