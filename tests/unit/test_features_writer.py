"""The writer: killed anywhere, it goes on to the same bytes; what float16 cannot hold is a reject."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import features_material
import numpy as np
import pytest
from features_material import (
    BATCH,
    POOLED_WIDTH,
    TOKEN_SHAPE,
    append_batch,
    files_of,
    open_writer,
    pooled_values,
    sample_row,
    token_values,
    write_batches,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowkit.errors import StoreError
from flowkit.features.halves import beyond_reason
from flowkit.features.samples import write_tokens
from flowkit.features.store import TokenStore
from flowkit.features.tables import RejectRow
from flowkit.features.writer import Counts, TokenStoreWriter

BATCHES = 6
FILES = ["journal.jsonl", "tokens/c.0.0.0", "pooled/c.0.0"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return files_of(write_batches(tmp_path_factory.mktemp("expected") / "store", BATCHES))


@pytest.fixture(scope="module")
def half_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store after four of the six batches."""
    folder = tmp_path_factory.mktemp("half") / "store"
    with open_writer(folder) as writer:
        for batch in range(4):
            append_batch(writer, batch)
    return folder


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.tuples(*[st.floats(0, 1)] * 3))
def test_any_torn_files_resume_to_the_same_bytes(
    half_written: Path, expected: dict[str, str], tmp_path: Path, cuts: tuple[float, ...]
) -> None:
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(half_written, folder)
    for name, share in zip(FILES, cuts, strict=True):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: round(share * len(content))])
    with open_writer(folder) as writer:
        assert writer.next_index % BATCH == 0
        assert writer.next_index <= 4 * BATCH
        append_batch(writer, writer.next_index // BATCH)
        reached = writer.next_index
    with open_writer(folder) as writer:  # stopped a second time, now without damage
        assert writer.next_index == reached
    assert files_of(write_batches(folder, BATCHES)) == expected


def test_resume_keeps_what_is_whole(half_written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half_written, tmp_path / "store"))
    with open_writer(folder) as writer:
        assert (writer.next_index, writer.counts) == (16, Counts(samples=14, rejects=2))
    with (folder / "pooled/c.0.0").open("r+b") as file:  # damage inside the third batch
        file.seek(8 * (2 * POOLED_WIDTH + 4))
        file.write(b"\xff\xff")
    with open_writer(folder) as writer:
        assert writer.next_index == 8


@pytest.mark.parametrize("step", range(7))
def test_killed_while_finishing_resumes_to_the_same_bytes(
    half_written: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """The disk stops taking files at the n-th commit of `finish`."""
    from flowkit.features import metadata, tables

    folder = Path(shutil.copytree(half_written, tmp_path / "store"))
    commits = 0
    commit = metadata.commit

    def failing(partial: Path, path: Path) -> None:
        nonlocal commits
        if commits == step:
            raise KeyboardInterrupt
        commits += 1
        commit(partial, path)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "commit", failing)
        patch.setattr(tables, "commit", failing)
        if step < 5:
            with pytest.raises(KeyboardInterrupt):
                write_batches(folder, BATCHES)
        else:
            write_batches(folder, BATCHES)
            assert commits == 5
    assert files_of(write_batches(folder, BATCHES)) == expected


def _kill_and_resume(folder: Path, batches: int, *, kills: int, seed: int) -> int:
    """Start writers and kill -9 each at a random moment after first progress; how many died at work."""
    generator, deaths = random.Random(seed), 0
    for _ in range(kills):
        size = _written(folder)
        child = subprocess.Popen([sys.executable, features_material.__file__, str(folder), str(batches)])
        while child.poll() is None and _written(folder) == size:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.03))
        child.kill()
        deaths += child.wait() == -9
    return deaths


def _written(folder: Path) -> int:
    path = folder / "tokens/c.0.0.0"
    return path.stat().st_size if path.exists() else -1


def test_kill_9_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    assert _kill_and_resume(tmp_path / "store", 400, kills=3, seed=0) == 3
    assert files_of(write_batches(tmp_path / "store", 400)) == files_of(
        write_batches(tmp_path / "whole", 400)
    )


@pytest.mark.slow
def test_kill_9_at_twenty_moments(tmp_path: Path) -> None:
    assert _kill_and_resume(tmp_path / "store", 2000, kills=20, seed=1) == 20
    whole = files_of(write_batches(tmp_path / "whole", 2000))
    assert files_of(write_batches(tmp_path / "store", 2000)) == whole


def test_finished_store_is_adopted_and_cannot_grow(tmp_path: Path, expected: dict[str, str]) -> None:
    folder = write_batches(tmp_path / "store", BATCHES)
    (folder / "journal.jsonl").write_text("left by a kill just before the end\n")
    with open_writer(folder) as writer:
        assert writer.finished
        assert writer.finish() == writer.counts == Counts(samples=21, rejects=3)
        assert writer.next_index == 24
        with pytest.raises(StoreError, match="is finished"):
            append_batch(writer, BATCHES)
    assert files_of(folder) == expected


