"""Verification: everything a token store says of itself is held against what lies on disk.

    counts, shapes, sizes, checksum of every record and index, both tables and the attributes, unique keys,
    members seen once, all halves finite, digests of source and weights; and, in a result folder, the files
    that its manifest names

A result whose files are gone is damaged, unless they were deleted after their conversion to int8. Opening a store
(store.py) already refuses most damage; this reads every byte once more. The first fault of a store is a `StoreError`
that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from flowkit.errors import StoreError
from flowkit.features import tables
from flowkit.features.metadata import DOCUMENT, read_document
from flowkit.features.records import DIGEST_OF_CHECKSUMS, REMEDY
from flowkit.features.store import TokenStore
from flowkit.paths import MANIFEST, converted
from flowkit.provenance import file_digest

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


@dataclass(frozen=True)
class FoundStores:
    """What `verify_store` takes, and the results whose files were deleted because there is an int8 form of them."""

    stores: list[Path]
    deleted: list[Path]


def find_stores(paths: Iterable[Path]) -> FoundStores:
    """The stores, and result folders whose manifest names one, at or below `paths`, in name order.

    Raises `StoreError` if there is none at or below one of them. Generations of a result that its manifest does not
    name, and partial work, are left out.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        folders = _stores_below(path)
        if not folders:
            raise StoreError(
                f"{path} holds no token store at any depth; check the path, or extract a tar first"
            )
        found |= {folder: _is_deleted_after_conversion(folder) for folder in folders}
    return FoundStores(
        [folder for folder, is_deleted in found.items() if not is_deleted],
        [folder for folder, is_deleted in found.items() if is_deleted],
    )


def verify_stores(folders: Iterable[Path]) -> Iterator[tuple[Path, VerifyResult | StoreError]]:
    """Check one store after the other, whatever is wrong with those before."""
    for folder in folders:
        try:
            yield folder, verify_store(folder)
        except StoreError as error:
            yield folder, error
        except OSError as error:
            what = f"{error.filename or folder} cannot be read ({error.strerror})"
            yield folder, StoreError(f"{what}; see to its disk and its rights, then verify again")


def verify_store(folder: Path) -> VerifyResult:
    """Check the store in `folder`, which is the store itself or a result folder whose manifest names it.

    Raises `StoreError` on the first thing that is wrong.
    """
    path = folder if (folder / DOCUMENT).exists() else _content_of(folder)
    if path != folder:
        _check_presence(folder, path)
    store = TokenStore(path)
    _check_files(store)
    _check_tables(store)
    _check_origin(store)
    records = store.verify()
    if path != folder:
        _check_manifest(folder, store)
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
        try:
            content, listed = _content_of(path), _listed(path)
        except StoreError:
            return [path]  # nobody can say what it was; `verify_store` names the manifest
        inside = _folders_of_stores(listed)
        if "." in inside or (content / DOCUMENT).exists():
            return [path]
        return [content / name for name in inside] or _stores_below(content)
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    return [store for child in folders for store in _stores_below(child)]


def _content_of(folder: Path) -> Path:
    nothing = f"{folder} has no {DOCUMENT} either: neither a store nor a result; check the path"
    return folder / str(read_document(folder / MANIFEST, nothing).get("content"))


def _listed(folder: Path) -> dict[str, str]:
    """File -> digest, as the manifest of a result names them."""
    files = read_document(folder / MANIFEST, REMEDY).get("files", {})
    if not isinstance(files, dict):
        raise StoreError(f"{folder / MANIFEST}: files is no object; {REMEDY}")
    return {name: str(digest) for name, digest in files.items()}


def _folders_of_stores(listed: Iterable[str]) -> list[str]:
    """The topmost folders with a group document; "." is the result itself. Those below them are arrays."""
    folders = {PurePosixPath(name).parent for name in listed if PurePosixPath(name).name == DOCUMENT}
    return sorted(str(folder) for folder in folders if not folders.intersection(folder.parents))


def _is_deleted_after_conversion(folder: Path) -> bool:
    """True for a result without files whose tar has a result among the encoder's int8 stores."""
    if not (folder / MANIFEST).exists() or (folder / DOCUMENT).exists():
        return False
    twin = folder.parent.with_name(converted(folder.parent.name)) / folder.name
    if not (twin / MANIFEST).exists():
        return False
    try:
        content = _content_of(folder)
    except StoreError:
        return False
    return not any(path.is_file() for path in content.rglob("*"))


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


def _check_presence(folder: Path, content: Path) -> None:
    """Every file that the result's manifest names is there; the group document is named first."""
    for name in sorted(_listed(folder), key=lambda name: (name != DOCUMENT, name)):
        if not (content / name).is_file():
            raise StoreError(f"{content / name} is missing, though {folder / MANIFEST} names it; {REMEDY}")


def _check_manifest(folder: Path, store: TokenStore) -> None:
    """The files are those whose digests the result's manifest holds; all their records were checked before."""
    listed, cheap = _listed(folder), store.file_digests()
    for name in sorted(set(cheap).symmetric_difference(listed)):
        raise StoreError(f"{store.path / name} is not both there and in {folder / MANIFEST}; {REMEDY}")
    for name, digest in listed.items():
        is_cheap = digest.startswith(DIGEST_OF_CHECKSUMS)
        if digest != (cheap[name] if is_cheap else file_digest(store.path / name)):
            raise StoreError(
                f"{store.path / name} does not have the digest that {folder / MANIFEST} names; {REMEDY}"
            )
