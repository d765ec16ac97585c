"""The training loader: right rows, buffers that are used again, ranks, readers and exact resume at any step."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import astuple
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from flowkit.errors import StoreError
from flowkit.features.int8 import convert_store
from flowkit.features.loader import BATCHES_AHEAD, Layout, PairedTokens, Step
from flowkit.features.order import Shuffle, order
from flowkit.features.pairs import merge_pairs
from flowkit.features.prefetch import prefetched
from flowkit.features.store import TokenStore
from flowkit.features.tables import SampleRow
from flowkit.features.writer import TokenStoreWriter

SOURCE_SHAPE, TARGET_SHAPE, TARS, PER_TAR = (5, 6), (5, 4), 3, 7


def _write(
    path: Path, tar: int, shape: tuple[int, int], encoder: str, *, skip: int, has_cls: bool = True
) -> Path:
    """The store of tar `tar`, without member `skip`; every value tells tar, member, token and channel."""
    members = [index for index in range(PER_TAR) if index != skip]
    values = np.random.default_rng([tar, len(encoder)]).standard_normal((PER_TAR, *shape)).astype(np.float16)
    attributes = {
        "encoder": encoder,
        "has_cls": has_cls,
        "source": {"name": f"{tar}.tar", "sha256": str(tar)},
    }
    with TokenStoreWriter(path, token_shape=shape, pooled_width=shape[1], attributes=attributes) as writer:
        rows = [SampleRow(index, f"{tar}-{index}", (f"caption {tar} {index}",)) for index in members]
        writer.append(values[members], values[members].mean(1), rows, next_index=PER_TAR)
        writer.finish()
    return path


Stores = tuple[Path, list[Path], list[Path]]
JOIN = (np.concatenate, torch.cat, torch.cat)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("features")
    sources = [_write(folder / f"s{tar}", tar, SOURCE_SHAPE, "eva", skip=tar) for tar in range(TARS)]
    targets = [_write(folder / f"t{tar}", tar, TARGET_SHAPE, "clip", skip=5) for tar in range(TARS)]
    merge_pairs(sources, targets, folder / "pairs.parquet")
    return folder / "pairs.parquet", sources, targets


@pytest.fixture(scope="module")
def data(stores: Stores) -> PairedTokens:
    return PairedTokens(*stores)


def test_batch_holds_the_tokens_of_each_pair(data: PairedTokens, stores: Stores) -> None:
    assert (len(data), data.source_shape, data.target_shape) == (15, SOURCE_SHAPE, TARGET_SHAPE)
    ids = np.array([14, 0, 7, 0])
    source, target = data.batch(ids)
    assert source.dtype == target.dtype == torch.float32
    places = zip(*(rows[ids, 0].tolist() for rows in astuple(data.rows)), strict=True)
    for position, (tar, source_row, target_row) in enumerate(places):
        left, right = TokenStore(stores[1][tar]), TokenStore(stores[2][tar])
        assert left.samples["key"][source_row] == right.samples["key"][target_row]
        np.testing.assert_array_equal(source[position].numpy(), left.read_tokens([source_row])[0])
        np.testing.assert_array_equal(target[position].numpy(), right.read_tokens([target_row])[0])


def test_samples_follow_the_pairs(data: PairedTokens) -> None:
    keys = list(data.samples()["key"])
    assert keys[:6] == ["0-1", "0-2", "0-3", "0-4", "0-6", "1-0"]
    assert len(keys) == len(data)


@pytest.mark.parametrize(
    ("layout", "source", "target"),
    [("cls_patches", (5, 6), (5, 4)), ("patches", (4, 6), (4, 4)), ("pooled", (1, 6), (1, 4))],
)
def test_layouts_are_views_of_one_store(
    data: PairedTokens, stores: Stores, layout: Layout, source: tuple[int, int], target: tuple[int, int]
) -> None:
    view = PairedTokens(*stores, layout=layout)
    ids = np.arange(len(view))
    loaded = view.batch(ids)
    assert (view.source_shape, view.target_shape) == (source, target)
    assert [tensor.shape[1:] for tensor in loaded] == [source, target]
    if layout != "pooled":
        skipped = 5 - source[0]
        assert torch.equal(loaded[1], data.batch(ids)[1][:, skipped:])
        assert loaded[1].is_contiguous()


def test_class_token_cannot_be_invented(tmp_path: Path) -> None:
    source = _write(tmp_path / "s", 0, SOURCE_SHAPE, "eva", skip=0, has_cls=False)
    target = _write(tmp_path / "t", 0, TARGET_SHAPE, "clip", skip=0)
    merge_pairs([source], [target], tmp_path / "pairs.parquet")
    with pytest.raises(StoreError, match=r"/s holds no class token"):
        PairedTokens(tmp_path / "pairs.parquet", [source], [target])
    patches = PairedTokens(tmp_path / "pairs.parquet", [source], [target], layout="patches")
    assert (patches.source_shape, patches.target_shape) == ((5, 6), (4, 4))


@pytest.mark.parametrize("layout", ["cls_patches", "patches", "pooled"])
def test_hidden_source_shows_the_class_token_alone(
    data: PairedTokens, stores: Stores, layout: Layout
) -> None:
    hidden, ids = PairedTokens(*stores, layout=layout, source_tokens="cls"), np.arange(15)
    source, target = hidden.batch(ids)
    open_source, open_target = PairedTokens(*stores, layout=layout).batch(ids)
    assert torch.equal(target, open_target)
    class_token = open_source if layout == "pooled" else data.batch(ids)[0][:, :1]
    assert torch.equal(source, class_token.expand_as(open_source))
    streamed = next(iter(hidden.batches(seed=1, batch_size=5)))
    assert torch.equal(streamed[2].float(), hidden.batch(streamed[1])[0])


def test_tokens_of_a_side_are_read_as_they_are_asked_for(data: PairedTokens) -> None:
    source, target = data.batch(np.arange(15))
    for tokens, whole in ((data.source(), source.numpy()), (data.target(), target.numpy())):
        assert (tokens.shape, len(tokens)) == (whole.shape, 15)
        assert np.array_equal(tokens[3:9], whole[3:9])
        assert np.array_equal(tokens[np.array([14, 0, 0, 7])], whole[[14, 0, 0, 7]])
        assert tokens[3:9].dtype == np.float32
    chosen = np.array([12, 4, 9])
    assert np.array_equal(data.target(chosen)[1:], target.numpy()[chosen[1:]])


def test_pooled_vectors_have_no_grid(stores: Stores) -> None:
    assert PairedTokens(*stores, layout="pooled").grid == (1, 1)


def test_stores_of_two_encoders_do_not_mix(stores: Stores) -> None:
    with pytest.raises(StoreError, match=r"t1 has arrays = .*, .*s0 has"):
        PairedTokens(stores[0], [stores[1][0], stores[2][1], stores[1][2]], stores[2])
    with pytest.raises(StoreError, match="no feature stores"):
        PairedTokens(stores[0], [], [])


def test_unknown_layout_is_refused(stores: Stores) -> None:
    with pytest.raises(ValueError, match="layout is 'cls', expected one of cls_patches"):
        PairedTokens(*stores, layout="cls")  # type: ignore[arg-type]


def _kept(steps: Iterable[Step]) -> list[Step]:
    """Steps whose tensors stay what they are when the buffers are used again."""
    return [(step, ids.copy(), source.clone(), target.clone()) for step, ids, source, target in steps]


def _same(left: list[Step], right: list[Step]) -> bool:
    return len(left) == len(right) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3])
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("layout", ["cls_patches", "patches", "pooled"])
@pytest.mark.parametrize("shuffle", ["random", "blocks"])
def test_batches_hold_the_tokens_of_their_ids(stores: Stores, layout: Layout, shuffle: Shuffle) -> None:
    data = PairedTokens(*stores, layout=layout)
    for _, ids, source, target in islice(data.batches(seed=1, batch_size=5, shuffle=shuffle), 12):
        assert source.dtype == target.dtype == torch.float16
        expected = data.batch(ids, dtype=torch.float16)
        assert torch.equal(source, expected[0])
        assert torch.equal(target, expected[1])


def test_batches_agree_with_zarr_bit_for_bit(data: PairedTokens, stores: Stores) -> None:
    arrays = [[TokenStore(path).as_zarr()["tokens"] for path in side] for side in stores[1:]]
    for _, ids, *sides in islice(data.batches(seed=2, batch_size=7), 4):
        tars, *rows_of_sides = (rows[ids, 0].tolist() for rows in astuple(data.rows))
        for side, rows, found in zip(arrays, rows_of_sides, sides, strict=True):
            slow = np.stack([side[tar][row] for tar, row in zip(tars, rows, strict=True)])
            np.testing.assert_array_equal(found.numpy().view(np.uint16), slow.view(np.uint16))


def test_batches_are_views_of_buffers_used_again(data: PairedTokens) -> None:
    places = [source.data_ptr() for _, _, source, _ in islice(data.batches(seed=1, batch_size=5), 12)]
    assert len(set(places)) == BATCHES_AHEAD + 1
    assert places[: BATCHES_AHEAD + 1] * 3 == places


def test_batch_in_hand_stays_while_later_ones_are_read(data: PairedTokens) -> None:
    batches = data.batches(seed=1, batch_size=5)
    for _ in range(8):
        _, ids, source, target = next(batches)
        time.sleep(0.02)  # time for the thread to read on as far as it may
        assert torch.equal(source, data.batch(ids, dtype=torch.float16)[0])
        assert torch.equal(target, data.batch(ids, dtype=torch.float16)[1])


def test_steps_follow_the_order_of_each_epoch(data: PairedTokens) -> None:
    steps = _kept(islice(data.batches(seed=5, batch_size=4), 6))
    assert [step for step, *_ in steps] == list(range(6))
    for epoch in range(2):
        ids = np.concatenate([ids for _, ids, *_ in steps[3 * epoch : 3 * epoch + 3]])
        np.testing.assert_array_equal(ids, order(5, epoch, 15)[:12])


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_resume_gives_the_identical_remaining_batches(data: PairedTokens, start: int) -> None:
    whole = _kept(islice(data.batches(seed=9, batch_size=4), 9))
    rest = _kept(islice(data.batches(seed=9, batch_size=4, start_step=start), 9 - start))
    assert _same(rest, whole[start:])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches(data: PairedTokens, world_size: int) -> None:
    whole = _kept(islice(data.batches(seed=9, batch_size=4), 7))
    ranks = [
        _kept(islice(data.batches(seed=9, batch_size=4, rank=rank, world_size=world_size), 7))
        for rank in range(world_size)
    ]
    joined = [
        (parts[0][0], *(f([part[field] for part in parts]) for field, f in enumerate(JOIN, start=1)))
        for parts in zip(*ranks, strict=True)
    ]
    assert _same(joined, whole)


def test_readers_change_nothing(data: PairedTokens) -> None:
    alone = _kept(islice(data.batches(seed=9, batch_size=5), 7))
    for readers in (2, 7):
        assert _same(_kept(islice(data.batches(seed=9, batch_size=5, readers=readers), 7)), alone)


def test_int8_stores_load_like_others(stores: Stores, tmp_path: Path) -> None:
    pairs, sources, targets = stores
    for path in sources:
        convert_store(TokenStore(path), tmp_path / path.name)
    converted = [tmp_path / path.name for path in sources]
    data = PairedTokens(pairs, converted, targets, layout="patches")
    for _, ids, source, _ in islice(data.batches(seed=4, batch_size=6, readers=3), 5):
        tars, rows = data.rows.tar_NV[ids, 0].tolist(), data.rows.source_row_NV[ids, 0].tolist()
        expected = [
            TokenStore(converted[tar]).read_tokens([row])[0, 1:] for tar, row in zip(tars, rows, strict=True)
        ]
        np.testing.assert_array_equal(source.numpy(), expected)


def test_closing_ends_all_threads(data: PairedTokens) -> None:
    before = threading.active_count()
    batches = data.batches(seed=9, batch_size=5, readers=3)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_sizes_must_fit(data: PairedTokens) -> None:
    with pytest.raises(StoreError, match=r"pairs\.parquet has 15 pairs, fewer than one batch of 16"):
        data.batches(seed=0, batch_size=16)
    with pytest.raises(ValueError, match="batch_size is 0"):
        data.batches(seed=0, batch_size=0)
    with pytest.raises(ValueError, match="batch_size 4 cannot be split among 3 ranks"):
        data.batches(seed=0, batch_size=4, rank=0, world_size=3)
    with pytest.raises(ValueError, match="readers is 0"):
        data.batches(seed=0, batch_size=4, readers=0)
    with pytest.raises(ValueError, match="device is meta, expected cpu or cuda"):
        data.batches(seed=0, batch_size=4, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu(data: PairedTokens) -> None:
    on_cpu = _kept(islice(data.batches(seed=9, batch_size=5), 40))
    arrived: list[Step] = []
    for step, ids, source, target in islice(data.batches(seed=9, batch_size=5, device="cuda"), 40):
        assert source.device.type == target.device.type == "cuda"
        torch.cuda._sleep(1_000_000)  # the consumer's stream lags behind
        arrived.append((step, ids, source, target))
    assert _same([(step, ids, source.cpu(), target.cpu()) for step, ids, source, target in arrived], on_cpu)


def test_damage_found_in_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    source = _write(tmp_path / "s", 0, SOURCE_SHAPE, "eva", skip=0)
    merge_pairs([source], [source], tmp_path / "pairs.parquet")
    data = PairedTokens(tmp_path / "pairs.parquet", [source], [source])
    with (source / "tokens/c.0.0.0").open("r+b") as file:
        file.seek(70)
        file.write(b"\x00\x01\x02")
    with pytest.raises(StoreError, match=r"s/tokens/c\.0\.0\.0: row 1"):
        list(islice(data.batches(seed=0, batch_size=6), 1))
    with pytest.raises(StoreError, match=r"s/tokens/c\.0\.0\.0: row 1"):
        list(islice(data.batches(seed=0, batch_size=6, readers=3), 1))
    assert len(list(islice(data.batches(seed=0, batch_size=6, check=False), 2))) == 2


def test_prefetch_stays_ahead_keeps_order_and_ends_its_thread() -> None:
    made: list[int] = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    before = threading.active_count()
    ahead = prefetched(source(), 3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    ahead.close()
    assert 5 <= len(made) <= 9
    assert threading.active_count() == before
    assert list(prefetched(iter(range(4)), 3)) == [0, 1, 2, 3]


def test_no_item_is_begun_while_its_slot_is_in_use() -> None:
    begun: list[int] = []

    def source():
        for number in range(20):
            begun.append(number)
            yield number

    ahead = prefetched(source(), 2)
    for held in range(10):
        assert next(ahead) == held
        time.sleep(0.01)  # time for the thread to begin more than it may
        assert begun[-1] <= held + 2
    ahead.close()


def test_training_data_needs_no_encoder_and_no_zarr() -> None:
    code = (
        "import sys, flowkit.features.loader\n"
        "heavy = {'zarr', 'open_clip', 'timm', 'snakemake', 'flowkit.encoders', 'flowkit.shards'}\n"
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_decoders_of_two_versions_are_one_encoder_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An upgrade of the library between two extractions: nothing could repair that but extracting all again."""
    stores: dict[str, list[Path]] = {"eva": [], "clip": []}
    for encoder, paths in stores.items():
        for tar, version in enumerate(["11.3.0", "12.0.0", "12.0.0"]):
            attributes = {
                "encoder": encoder,
                "has_cls": True,
                "source": {"name": f"{tar}.tar", "sha256": str(tar)},
                "preprocessing": {"size": 224, "decoder": "pillow", "version": version},
            }
            path = tmp_path / f"{encoder}{tar}"
            with TokenStoreWriter(
                path, token_shape=(5, 6), pooled_width=None, attributes=attributes
            ) as writer:
                rows = [SampleRow(0, str(tar), ("caption",))]
                writer.append(np.zeros((1, 5, 6), np.float16), None, rows, next_index=1)
                writer.finish()
            paths.append(path)
    merge_pairs(stores["eva"], stores["clip"], tmp_path / "pairs.parquet")
    assert len(PairedTokens(tmp_path / "pairs.parquet", stores["eva"], stores["clip"])) == 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "once for each side"
    assert "2 of 3 stores were decoded by version 12.0.0 and not 11.3.0" in said[0]
    assert str(stores["eva"][1]) in said[0]
