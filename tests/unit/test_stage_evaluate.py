"""Samples that the evaluation must not take: other images, another order, and what diverged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowkit.errors import StoreError
from flowkit.evaluation.score import METRICS
from flowkit.features.samples import open_samples, write_tokens, write_unrounded
from flowkit.stages.evaluate import embedding_of, scores_of, texts_of
from flowkit.stages.sample_keys import demand_same_keys

KEYS = ["a", "b", "c", "d"]


def samples(folder: Path, keys: list[str], broken: int | None = None):
    tokens = np.ones((len(keys), 3, 2), np.float32)
    if broken is not None:
        tokens[broken, 1, 0] = np.inf
    write_tokens(folder, [tokens], {}, keys=keys)
    return open_samples(folder)


def test_samples_of_the_first_images_in_order_are_taken(tmp_path: Path) -> None:
    demand_same_keys(KEYS, samples(tmp_path / "all", KEYS), "euler-1")
    demand_same_keys(KEYS, samples(tmp_path / "first", KEYS[:2]), "euler-1")
    demand_same_keys(KEYS, samples(tmp_path / "refused", KEYS, broken=1), "euler-1")
    demand_same_keys(
        KEYS, write_unrounded(tmp_path / "exact", [np.ones((4, 3, 2), np.float32)], keys=KEYS), "-"
    )


def test_keys_may_repeat_across_tars(tmp_path: Path) -> None:
    repeated = ["a", "b", "c", "a"]
    for broken in (None, 0, 3):
        demand_same_keys(repeated, samples(tmp_path / str(broken), repeated, broken=broken), "euler-1")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["a", "c", "b", "d"], "place 1 holds image 'c', expected 'b'"),
        (["b", "c", "d"], "place 0 holds image 'b', expected 'a'"),
        (["a", "b", "c", "d", "e"], "5 images, expected 4"),
    ],
)
def test_the_first_key_that_differs_is_named(tmp_path: Path, keys: list[str], says: str) -> None:
    with pytest.raises(StoreError, match=f"euler-1: {says}; sample the run again"):
        demand_same_keys(KEYS, samples(tmp_path, keys), "euler-1")


def _never(*sets: object, **settings: object) -> None:
    raise AssertionError("nothing is scored")


def test_refused_samples_are_counted_and_named_and_nothing_is_measured(tmp_path: Path) -> None:
    """A diverged run does not keep the others from their report."""
    rows, notes, collected = scores_of(
        "heun-50",
        [samples(tmp_path / "0", KEYS), samples(tmp_path / "1", KEYS, broken=2)],
        KEYS,
        score=_never,
    )
    assert [row["metric"] for row in rows] == list(METRICS)
    assert all(row["value"] is None for row in rows)
    assert notes[0]["note"].startswith(
        "1 of 8 samples are not finite or beyond float16, first c: the run has diverged"
    )
    assert collected is None


def test_fewer_samples_than_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="samples of euler-1: 3 images, expected 4; sample the run again"):
        scores_of("euler-1", [samples(tmp_path, KEYS[:3])], KEYS, score=_never)


@pytest.mark.parametrize("classes", [[], ["red circle"]])
def test_classes_are_asked_for_only_where_there_are_prompts(tmp_path: Path, classes: list[str]) -> None:
    """COCO without instances has captions all the same."""
    from safetensors.torch import save_file

    from flowkit.provenance import write_json

    save_file(
        {"captions": torch.eye(2), "prompts": torch.eye(2)[: len(classes)].contiguous()},
        tmp_path / "texts.safetensors",
    )
    write_json(tmp_path / "texts.json", {"captions": ["one", "two"], "classes": classes, "prompts": classes})
    attributes = ['{"objects": [{"colour": "red", "shape": "circle"}]}'] * 2
    kind = "demo" if classes else "coco"
    texts = texts_of(tmp_path, kind, [["one"], ["two", "one"]], attributes)
    assert texts.captions is not None
    assert texts.captions.image_M.tolist() == [0, 1, 1]
    assert (texts.classes is None) == (not classes)


def test_embeddings_by_layout(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tokens = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    assert embedding_of("patches", tmp_path) is None
    pooled = embedding_of("pooled", tmp_path)
    assert pooled is not None
    assert np.array_equal(pooled(tokens[:, :1]), tokens[:, 0])
    head = {
        "norm.weight": torch.ones(4),
        "norm.bias": torch.zeros(4),
        "norm.epsilon": torch.tensor([0.0]),
        "projection.weight": torch.eye(4)[:2].contiguous(),
    }
    save_file(head, tmp_path / "head.safetensors")
    embed = embedding_of("cls_patches", tmp_path)
    assert embed is not None
    cls = tokens[:, 0]
    normed = (cls - cls.mean(1, keepdims=True)) / cls.std(1, keepdims=True)
    assert embed(tokens) == pytest.approx(normed[:, :2], abs=1e-5)
