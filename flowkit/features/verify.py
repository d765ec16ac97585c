"""Verification: everything a token store says of itself is held against what lies on disk.

    counts, shapes, sizes, checksum of every record and index, both tables and the attributes, unique keys,
    members seen once, all halves finite, digests of source and weights; and, in a result folder, the files
    that its manifest names

Opening a store (store.py) already refuses most damage; this reads every byte once more. The first fault is a
`StoreError` that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowkit.errors import StoreError
from flowkit.features import tables
from flowkit.features.metadata import DOCUMENT, file_sha256, read_document
from flowkit.features.records import REMEDY
from flowkit.features.store import TokenStore
from flowkit.paths import MANIFEST

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class VerifyResult:
    """What a whole store holds; `records` counts those of all arrays, `digest` is `TokenStore.digest`."""

    path: Path
    encoder: str
    samples: int
    rejects: int
    records: int
    digest: str


def find_stores(paths: Iterable[Path]) -> list[Path]:
    """The stores, and result folders whose content is a store, at or below `paths`, in name order.

    Raises `StoreError` if there is none at or below one of them. Generations of a result that its manifest does not
    name, and partial work, are left out.
    """
    found: dict[Path, None] = {}
    for path in paths:
        stores = _stores_below(path)
        if not stores:
            raise StoreError(
                f"{path} holds no token store at any depth; check the path, or extract a tar first"
            )
        found |= dict.fromkeys(stores)
    return list(found)


def verify_store(folder: Path) -> VerifyResult:
    """Check the store in `folder`, which is the store itself or a result folder whose manifest names it.

    Raises `StoreError` on the first thing that is wrong.
    """
    path = folder if (folder / DOCUMENT).exists() else _content_of(folder)
    store = TokenStore(path)
    _check_files(store)
    _check_tables(store)
    _check_origin(store)
    records = store.verify()
    if path != folder:
        _check_manifest(folder, path)
    return VerifyResult(
        path=path,
        encoder=str(store.attributes.get("encoder", "-")),
        samples=len(store),
        rejects=len(store.rejects),
        records=records,
        digest=store.digest(),
    )


def _stores_below(path: Path) -> list[Path]:
    if (path / DOCUMENT).exists():
        return [path]
    if (path / MANIFEST).exists():
        content = _content_of(path)
        return [path] if (content / DOCUMENT).exists() else _stores_below(content)
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    return [store for child in folders for store in _stores_below(child)]


def _content_of(folder: Path) -> Path:
    document = read_document(folder / MANIFEST, f"{folder} is neither a store nor a result; check the path")
    return folder / str(document.get("content"))


def _check_files(store: TokenStore) -> None:
    """Nothing but the store's own files is there; what is missing was found on opening."""
    found = {path.relative_to(store.path).as_posix() for path in store.path.rglob("*") if path.is_file()}
    if strangers := sorted(found.difference(store.files())):
        raise StoreError(f"{store.path / strangers[0]} does not belong to a token store; move it elsewhere")


def _check_tables(store: TokenStore) -> None:
    """Rows count up, keys and members come once, and every member that was seen is in one of the tables."""
    samples, rejects, counts = store.samples, store.rejects, store.attributes["counts"]
    path = store.path / tables.SAMPLES_FILE
    if not np.array_equal(samples["row"], np.arange(len(samples))):
        raise StoreError(f"{path}: the column row does not count from 0 to {len(samples) - 1}; {REMEDY}")
    twice = samples["key"][samples["key"].duplicated()]
    if len(twice):
        raise StoreError(f"{path} holds the key {twice.iloc[0]!r} twice; give each sample its own key")
    if not (samples["index"].is_monotonic_increasing and samples["index"].is_unique):
        raise StoreError(f"{path}: the column index does not count up; {REMEDY}")
    both = sorted(set(samples["index"]).intersection(rejects["index"]))
    if both:
        raise StoreError(f"{path}: member {both[0]} is in {tables.REJECTS_FILE} too; {REMEDY}")
    if counts["seen"] != counts["samples"] + counts["rejects"]:
        raise StoreError(f"{store.path / DOCUMENT}: counts {counts} do not add up; {REMEDY}")


def _check_origin(store: TokenStore) -> None:
    """A store that was made from a tar says from which, and with which weights."""
    source = store.attributes.get("source", {})
    if source.get("name") == "-":  # sampled tokens, see samples.py
        return
    for name, value in (
        ("source.sha256", source.get("sha256")),
        ("weights_sha256", store.attributes.get("weights_sha256")),
    ):
        if not _SHA256.fullmatch(str(value)):
            raise StoreError(
                f"{store.path / DOCUMENT}: {name} is {value!r}, expected 64 hexadecimal digits; {REMEDY}"
            )


def _check_manifest(folder: Path, content: Path) -> None:
    """The files are those whose digests the result's manifest holds."""
    listed = read_document(folder / MANIFEST, REMEDY).get("files", {})
    found = {path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file()}
    for name in sorted(found.symmetric_difference(listed)):
        raise StoreError(f"{content / name} is not both there and in {folder / MANIFEST}; {REMEDY}")
    for name, digest in listed.items():
        if file_sha256(content / name) != digest:
            raise StoreError(
                f"{content / name} does not have the digest that {folder / MANIFEST} names; {REMEDY}"
            )
