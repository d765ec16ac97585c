"""The index of the stores that a pairs table joins: what their group documents say, so that nobody parses them again.

    pairs.stores.json   {"kinds": [attributes that many stores share, ...],
                         "stores": {SHA-256 of the group document:
                                    {"kind": 0, "own": {attributes of this store}, "tables": {table: SHA-256}}, ...},
                         "names": {"source": [folder name of the store of each tar, ...], "target": [...]}}

A training opens thousands of stores and reads a few records of each; what it must know of them fits one small file. A
store whose document is, byte for byte, an indexed one is taken to be what the index says. Any other is opened and
checked as a whole: the index saves time and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.errors import StoreError
from flowkit.features.metadata import DOCUMENT, flush
from flowkit.features.store import TokenStore
from flowkit.features.stream import disk_errors

OF_ONE_STORE = ("source", "counts")
"""Attributes in which the stores of one encoder differ."""
ROLES = ("source", "target")


@dataclass(frozen=True)
class StoreIndex:
    """Attributes and digests of tables by the digest of a store's document, and folder names by role, in tar order."""

    known: Mapping[str, tuple[dict[str, Any], dict[str, str]]]
    names: Mapping[str, Sequence[str]]

    def open(self, paths: Sequence[Path]) -> list[TokenStore]:
        """The stores in `paths`; raises `StoreError` for one that is missing, damaged or unfinished."""
        known = [self.known.get(document_digest(path)) for path in paths]
        return [
            TokenStore(path) if facts is None else TokenStore.known(path, *facts)
            for path, facts in zip(paths, known, strict=True)
        ]


def index_file(pairs: Path) -> Path:
    """Where the index of a pairs table lies: beside it."""
    return pairs.with_suffix(".stores.json")


def document_digest(store: Path) -> str:
    """SHA-256 of the group document of a store; empty if there is none."""
    try:
        with open(f"{store}/{DOCUMENT}", "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


class IndexBuilder:
    """Collects an index store by store, so that no store need stay open."""

    def __init__(self) -> None:
        self._kinds: list[dict[str, Any]] = []
        self._stores: dict[str, dict[str, Any]] = {}
        self._names: dict[str, list[str]] = {role: [] for role in ROLES}

    def add(self, role: str, store: TokenStore) -> None:
        """Add the store of the next tar of a side."""
        kind = {name: value for name, value in store.attributes.items() if name not in OF_ONE_STORE}
        if kind not in self._kinds:
            self._kinds.append(kind)
        self._stores[document_digest(store.path)] = {
            "kind": self._kinds.index(kind),
            "own": {name: store.attributes[name] for name in OF_ONE_STORE if name in store.attributes},
            "tables": store.table_digests,
        }
        self._names[role].append(store.path.name)

    def write(self, pairs: Path) -> None:
        """Write the index of the table `pairs`, the same bytes for the same stores."""
        path = index_file(pairs)
        document = {"kinds": self._kinds, "stores": self._stores, "names": self._names}
        with disk_errors(path):
            path.write_text(json.dumps(document, sort_keys=True) + "\n", encoding="utf-8")
            flush(path)


def read_index(pairs: Path) -> StoreIndex:
    """The index of the table `pairs`; raises `StoreError` if it is missing or damaged."""
    path = index_file(pairs)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kinds = document["kinds"]
        known = {
            digest: ({**kinds[one["kind"]], **one["own"]}, one["tables"])
            for digest, one in document["stores"].items()
        }
        names = {role: list(map(str, document["names"][role])) for role in ROLES}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(
            f"{path} is no index of stores ({type(error).__name__}: {error}); "
            "make the pairs again from the stores in use"
        ) from error
    return StoreIndex(known, names)
