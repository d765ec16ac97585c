"""The index of stores beside a pairs table: it saves time, and what is wrong with a store is found all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from features_material import BATCHES, write_batches

from flowkit.errors import StoreError
from flowkit.features import store as store_module
from flowkit.features.int8 import convert_store
from flowkit.features.loader import PairedTokens
from flowkit.features.metadata import POOLED, TOKENS, data_file
from flowkit.features.pairs import merge_pairs
from flowkit.features.store import TokenStore
from flowkit.features.store_index import index_file, read_index


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A pairs table of two tars, of which one side has other stores with the same rows."""
    stores = [
        write_batches(tmp_path / f"s{n}", BATCHES - n, source={"name": f"{n}.tar", "sha256": str(n)})
        for n in (0, 1)
    ]
    merge_pairs(stores, stores, tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet", stores


def refuse(*arguments: object, **named: object) -> None:
    raise AssertionError("a group document was parsed")


def test_known_stores_are_not_parsed_and_read_the_same(
    joined: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, paths = joined
    whole = [TokenStore(path) for path in paths]
    monkeypatch.setattr(store_module, "read_group", refuse)
    monkeypatch.setattr(store_module, "read_document", refuse)
    index = read_index(pairs)
    assert index.names == {"source": ["s0", "s1"], "target": ["s0", "s1"]}
    for store, known in zip(whole, index.open(paths), strict=True):
        assert (known.attributes, known.table_digests) == (store.attributes, store.table_digests)
        assert (len(known), known.token_shape, known.files()) == (
            len(store),
            store.token_shape,
            store.files(),
        )
        rows = range(len(store))
        assert np.array_equal(known.read_tokens(rows), store.read_tokens(rows))
        assert known.samples.equals(store.samples)
    assert len(PairedTokens(pairs, paths, paths)) == sum(map(len, whole))


def test_other_stores_are_opened_as_a_whole(joined: tuple[Path, list[Path]], tmp_path: Path) -> None:
    pairs, paths = joined
    converted = [tmp_path / f"c{n}" for n in range(len(paths))]
    for path, folder in zip(paths, converted, strict=True):
        convert_store(TokenStore(path), folder)
    opened = read_index(pairs).open(converted)
    assert [store.storage for store in opened] == ["int8", "int8"]
    assert len(PairedTokens(pairs, converted, paths)) == len(PairedTokens(pairs, paths, paths))


@pytest.mark.parametrize("array", [TOKENS, POOLED])
def test_missing_and_torn_files_are_named_on_opening(joined: tuple[Path, list[Path]], array: str) -> None:
    pairs, paths = joined
    file = data_file(paths[1], array)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=rf"s1/{array}/c\.0\.0.* has {len(content) - 1} bytes, expected"):
        PairedTokens(pairs, paths, paths)
    file.unlink()
    with pytest.raises(StoreError, match=rf"s1/{array}/c\.0\.0.* is missing"):
        PairedTokens(pairs, paths, paths)
    shutil.rmtree(paths[1])
    with pytest.raises(StoreError, match=r"s1/zarr\.json is missing"):
        PairedTokens(pairs, paths, paths)


def test_changed_document_is_found(joined: tuple[Path, list[Path]]) -> None:
    pairs, paths = joined
    document = paths[0] / "zarr.json"
    document.write_text(document.read_text().replace("toy", "tay"))
    with pytest.raises(StoreError, match=r"s0/zarr\.json does not match its checksum"):
        PairedTokens(pairs, paths, paths)


def test_index_is_the_same_on_every_run_and_refused_when_damaged(joined: tuple[Path, list[Path]]) -> None:
    pairs, paths = joined
    file = index_file(pairs)
    before = file.read_bytes()
    merge_pairs(paths, paths, pairs)
    assert file.read_bytes() == before
    document = json.loads(before)
    assert len(document["kinds"]) == 1, "what stores share is written once"
    for content in (b"", before[: len(before) // 2], b"[]", json.dumps({**document, "kinds": []}).encode()):
        file.write_bytes(content)
        with pytest.raises(
            StoreError, match=r"pairs\.stores\.json is no index of stores .*make the pairs again"
        ):
            PairedTokens(pairs, paths, paths)
    file.unlink()
    with pytest.raises(StoreError, match=r"pairs\.stores\.json"):
        read_index(pairs)
