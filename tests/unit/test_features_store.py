"""Token stores: standard Zarr, exact reads, and every kind of damage named with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from features_material import (
    BATCH,
    POOLED_WIDTH,
    TOKEN_SHAPE,
    files_of,
    is_rejected,
    open_writer,
    pooled_values,
    token_values,
    write_batches,
)
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import StoreError
from flowkit.features import records
from flowkit.features.records import RecordLayout, RecordReader
from flowkit.features.store import TokenStore
from flowkit.features.stream import RecordStream, checksum_of

BATCHES = 5
KEPT = [index for index in range(BATCHES * BATCH) if not is_rejected(index)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_batches(tmp_path_factory.mktemp("store") / "00000", BATCHES)


@pytest.fixture
def store_path(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "00000"))


def test_values_come_back_in_any_order_and_with_repeats(pristine: Path) -> None:
    store = TokenStore(pristine, encoder="toy")
    rows = [3, 0, len(KEPT) - 1, 3]
    np.testing.assert_array_equal(store.read_tokens(rows), [token_values(KEPT[row]) for row in rows])
    np.testing.assert_array_equal(
        store.read_pooled(np.array(rows)), [pooled_values(KEPT[row]) for row in rows]
    )


def test_zarr_python_reads_the_same_bits(pristine: Path) -> None:
    store = TokenStore(pristine)
    group = store.as_zarr()
    for name, direct in [("tokens", store.read_tokens), ("pooled", store.read_pooled)]:
        through_zarr = np.asarray(group[name][:])
        assert through_zarr.dtype == np.float16
        assert through_zarr.tobytes() == direct(range(len(store))).tobytes()
    assert group["tokens"].metadata.dimension_names == ("sample", "token", "channel")
    assert np.isnan(group["tokens"].fill_value)
    assert {name: value for name, value in group.attrs.items() if name != "checksums"} == store.attributes


def test_tables_keep_rows_captions_and_reasons(pristine: Path) -> None:
    store = TokenStore(pristine)
    assert list(store.samples["index"]) == KEPT
    assert list(store.samples["row"]) == list(range(len(KEPT)))
    assert list(store.samples["captions"][1]) == ["caption ü 1"]
    assert json.loads(store.samples["attributes_json"][2]) == {"n": 2}
    assert (store.samples["width"][0], store.samples["height"][0]) == (32, 24)
    assert list(store.rejects["index"]) == [i for i in range(BATCHES * BATCH) if is_rejected(i)]
    assert set(store.rejects["reason"]) == {"image undecodable: torn"}
    assert store.attributes["counts"] == {"seen": 20, "samples": 17, "rejects": 3}


def test_size_on_disk_is_the_records_and_their_index(pristine: Path) -> None:
    raw = len(KEPT) * TOKEN_SHAPE[0] * TOKEN_SHAPE[1] * 2
    assert (pristine / "tokens/c.0.0.0").stat().st_size == raw + len(KEPT) * (4 + 16) + 4


def test_reads_into_a_given_buffer(pristine: Path) -> None:
    store = TokenStore(pristine)
    buffer = np.empty((2, *TOKEN_SHAPE), np.float16)
    assert store.read_tokens([4, 2], buffer) is buffer
    np.testing.assert_array_equal(buffer[1], token_values(KEPT[2]))
    with pytest.raises(ValueError, match="C-contiguous float16"):
        store.read_tokens([4], np.empty((1, 6, 5), np.float16))
    with pytest.raises(ValueError, match="C-contiguous float16"):
        store.read_tokens([4], np.empty((1, *TOKEN_SHAPE), np.float32))


def test_loader_fills_the_slots_it_names(pristine: Path) -> None:
    store = TokenStore(pristine)
    buffer = np.zeros((4, *store.record_shape("tokens")), np.float16)
    store.read_into("tokens", [4, 2], buffer, np.array([3, 1]))
    np.testing.assert_array_equal(buffer[[3, 1]], [token_values(KEPT[4]), token_values(KEPT[2])])
    assert not buffer[[0, 2]].any()


def test_loader_may_leave_out_the_checksums(store_path: Path) -> None:
    with (store_path / "pooled/c.0.0").open("r+b") as file:
        file.write(b"\xff")
    store = TokenStore(store_path)
    buffer = np.empty((1, *store.record_shape("pooled")), np.float16)
    store.read_into("pooled", [0], buffer, [0], check=False)
    with pytest.raises(StoreError, match="row 0 does not match its checksum"):
        store.read_into("pooled", [0], buffer, [0])


@pytest.mark.parametrize("row", [-1, len(KEPT)])
def test_row_out_of_range_is_refused(pristine: Path, row: int) -> None:
    with pytest.raises(IndexError, match=rf"row {row} .* 17 samples"):
        TokenStore(pristine).read_tokens([row])


def test_every_flipped_bit_of_a_record_is_found(store_path: Path) -> None:
    path = store_path / "tokens/c.0.0.0"
    stride = RecordLayout(TOKEN_SHAPE).stride
    content = bytearray(path.read_bytes())
    for offset in (0, stride - 5, stride - 1):  # first value, last value, checksum
        damaged = bytearray(content)
        damaged[6 * stride + offset] ^= 1
        path.write_bytes(damaged)
        store = TokenStore(store_path)
        store.read_tokens([5, 7])
        with pytest.raises(StoreError, match=r"tokens/c\.0\.0\.0: row 6 does not match its checksum"):
            store.read_tokens([6])
        with pytest.raises(StoreError, match="row 6"):
            store.verify()


def test_damaged_index_is_found_by_verify(store_path: Path) -> None:
    path = store_path / "pooled/c.0.0"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"pooled/c\.0\.0: the index"):
        TokenStore(store_path).verify()


def test_verify_counts_all_records(pristine: Path) -> None:
    assert TokenStore(pristine).verify() == 2 * len(KEPT)


def _truncate(name: str, lost_bytes: int = 1) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        path = store / name
        path.write_bytes(path.read_bytes()[:-lost_bytes])

    return damage


def _edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        document = json.loads((store / name).read_text())
        change(document)
        (store / name).write_text(json.dumps(document))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate("tokens/c.0.0.0"), r"tokens/c\.0\.0\.0 has 1363 bytes, expected 1364 for 17 samples"),
        (lambda store: (store / "pooled/c.0.0").unlink(), r"pooled/c\.0\.0 is missing"),
        (lambda store: shutil.rmtree(store / "pooled"), r"pooled/zarr\.json is missing"),
        (lambda store: (store / "zarr.json").unlink(), r"zarr\.json is missing; this store is not finished"),
        (_truncate("samples.parquet"), r"samples\.parquet cannot be read as parquet"),
        (lambda store: (store / "rejects.parquet").unlink(), r"rejects\.parquet cannot be read"),
        (_truncate("zarr.json", 3), r"00000/zarr\.json is not JSON"),
        (_edit("zarr.json", lambda d: d["attributes"].update(flowkit_store=99)), "flowkit_store is 99"),
        (
            _edit("zarr.json", lambda d: d["attributes"]["counts"].update(rejects=4)),
            r"00000/zarr\.json does not match its checksum",
        ),
        (
            _edit("tokens/zarr.json", lambda d: d.update(shape=[16, 5, 6])),
            r"tokens/zarr\.json does not describe 17",
        ),
    ],
)
def test_damage_is_named_on_opening(store_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(store_path)
    with pytest.raises(StoreError, match=message):
        TokenStore(store_path)


def test_foreign_encoder_is_refused(pristine: Path) -> None:
    with pytest.raises(StoreError, match=r"holds tokens of 'toy', expected 'demo-eva'"):
        TokenStore(pristine, encoder="demo-eva")


def test_digest_follows_the_content(pristine: Path, tmp_path: Path) -> None:
    digest = TokenStore(pristine).digest()
    assert TokenStore(write_batches(tmp_path / "again", BATCHES)).digest() == digest
    assert TokenStore(write_batches(tmp_path / "shorter", BATCHES - 1)).digest() != digest
    assert TokenStore(write_batches(tmp_path / "other", BATCHES, layer="first")).digest() != digest


def test_store_without_samples_is_a_store(tmp_path: Path) -> None:
    with open_writer(tmp_path / "empty") as writer:
        writer.finish()
    store = TokenStore(tmp_path / "empty")
    assert len(store) == 0
    assert store.verify() == 0
    assert store.read_tokens([]).shape == (0, *TOKEN_SHAPE)
    assert store.as_zarr()["pooled"][:].shape == (0, POOLED_WIDTH)


def test_open_files_stay_bounded_and_readers_correct(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = records._OpenFiles(limit=2)
    monkeypatch.setattr(records, "_open_files", files)
    readers = [
        RecordReader(pristine / "tokens/c.0.0.0", RecordLayout(TOKEN_SHAPE), len(KEPT)) for _ in range(6)
    ]

    def read(number: int) -> bool:
        row = number % len(KEPT)
        return bool((readers[number % 6].read([row])[0] == token_values(KEPT[row])).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(300)))
    assert len(files._files) == 2
    readers.clear()
    assert not files._files


@given(count=st.integers(1, 40), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_encoded_records_decode_to_the_same_bits(
    count: int, width: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (count, width), dtype=np.uint16)
    path = tmp_path_factory.mktemp("records") / "c"
    layout = RecordLayout((width,))
    stream = RecordStream(path, layout)
    for part in np.array_split(bits.view(np.float16), 3):
        stream.append(list(part), [checksum_of(record) for record in part])
    stream.finish()
    reader = RecordReader(path, layout, count)
    reader.check_size()
    reader.check_index()
    np.testing.assert_array_equal(reader.read(range(count)).view(np.uint16), bits)


def test_store_holds_no_leftovers(pristine: Path) -> None:
    assert set(files_of(pristine)) == {
        "zarr.json", "samples.parquet", "rejects.parquet",
        "tokens/zarr.json", "tokens/c.0.0.0", "pooled/zarr.json", "pooled/c.0.0",
    }  # fmt: skip
