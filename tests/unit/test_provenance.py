"""Fingerprints of code, atomic files and digests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowkit.errors import StageError
from flowkit.provenance import code_fingerprint, digest_of, folder_digests, read_json, source_hash, write_json
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
