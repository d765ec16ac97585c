"""Verification: damage anywhere is found and named, nothing that is missing goes unnoticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from features_material import (
    ATTRIBUTES,
    BATCHES,
    KEPT,
    ORIGIN,
    files_of,
    open_writer,
    sample_row,
    write_batches,
)
from typer.testing import CliRunner

from flowkit.__main__ import app
from flowkit.errors import StoreError
from flowkit.features.int8 import convert_store
from flowkit.features.store import TokenStore
from flowkit.features.verify import VerifyResult, find_stores, verify_store, verify_stores
from flowkit.features.writer import TokenStoreWriter


def as_result(store: Path, folder: Path, digests: dict[str, str] | None = None) -> Path:
    """The result folder that a stage makes of a store."""
    folder.mkdir(parents=True)
    shutil.copytree(store, folder / "abc123")
    files = digests or files_of(store)
    document = {"schema": 1, "stage": "extract", "content": "abc123", "files": files, "counts": {}}
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


def test_whole_store_is_verified(pristine: Path, tmp_path: Path) -> None:
    result = verify_store(pristine)
    assert (result.encoder, result.samples, result.rejects, result.records) == ("toy", KEPT, 3, 2 * KEPT)
    assert verify_store(as_result(pristine, tmp_path / "result")).digest == result.digest
    convert_store(TokenStore(pristine), tmp_path / "int8")
    assert verify_store(tmp_path / "int8").records == 3 * KEPT + 2


def test_sampled_tokens_need_no_origin(tmp_path: Path) -> None:
    verify_store(write_batches(tmp_path / "samples", 1, source={"name": "-"}))


def test_stores_are_found_at_any_depth_and_old_generations_left_out(pristine: Path, tmp_path: Path) -> None:
    result = as_result(pristine, tmp_path / "result")
    shutil.copytree(pristine, result / "oldgeneration")
    open_writer(result / "state" / "work").close()
    samples = tmp_path / "samples"
    shutil.copytree(pristine, samples / "def456" / "heun-50")
    (samples / "manifest.json").write_text(json.dumps({"content": "def456"}))
    shutil.copytree(pristine, tmp_path / "deep" / "er" / "store")
    assert find_stores([tmp_path, result]).stores == [
        tmp_path / "deep/er/store",
        result,
        samples / "def456/heun-50",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty holds no token store at any depth"):
        find_stores([result, tmp_path / "empty"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"weights_sha256": None}, r"zarr\.json: weights_sha256 is None, expected 64 hexadecimal digits"),
        ({"source": ATTRIBUTES["source"]}, r"zarr\.json: source\.sha256 is 'ab'"),
    ],
)
def test_store_of_unknown_origin_is_no_whole_store(
    tmp_path: Path, attributes: dict[str, object], message: str
) -> None:
    write_batches(tmp_path / "store", 1, **{**ORIGIN, **attributes})
    with pytest.raises(StoreError, match=message):
        verify_store(tmp_path / "store")


def test_tables_must_fit_the_arrays(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path, token_shape=(1, 2), pooled_width=None, attributes=ORIGIN) as writer:
        tokens = np.zeros((2, 1, 2), np.float16)
        writer.append(tokens, None, [sample_row(3), sample_row(3)], next_index=4)
        writer.finish()
    with pytest.raises(StoreError, match=r"samples\.parquet holds the key '0003' twice"):
        verify_store(tmp_path)


def test_value_that_is_not_finite_is_found_although_its_checksum_fits(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path, token_shape=(1, 2), pooled_width=None, attributes=ORIGIN) as writer:
        tokens = np.array([[[1, 2]], [[3, np.nan]]], np.float16)
        writer.append(tokens, None, [sample_row(0), sample_row(1)], reasons={}, next_index=2)
        writer.finish()
    with pytest.raises(StoreError, match=r"tokens/c\.0\.0\.0: row 1 holds a value that is not finite"):
        verify_store(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: (content / "notes.txt").write_text("?"), "notes.txt does not belong to a token store"),
        (lambda content: (content / "tokens" / "c.1.0.0").write_text("?"), r"c\.1\.0\.0 does not belong"),
        (
            lambda content: (content.parent / "manifest.json").write_text('{"content": "gone"}'),
            r"gone/zarr\.json is missing",
        ),
        (lambda content: (content.parent / "manifest.json").unlink(), r"manifest\.json is missing; .* neither a store"),
        (lambda content: shutil.rmtree(content), r"abc123/zarr\.json is missing, though .*manifest\.json names it"),
        (lambda content: (content / "zarr.json").unlink(), r"abc123/zarr\.json is missing, though"),
        (lambda content: shutil.rmtree(content / "pooled"), r"abc123/pooled/c\.0\.0 is missing, though"),
        (lambda content: (content.parent / "manifest.json").write_text("{"), r"manifest\.json is not JSON"),
        (lambda content: (content.parent / "manifest.json").write_text('{"files": [1]}'), "files is no object"),
        (
            lambda content: (content.parent / "manifest.json").write_text(
                (content.parent / "manifest.json").read_text().replace('"tokens/c.0.0.0": "', '"tokens/c.0.0.0": "0')
            ),
            r"tokens/c\.0\.0\.0 does not have the digest that .*manifest\.json names",
        ),
    ],
)  # fmt: skip
def test_result_folder_must_fit_its_manifest(
    pristine: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    result = as_result(pristine, tmp_path / "result")
    damage(result / "abc123")
    if (result / "manifest.json").exists() and '"gone"' not in (result / "manifest.json").read_text():
        assert find_stores([tmp_path]).stores == [result]  # and not its arrays, or nothing at all
    with pytest.raises(StoreError, match=message):
        verify_store(result)


def test_deleted_store_is_damage_unless_there_is_an_int8_form_of_it(pristine: Path, tmp_path: Path) -> None:
    half, other = (as_result(pristine, tmp_path / "eva-1234" / tar) for tar in ("00000", "00001"))
    convert_store(TokenStore(pristine), tmp_path / "int8")
    twin = as_result(tmp_path / "int8", tmp_path / "eva-1234-int8" / "00000")
    shutil.rmtree(half / "abc123")
    shutil.rmtree(other / "abc123")
    found = find_stores([tmp_path / "eva-1234", tmp_path / "eva-1234-int8"])
    assert (found.stores, found.deleted) == ([other, twin], [half])
    assert find_stores([half]).deleted == [half]
    (half / "abc123" / "tokens").mkdir(parents=True)
    assert find_stores([half]).deleted == [half]
    (half / "abc123" / "tokens" / "zarr.json").write_text("{}")
    assert find_stores([half]).stores == [half], "what is there in part was not deleted on purpose"
    shutil.rmtree(half / "abc123")
    (twin / "manifest.json").unlink()
    assert find_stores([half]).stores == [half]


def test_missing_store_among_samples_is_named(pristine: Path, tmp_path: Path) -> None:
    result = tmp_path / "samples"
    for name in ("euler-1", "heun-50"):
        shutil.copytree(pristine, result / "def456" / name)
    files = files_of(result / "def456")
    (result / "manifest.json").write_text(json.dumps({"content": "def456", "files": files}))
    stores = [result / "def456/euler-1", result / "def456/heun-50"]
    assert find_stores([tmp_path]).stores == stores
    shutil.rmtree(stores[1])
    assert find_stores([tmp_path]).stores == stores
    with pytest.raises(StoreError, match=r"def456/heun-50 has no zarr\.json either"):
        verify_store(stores[1])


def test_all_damage_is_reported_and_whole_stores_are_told_apart(pristine: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(pristine, tmp_path / name)) for name in "abcde"]
    content = bytearray((folders[0] / "tokens/c.0.0.0").read_bytes())
    content[0] ^= 1
    (folders[0] / "tokens/c.0.0.0").write_bytes(content)
    (folders[2] / "samples.parquet").unlink()
    (folders[3] / "samples.parquet").unlink()
    (folders[3] / "samples.parquet").mkdir()  # as good as a disk that fails
    results = dict(verify_stores(find_stores([tmp_path]).stores))
    assert [path.name for path, found in results.items() if isinstance(found, VerifyResult)] == ["b", "e"]
    for folder, name in [(folders[0], "tokens/c.0.0.0"), (folders[2], "samples.parquet")]:
        assert str(folder / name) in str(results[folder])
    assert "samples.parquet" in str(results[folders[3]])
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert isinstance(done.exception, StoreError)
    errors = str(done.exception).splitlines()
    assert errors == [str(results[folders[number]]) for number in (0, 2, 3)]
    assert "2 stores are whole, 3 are damaged" in done.stdout


# Digests without reading the tensors


@pytest.mark.parametrize("storage", ["float16", "int8", "empty"])
def test_digests_of_files_follow_their_content_and_read_no_tensor(
    pristine: Path, tmp_path: Path, storage: str
) -> None:
    folder = tmp_path / "store"
    if storage == "int8":
        convert_store(TokenStore(pristine), folder)
    else:
        write_batches(folder, BATCHES if storage == "float16" else 0, **ORIGIN)
    store = TokenStore(folder)
    digests = store.file_digests()
    plain = files_of(folder)
    assert set(digests) == set(plain)
    cheap = {name for name in digests if digests[name].startswith("crc32c:")}
    assert cheap == {name for name in digests if "/c.0" in name}
    assert {name: digests[name] for name in digests if name not in cheap} == {
        name: plain[name] for name in plain if name not in cheap
    }
    assert len({*digests.values()}) == len(digests)
    result = as_result(folder, tmp_path / "result", digests)
    assert verify_store(result).digest == verify_store(folder).digest
    for name in cheap:
        path = folder / name
        content = bytearray(path.read_bytes())
        layout = store.records(name.partition("/")[0]).layout
        for place, is_seen in [(0, False), (layout.record_bytes, True), (len(content) - 1, True), (-5, True)]:
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            assert (store.file_digests()[name] != digests[name]) == is_seen
        path.write_bytes(content)


def test_other_store_does_not_have_the_digests_of_the_manifest(pristine: Path, tmp_path: Path) -> None:
    """Every record of it matches its checksum: it is only not the one that was committed."""
    result = as_result(pristine, tmp_path / "result", TokenStore(pristine).file_digests())
    with TokenStoreWriter(
        tmp_path / "other", token_shape=(5, 6), pooled_width=4, attributes={**ATTRIBUTES, **ORIGIN}
    ) as writer:
        writer.append(np.zeros((KEPT, 5, 6)), np.zeros((KEPT, 4)), [sample_row(n) for n in range(KEPT)],
                      next_index=KEPT)  # fmt: skip
        writer.finish()
    shutil.copyfile(tmp_path / "other/tokens/c.0.0.0", result / "abc123/tokens/c.0.0.0")
    with pytest.raises(
        StoreError, match=r"tokens/c\.0\.0\.0 does not have the digest that .*manifest\.json names"
    ):
        verify_store(result)