@pytest.mark.parametrize("finished", [False, True])
def test_work_of_another_encoder_is_not_continued(tmp_path: Path, finished: bool) -> None:
    folder = tmp_path / "store"
    if finished:
        write_batches(folder, 1)
    else:
        open_writer(folder).close()
    with pytest.raises(StoreError, match=r"begun with encoder = 'toy', now it is 'other'; delete"):
        open_writer(folder, encoder="other")


@pytest.mark.parametrize(
    ("array", "value", "reason"),
    [
        ("tokens", np.nan, "not finite: 1 of 30 values of tokens"),
        ("tokens", -np.inf, "not finite: 1 of 30 values of tokens"),
        ("pooled", np.inf, "not finite: 1 of 4 values of pooled"),
        ("tokens", -65505.0, "beyond float16: tokens reach 65505, the limit is 65504"),
        ("pooled", 7e4, "beyond float16: pooled reach 70000, the limit is 65504"),
    ],
)
def test_value_that_float16_cannot_hold_is_a_reject(
    tmp_path: Path, array: str, value: float, reason: str
) -> None:
    arrays = {
        "tokens": np.full((3, *TOKEN_SHAPE), 65504, np.float32),
        "pooled": np.full((3, POOLED_WIDTH), -65504, np.float32),
    }
    arrays[array][1].flat[2] = value
    with open_writer(tmp_path / "store") as writer:
        rejects = [RejectRow(3, "0003", "image missing")]
        rows = [sample_row(index) for index in (0, 1, 2)]
        writer.append(arrays["tokens"], arrays["pooled"], rows, rejects=rejects, next_index=4)
        assert writer.finish() == Counts(samples=2, rejects=2)
    store = TokenStore(tmp_path / "store")
    assert list(store.samples["index"]) == [0, 2]
    assert store.rejects.to_dict("records")[0] == {"index": 1, "key": "0001", "reason": reason}
    assert (store.read_tokens([0, 1]) == 65504).all()


@pytest.mark.parametrize(
    ("value", "fits"), [(-65504, True), (np.inf, False), (-np.inf, False), (np.nan, False)]
)
def test_float16_input_is_checked_too(tmp_path: Path, value: float, fits: bool) -> None:
    tokens, pooled = np.zeros((1, *TOKEN_SHAPE), np.float16), np.zeros((1, POOLED_WIDTH), np.float16)
    tokens[0, 4, 5] = value
    with open_writer(tmp_path / "store") as writer:
        writer.append(tokens, pooled, [sample_row(0)], next_index=1)
        assert writer.counts == Counts(samples=int(fits), rejects=int(not fits))


