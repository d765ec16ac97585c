"""Objects of several views in stores, pairs and loader: whole objects only, view after view, in every layout."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from views_material import VIEWS, WHOLE, values, write_store, write_stores

from flowkit.errors import StoreError
from flowkit.features.loader import Layout, PairedTokens, SourceTokens
from flowkit.features.pairs import FEWER_VIEWS, merge_pairs, read_pairs
from flowkit.features.samples import by_view, whole_samples
from flowkit.features.store import TokenStore

Stores = tuple[Path, list[Path], list[Path]]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("views")
    sides = write_stores(folder)
    counts = merge_pairs(*sides, folder / "pairs.parquet")
    assert (counts.pairs, counts.views) == (len(WHOLE), VIEWS)
    assert counts.fell_out == {
        "source: image undecodable": 2,
        "target: image undecodable": 2,
        FEWER_VIEWS: 2 + 1 + 2,
    }
    return folder / "pairs.parquet", *sides


def expected(encoder: str, layout: Layout, shown: SourceTokens = "all") -> np.ndarray:
    """Tokens of all whole objects [N, V T, D], put together without the loader."""
    objects = []
    for tar, number in WHOLE:
        of_views = values(encoder, tar)[number * VIEWS : (number + 1) * VIEWS].astype(np.float32)
        if layout == "pooled":
            pooled = values(encoder, tar)[number * VIEWS : (number + 1) * VIEWS].mean(1)
            of_views = pooled.astype(np.float16).astype(np.float32)[:, None]
        elif shown == "cls":
            of_views = np.repeat(of_views[:, :1], 5 - (layout == "patches"), axis=1)
        elif layout == "patches":
            of_views = of_views[:, 1:]
        objects.append(np.concatenate(of_views))
    return np.stack(objects)


@pytest.mark.parametrize("shown", ["all", "cls"])
@pytest.mark.parametrize("layout", ["cls_patches", "patches", "pooled"])
def test_sample_is_all_views_of_an_object(stores: Stores, layout: Layout, shown: SourceTokens) -> None:
    data = PairedTokens(*stores, layout=layout, source_tokens=shown)
    sides = expected("eva", layout, shown), expected("clip", layout)
    assert (len(data), data.views, data.views_of_object) == (len(WHOLE), VIEWS, VIEWS)
    assert (data.source_shape, data.target_shape) == (sides[0].shape[1:], sides[1].shape[1:])
    assert data.grid == ((1, 1) if layout == "pooled" else (2, 2))
    ids = np.array([5, 0, 6, 0])
    for found, whole in zip(data.batch(ids), sides, strict=True):
        np.testing.assert_array_equal(found.numpy(), whole[ids])
        assert found.is_contiguous()
    for tokens, whole in zip((data.source(), data.target()), sides, strict=True):
        assert tokens.shape == whole.shape
        np.testing.assert_array_equal(tokens[1:4], whole[1:4])
        np.testing.assert_array_equal(tokens[np.array([6, 2])], whole[[6, 2]])
    for _, ids, *streamed in islice(data.batches(seed=3, batch_size=3, readers=2), 5):
        for found, whole in zip(streamed, sides, strict=True):
            np.testing.assert_array_equal(found.float().numpy(), whole[ids])


def test_by_view_each_view_is_a_sample(stores: Stores) -> None:
    data, of_objects = PairedTokens(*stores, by_view=True), PairedTokens(*stores)
    assert (len(data), data.views, data.views_of_object) == (len(WHOLE) * VIEWS, 1, VIEWS)
    ids = np.arange(len(data))
    for alone, joined in zip(data.batch(ids), of_objects.batch(np.arange(len(WHOLE))), strict=True):
        assert torch.equal(alone, joined.reshape(alone.shape))
    assert data.keys(np.array([0, 4])) == ["0-0.0", "0-2.1"]


def test_names_are_those_of_objects_and_images_those_of_views(stores: Stores) -> None:
    data = PairedTokens(*stores)
    names = [f"{tar}-{number}" for tar, number in WHOLE]
    assert data.samples()["key"].tolist() == names == data.keys(np.arange(len(data)))
    assert data.samples()["captions"].iloc[0].tolist() == ["caption 0-0.0"]
    tars, images = data.images(4)
    assert tars.tolist() == [0] * 9 + [1] * 3
    assert images["key"].tolist() == [f"{name}.{view}" for name in names[:4] for view in range(VIEWS)]


def test_held_out_tars_hold_whole_objects(stores: Stores) -> None:
    first, last = (PairedTokens(*stores, tars=tars) for tars in (slice(0, -1), slice(-1, None)))
    assert [one.samples()["key"].tolist() for one in (first, last)] == [
        ["0-0", "0-2", "0-4"],
        ["1-1", "1-2", "1-3", "1-4"],
    ]


def test_unequal_view_counts_are_refused(tmp_path: Path) -> None:
    source, target = write_store(tmp_path, "eva", 0), write_store(tmp_path, "clip", 0, views=1)
    with pytest.raises(StoreError, match=r"clip0 is of objects with 1 view\(s\), .*eva0 of such with 3"):
        merge_pairs([source], [target], tmp_path / "pairs.parquet")


def test_tables_whose_tars_are_mixed_are_refused(stores: Stores, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(stores[0])
    pq.write_table(table.take(np.arange(len(table))[::-1].copy()), tmp_path / "pairs.parquet")
    sides = [[TokenStore(path) for path in side] for side in stores[1:]]
    with pytest.raises(StoreError, match="not in the order of its tars"):
        read_pairs(tmp_path / "pairs.parquet", *sides)


@pytest.mark.parametrize("cuts", [[6], [1, 5, 6], [2, 4]])
def test_samples_are_put_together_from_batches_that_end_anywhere(cuts: list[int]) -> None:
    objects = np.random.default_rng(0).standard_normal((4, 3 * 5, 2)).astype(np.float32)
    images = by_view(objects, 3)
    assert images.shape == (12, 5, 2)
    np.testing.assert_array_equal(images[4], objects[1, 5:10])
    joined = list(whole_samples(np.split(images, cuts), 3))
    np.testing.assert_array_equal(np.concatenate(joined), objects)
    with pytest.raises(ValueError, match="1 images are left over, expected samples of 3"):
        list(whole_samples([images[:7]], 3))
