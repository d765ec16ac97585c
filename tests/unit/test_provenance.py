"""Fingerprints of code, atomic files and digests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowkit.errors import StageError
from flowkit.provenance import (
    RunRecord,
    code_fingerprint,
    digest_of,
    folder_digests,
    host_facts,
    read_json,
    source_hash,
    write_json,
)
from flowkit.stages.fingerprint import code_of

SOURCE = '''"""Header."""
import math


def area(radius):
    """Docstring."""
    return math.pi * radius**2  # comment
'''


def test_hash_is_the_same_on_every_python_version() -> None:
    assert source_hash(SOURCE) == "69347eede4"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Header", "Another header"),
        ("  # comment", ""),
        ("Docstring", "Words"),
        ("\n\n\n", "\n\n\n\n"),
        ("(radius)", "( radius )"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(old: str, new: str) -> None:
    assert source_hash(SOURCE.replace(old, new)) == source_hash(SOURCE)


@pytest.mark.parametrize(("old", "new"), [("**2", "**3"), ("area", "volume"), ("math", "cmath")])
def test_meaning_counts(old: str, new: str) -> None:
    assert source_hash(SOURCE.replace(old, new)) != source_hash(SOURCE)


def test_a_function_of_a_docstring_alone_can_be_hashed() -> None:
    assert source_hash('def nothing():\n    """Only words."""\n') == source_hash("def nothing():\n    pass\n")


def _modules(code: tuple[str, ...]) -> set[str]:
    return {entry.partition("@")[0] for entry in code}


def test_stage_fingerprint_follows_what_it_can_import_and_nothing_else() -> None:
    train = _modules(code_of("train", {"objective": {"kind": "flow"}}))
    assert {
        "flowkit.model.dit",
        "flowkit.flow.solvers",
        "flowkit.training.loop",
        "flowkit.features.loader",
    } <= train
    assert not {name for name in train if name.startswith(("flowkit.evaluation", "flowkit.report"))}
    assert "flowkit.config" not in train


def test_fingerprint_follows_only_the_chosen_objective_and_encoder() -> None:
    flow, earlier = (
        _modules(code_of("train", {"objective": {"kind": kind}})) for kind in ("flow", "earlier")
    )
    assert earlier - flow == {"flowkit.flow.earlier"}
    values = {"encoder": {"name": "open_clip:ViT-B-32/openai"}}
    assert "flowkit.encoders.demo_towers" not in _modules(code_of("extract", values))
    assert "flowkit.encoders.demo_towers" in _modules(code_of("extract", {"encoder": {"name": "demo-vit"}}))
    assert "flowkit.encoders.tower_training" not in _modules(
        code_of("weights", {"encoder": {"name": "demo-vit"}})
    )


def test_fingerprint_of_tars_follows_only_what_draws_or_makes_them() -> None:
    found = {
        kind: {
            name
            for name in _modules(code_of("shards", {"datasets": {"x": {"kind": kind}}}))
            if "demo" in name
        }
        for kind in ("demo", "solids", "coco", "folder")
    }
    shapes = {"flowkit.shards.demo_shapes", "flowkit.shards.demo_raster"}
    assert found["demo"] == shapes
    assert found["solids"] == shapes | {"flowkit.shards.demo_solids", "flowkit.shards.demo_rays"}
    assert found["coco"] == found["folder"] == set()


def test_weights_that_come_with_the_package_count_and_their_training_does_not() -> None:
    code = code_of("weights", {"encoder": {"name": "demo-vit"}})
    assert any(entry.startswith("encoders/assets/demo-vit.safetensors@") for entry in code)
    assert not {name for name in _modules(code) if name.startswith("flowkit.shards")}
    retrained = code_of(
        "weights", {"encoder": {"name": "demo-vit"}, "encoders": {"retrain_demo_towers": True}}
    )
    assert {"flowkit.encoders.tower_training", "flowkit.shards.demo_shapes"} <= _modules(retrained)


def test_report_fingerprint_holds_its_templates() -> None:
    assert any(entry.startswith("report/templates/style.css@") for entry in code_of("report", {}))


def test_parent_packages_are_hashed() -> None:
    assert "flowkit.stages" in _modules(code_fingerprint("flowkit.stages.pairs"))


def test_write_json_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_damaged_and_missing_json_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StageError, match=r"bad\.json: damaged"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(StageError, match=r"none\.json: missing"):
        read_json(tmp_path / "none.json")


def test_digests_depend_on_content_and_names_only(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text("1")
    assert folder_digests(tmp_path / "a") == folder_digests(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert folder_digests(tmp_path / "a") != folder_digests(tmp_path / "b")
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_record_says_on_what_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("WORLD_SIZE", "8")
    first, second = (RunRecord("train", {}, []).as_dict() for _ in range(2))
    assert first["process"]["id"] == os.getpid()
    assert first["process"]["began"] == second["process"]["began"]
    assert first["process"]["seconds_before"] <= second["process"]["seconds_before"]
    assert (first["slurm_job"], first["tasks"]) == ("4711", 8)
    assert first["host"]["usable_cpus"] <= first["host"]["cpus"]
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not {"slurm_job", "tasks"} & RunRecord("train", {}, []).as_dict().keys()


class Cuda:
    """What the record asks of torch."""

    def __init__(self, count: int, *, is_broken: bool = False) -> None:
        self.count, self.is_broken = count, is_broken

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_name(self, number: int) -> str:
        if self.is_broken:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return f"NVIDIA H200 {number}"


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        (Cuda(4), {"name": "NVIDIA H200 0", "count": 4}),
        (Cuda(0), None),
        (Cuda(1, is_broken=True), {"name": "not answering", "count": 0}),
    ],
)
def test_accelerator_is_that_of_the_loaded_torch(
    monkeypatch: pytest.MonkeyPatch, cuda: Cuda, expected: object
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert host_facts()["accelerator"] == expected


def test_recording_loads_no_torch() -> None:
    code = "import sys; from flowkit.provenance import host_facts; a = host_facts(); print('torch' in sys.modules, a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")
    assert "'accelerator': None" in done.stdout


def test_what_the_system_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Path, **_: object) -> str:
        raise FileNotFoundError(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", absent)
        facts = host_facts()
    assert "name" in facts
    assert not {"cpu_model", "memory_gb"} & facts.keys()