def test_caller_that_converted_elsewhere_gives_the_reasons(tmp_path: Path) -> None:
    tokens = np.stack([token_values(index) for index in range(4)])
    pooled = np.stack([pooled_values(index) for index in range(4)])
    tokens[1] = np.inf  # what a conversion on another device made of 70000
    with open_writer(tmp_path / "store") as writer:
        rows = [sample_row(index) for index in range(4)]
        writer.append(tokens, pooled, rows, reasons={1: beyond_reason("tokens", 7e4)}, next_index=4)
        assert writer.finish() == Counts(samples=3, rejects=1)
    store = TokenStore(tmp_path / "store")
    assert list(store.rejects["reason"]) == ["beyond float16: tokens reach 70000, the limit is 65504"]
    np.testing.assert_array_equal(store.read_tokens(range(3)), tokens[[0, 2, 3]])
    with (
        pytest.raises(ValueError, match=r"\[1\], the batch has 1 rows"),
        open_writer(tmp_path / "b") as writer,
    ):
        writer.append(tokens[:1], pooled[:1], [sample_row(0)], reasons={1: "?"}, next_index=1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f2"])
@pytest.mark.parametrize("view", ["strided", "reversed", "read-only"])
def test_any_view_is_stored_by_its_values(tmp_path: Path, dtype: str, view: str) -> None:
    tokens, channels = TOKEN_SHAPE
    base = np.random.default_rng(0).standard_normal((3, tokens, 2 * channels)).astype(dtype)
    chosen = {
        "strided": base[:, :, ::2],
        "reversed": base[:, ::-1, :channels],
        "read-only": base[:, :, :channels],
    }
    array = np.array(chosen[view]) if view == "read-only" else chosen[view]
    array.flags.writeable = view != "read-only"
    with TokenStoreWriter(tmp_path, token_shape=TOKEN_SHAPE, pooled_width=None, attributes={}) as writer:
        writer.append(array, None, [sample_row(index) for index in range(3)], next_index=3)
        writer.finish()
    np.testing.assert_array_equal(TokenStore(tmp_path).read_tokens(range(3)), array.astype(np.float16))


def test_batch_of_more_records_than_one_system_call_takes(tmp_path: Path) -> None:
    count = os.sysconf("SC_IOV_MAX") + 1
    values = np.arange(count * 2, dtype=np.float32).reshape(count, 1, 2) % 2048
    with TokenStoreWriter(tmp_path, token_shape=(1, 2), pooled_width=None, attributes={}) as writer:
        writer.append(values, None, [sample_row(index) for index in range(count)], next_index=count)
        writer.finish()
    np.testing.assert_array_equal(TokenStore(tmp_path).read_tokens(range(count)), values)


def test_damaged_line_of_the_journal_is_written_again(
    half_written: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(half_written, tmp_path / "store"))
    journal = folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"0008"', b'"0009"'))  # a key of the third batch
    with open_writer(folder) as writer:
        assert writer.next_index == 8
    assert files_of(write_batches(folder, BATCHES)) == expected


@pytest.mark.parametrize(
    ("tokens_shape", "has_pooled", "index", "message"),
    [
        ((1, 5, 5), True, 2, r"'tokens': \(1, 5, 5\)"),
        ((1, *TOKEN_SHAPE), False, 2, "expected"),
        ((1, *TOKEN_SHAPE), True, 1, r"from 2 to 4 holds the members \[1\]"),
    ],
)
def test_batches_must_fit_shapes_and_order(
    tmp_path: Path, tokens_shape: tuple[int, ...], has_pooled: bool, index: int, message: str
) -> None:
    good = np.zeros((1, *TOKEN_SHAPE)), np.zeros((1, POOLED_WIDTH))
    with open_writer(tmp_path / "store") as writer:
        writer.append(*good, [sample_row(0)], next_index=2)
        with pytest.raises(StoreError, match=message):
            writer.append(
                np.zeros(tokens_shape), good[1] if has_pooled else None, [sample_row(index)], next_index=4
            )
        with pytest.raises(StoreError, match="an earlier batch could not be added; open the store again"):
            writer.append(*good, [sample_row(4)], next_index=6)  # the members 2 and 3 would be lost
        with pytest.raises(StoreError, match="open the store again"):
            writer.finish()
    with open_writer(tmp_path / "store") as writer:
        assert (writer.next_index, writer.counts) == (2, Counts(1, 0))


def test_attributes_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not JSON"):
        open_writer(tmp_path / "store", mean=float("nan"))
    assert not (tmp_path / "store").exists()


def test_sampled_tokens_make_a_store_without_pooled(tmp_path: Path) -> None:
    arrays = [np.stack([token_values(i) for i in range(3)]), np.stack([token_values(3)]).astype(np.float32)]
    arrays[1][0, 0, 0] = np.nan
    counts = write_tokens(tmp_path / "samples", arrays, {"sampler": "heun-50"}, keys=["a", "b", "c", "d"])
    assert counts == Counts(samples=3, rejects=1)
    store = TokenStore(tmp_path / "samples")
    assert list(store.samples["key"]) == ["a", "b", "c"]
    assert list(store.rejects["index"]) == [3]
    assert store.attributes["source"] == {"name": "-"}
    np.testing.assert_array_equal(store.read_tokens(range(3)), arrays[0])
    with pytest.raises(StoreError, match=r"no array 'pooled'"):
        store.read_pooled([0])


def test_sampled_tokens_replace_what_a_killed_call_left(tmp_path: Path) -> None:
    def dies_after_one():
        yield np.ones((2, *TOKEN_SHAPE), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "samples", dies_after_one(), {"sampler": "euler-1"})
    write_tokens(tmp_path / "samples", [np.zeros((1, *TOKEN_SHAPE), np.float32)], {"sampler": "heun-50"})
    store = TokenStore(tmp_path / "samples")
    assert (len(store), store.attributes["sampler"], list(store.samples["key"])) == (1, "heun-50", ["0"])


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"]])
def test_sampled_tokens_need_one_key_each(tmp_path: Path, keys: list[str]) -> None:
    with pytest.raises(StoreError, match=f"{len(keys)} keys for"):
        write_tokens(tmp_path / "samples", [np.zeros((2, *TOKEN_SHAPE), np.float32)], {}, keys=keys)
    assert not (tmp_path / "samples/zarr.json").exists()


def test_restart_never_deletes_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with TokenStoreWriter(tmp_path, token_shape=TOKEN_SHAPE, pooled_width=None, attributes={}, restart=True):
        assert (tmp_path / "notes.txt").read_text() == "mine"
