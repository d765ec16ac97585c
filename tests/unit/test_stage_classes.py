"""Classes for zero-shot: what is prompted is what images are said to show, and tars that say nothing are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from web_material import CAPTIONS_MEMBER, INSTANCES_MEMBER, tiny_coco

from flowkit.config import load_config
from flowkit.errors import ShardError, StageError
from flowkit.evaluation.zero_shot import class_table
from flowkit.paths import Places
from flowkit.shards.coco import write_coco_shards
from flowkit.shards.demo_shapes import COLOURS, draw, write_shards
from flowkit.shards.demo_solids import draw as draw_solids
from flowkit.shards.reader import Sample, read_samples
from flowkit.stages.classes import class_texts, image_class_names
from flowkit.stages.specs import Plan

ROOT = Path(__file__).parents[2]


def _attributes(tars: list[Path]) -> list[str]:
    """The attributes of all samples, as stores keep them."""
    samples = [sample for tar in tars for sample in read_samples(tar)]
    assert all(isinstance(sample, Sample) for sample in samples)
    return [json.dumps(sample.attributes) for sample in samples]


def test_every_class_of_a_coco_image_is_prompted(tmp_path: Path) -> None:
    for name, content in zip(("images.zip", "annotations.zip"), tiny_coco(6), strict=True):
        (tmp_path / name).write_bytes(content)
    tars = write_coco_shards(
        tmp_path / "images.zip",
        tmp_path / "annotations.zip",
        CAPTIONS_MEMBER,
        tmp_path / "tars",
        images=None,
        images_per_shard=4,
        instances_member=INSTANCES_MEMBER,
    )
    names, prompts = class_texts("coco", has_instances=True)
    shown = image_class_names("coco", _attributes(tars))
    number = {name: row for row, name in enumerate(names)}
    table = class_table([[number[name] for name in one] for one in shown], len(names))
    assert table.sum(axis=1).tolist() == [0, 3, 3, 2, 3, 3], "an image without instances shows none"
    assert prompts[number["traffic light"]] == "a photo of a traffic light."
    assert prompts[number["airplane"]] == "a photo of a airplane.", "the template is taken word for word"
    assert len(set(prompts)) == len(names) == 80


def test_demo_images_with_two_objects_are_left_out(tmp_path: Path) -> None:
    tars = write_shards(tmp_path, images=40, images_per_shard=40, seed=3)
    names, prompts = class_texts("demo", has_instances=False)
    shown = image_class_names("demo", _attributes(tars))
    for index, one in enumerate(shown):
        objects = draw(3, index).attributes["objects"]
        assert len(one) == (len(objects) == 1)
        assert set(one) <= set(names)
    assert {len(one) for one in shown} == {0, 1}
    assert dict(zip(names, prompts, strict=True))["red circle"] == "a red circle"


def test_objects_of_several_colours_are_left_out() -> None:
    drawn = [draw_solids(3, index, 2) for index in range(60)]
    names, prompts = class_texts("solids", has_instances=False)
    shown = image_class_names("solids", [json.dumps(one.attributes) for one in drawn])
    for one, classes in zip(drawn, shown, strict=True):
        colours = set(COLOURS) & set(one.caption.split())
        assert classes == (tuple(colours) if len(colours) == 1 else ())
    assert {len(one) for one in shown} == {0, 1}
    assert dict(zip(names, prompts, strict=True))["red"] == "a red circle"


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_other_data_sets_have_no_classes(kind: str) -> None:
    assert class_texts(kind, has_instances=False) == ([], [])
    assert image_class_names(kind, ["{}", None]) == [(), ()]


def test_coco_without_instances_has_no_prompts() -> None:
    assert class_texts("coco", has_instances=False) == ([], [])


def test_tars_from_before_instances_were_read_are_refused() -> None:
    new = json.dumps({"image_id": 139, "categories": ["person"]})
    with pytest.raises(
        StageError, match=r"image 285: .* run stages shards and extract again .* set it to null"
    ):
        image_class_names("coco", [new, json.dumps({"image_id": 285})])
    with pytest.raises(StageError, match="image without id"):
        image_class_names("coco", [new, None])
    with pytest.raises(ShardError, match="not of the demo set"):
        image_class_names("demo", [None])
    with pytest.raises(ShardError, match="not of the solids"):
        image_class_names("solids", [None])


def _tracked(*overrides: str) -> dict[str, set[str]]:
    """What makes each rule of a small experiment on COCO run again."""
    coco = "datasets.test={kind: coco, images: 32}"
    config = load_config(ROOT / "tests/workflow/tiny.yaml", (coco, *overrides))
    jobs = Plan(config, Places("tiny", Path("r"), Path("d"))).jobs
    return {name: set(job.tracked) for name, job in jobs.items()}


def test_leaving_instances_out_runs_what_depends_on_them_and_fetches_nothing() -> None:
    with_them, without = _tracked(), _tracked("datasets.test.instances=null")
    changed = {name for name in with_them if with_them[name] != without[name]}
    # stores, and what reads them, follow the tars
    assert changed == {
        "shards_test",
        "texts_test",
        "evaluate_flow",
        "evaluate_regression",
        "evaluate_baselines",
    }
    assert "datasets.test.has_instances=False" in without["texts_test"]
    assert "datasets.test.instances=None" in without["shards_test"]
