"""Pairs: stores whose rejects differ are joined on the key; every key that falls out has a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowkit.errors import StoreError
from flowkit.features.pairs import PairCounts, merge_pairs, read_pairs
from flowkit.features.store import TokenStore
from flowkit.features.tables import RejectRow, SampleRow
from flowkit.features.writer import TokenStoreWriter


def make_store(
    path: Path, keys: str, rejected: dict[str, str] | None = None, *, tar: str = "0", encoder: str = "toy"
) -> Path:
    """A store of one tar whose members are the letters of `keys`; those in `rejected` are refused."""
    rejected = rejected or {}
    attributes = {"encoder": encoder, "has_cls": True, "source": {"name": f"{tar}.tar", "sha256": tar}}
    kept = [(index, key) for index, key in enumerate(keys) if key not in rejected]
    with TokenStoreWriter(path, token_shape=(2, 3), pooled_width=1, attributes=attributes) as writer:
        writer.append(
            np.array([np.full((2, 3), index) for index, _ in kept], np.float32).reshape(-1, 2, 3),
            np.zeros((len(kept), 1), np.float32),
            [SampleRow(index, key) for index, key in kept],
            rejects=[RejectRow(i, key, rejected[key]) for i, key in enumerate(keys) if key in rejected],
            next_index=len(keys),
        )
        writer.finish()
    return path


def test_rows_are_joined_on_the_key_and_losses_have_reasons(tmp_path: Path) -> None:
    sources = [
        make_store(tmp_path / "s0", "abcdef", {"b": "image undecodable: torn", "c": "caption missing"}),
        make_store(tmp_path / "s1", "xyz", tar="1"),
    ]
    targets = [
        make_store(tmp_path / "t0", "abcdef", {"c": "caption missing", "d": "not finite: 2 of 6"}),
        make_store(tmp_path / "t1", "xy", tar="1"),
    ]
    counts = merge_pairs(sources, targets, tmp_path / "pairs.parquet")
    assert counts == PairCounts(
        pairs=5,
        fell_out={
            "both: caption missing": 1,
            "source: image undecodable": 1,
            "target: not finite": 1,
            "target: not in the store": 1,
        },
    )
    pairs = read_pairs(
        tmp_path / "pairs.parquet", *[[TokenStore(p) for p in side] for side in (sources, targets)]
    )
    assert pq.read_table(tmp_path / "pairs.parquet").to_pydict() == {
        "sample": [0, 1, 2, 3, 4],
        "view": [0] * 5,
        "tar": [0, 0, 0, 1, 1],
        "source_row": [0, 2, 3, 0, 1],
        "target_row": [0, 2, 3, 0, 1],
    }
    assert (len(pairs), pairs.views) == (5, 1)
    assert pairs.tar_NV[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert pairs.source_row_NV[:, 0].tolist() == pairs.target_row_NV[:, 0].tolist() == [0, 2, 3, 0, 1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lost=st.tuples(st.sets(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh"))))
def test_nothing_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, lost: tuple[set[str], set[str]]
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    left, right = (
        make_store(folder / str(side), "abcdefgh", dict.fromkeys(sorted(keys), "bad"))
        for side, keys in enumerate(lost)
    )
    common = sorted(set("abcdefgh") - lost[0] - lost[1])
    if not common:
        with pytest.raises(StoreError, match="no image is in both"):
            merge_pairs([left], [right], folder / "pairs.parquet")
        return
    counts = merge_pairs([left], [right], folder / "pairs.parquet")
    assert counts.pairs + sum(counts.fell_out.values()) == 8
    source, target = TokenStore(left), TokenStore(right)
    pairs = read_pairs(folder / "pairs.parquet", [source], [target])
    assert list(source.samples["key"].iloc[pairs.source_row_NV[:, 0]]) == common
    assert list(target.samples["key"].iloc[pairs.target_row_NV[:, 0]]) == common


def test_table_is_the_same_on_every_run(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / "s", "abc")], [make_store(tmp_path / "t", "abc")]
    for name in ("one.parquet", "two.parquet"):
        merge_pairs(*stores, tmp_path / name)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert {str(field.type) for field in pq.read_schema(tmp_path / "one.parquet")} <= {
        "int16",
        "int32",
        "int64",
    }


def test_stores_of_other_tars_are_refused(tmp_path: Path) -> None:
    a, b = (make_store(tmp_path / tar, "abc", tar=tar) for tar in "ab")
    with pytest.raises(StoreError, match="1 source stores and 2 target stores"):
        merge_pairs([a], [a, b], tmp_path / "pairs.parquet")
    with pytest.raises(StoreError, match=r"a\.tar.*b\.tar.*same order"):
        merge_pairs([a, b], [b, a], tmp_path / "pairs.parquet")
    merge_pairs([a], [a], tmp_path / "pairs.parquet")
    with pytest.raises(StoreError, match=r"joins the tars \['a\.tar'\], the stores are of \['b\.tar'\]"):
        read_pairs(tmp_path / "pairs.parquet", [TokenStore(b)], [TokenStore(b)])


def test_store_that_became_shorter_is_refused(tmp_path: Path) -> None:
    long, short = make_store(tmp_path / "long", "abc"), make_store(tmp_path / "short", "ab")
    merge_pairs([long], [long], tmp_path / "pairs.parquet")
    with pytest.raises(StoreError, match=r"line 2 asks for target_row 2 of .*short, which has 2"):
        read_pairs(tmp_path / "pairs.parquet", [TokenStore(long)], [TokenStore(short)])


def test_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", "aba")
    with pytest.raises(StoreError, match="holds the key 'a' twice"):
        merge_pairs([store], [store], tmp_path / "pairs.parquet")


def test_damaged_table_is_named(tmp_path: Path) -> None:
    store = TokenStore(make_store(tmp_path / "s", "ab"))
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"pairs\.parquet cannot be read"):
        read_pairs(tmp_path / "pairs.parquet", [store], [store])
    with pytest.raises(StoreError, match=r"samples\.parquet is no table of pairs"):
        read_pairs(tmp_path / "s/samples.parquet", [store], [store])
