"""The metadata documents of a token store: `zarr.json` of the group and of each array, byte-stable.

The format is the one of Zarr v3 (`sharding_indexed`, inner chunk = one sample). The attribute `checksums` of
the group holds the SHA-256 of both tables and of the other attributes, so that no flipped bit goes unseen.
Documents hold no time, host or job id. This module turns shapes and attributes into documents and back; it
writes files but reads no tensor data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowkit.errors import StoreError
from flowkit.features.records import RecordLayout
from flowkit.features.stream import disk_errors

GROUP_SCHEMA = 2
TOKENS, POOLED = "tokens", "pooled"
TOKENS_SCALE, CHANNELS = "tokens_scale", "channels"
"""Only beside int8 tokens, see int8.py."""
DOCUMENT = "zarr.json"
JOURNAL_FILE = "journal.jsonl"
"""Only while a store is being written, see journal.py."""
CHECKSUMS = "checksums"
_DIMENSIONS = {
    TOKENS: ["sample", "token", "channel"],
    POOLED: ["sample", "channel"],
    TOKENS_SCALE: ["sample", "token"],
    CHANNELS: ["moment", "channel"],
}
CHUNKS = {array: f"{array}/{'.'.join(['c', *['0'] * len(names)])}" for array, names in _DIMENSIONS.items()}
"""The one chunk file of each array, below the store."""


def data_file(store: Path, array: str) -> Path:
    """The one chunk file of `array`: `tokens/c.0.0.0` or `pooled/c.0.0`."""
    return store / CHUNKS[array]


def array_document(array: str, count: int, layout: RecordLayout) -> dict[str, Any]:
    """The metadata of `array` with `count` records; without records the chunk has size one."""
    shape = layout.shape
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, *shape],
        "codecs": [{"name": "bytes"} if layout.dtype == "int8" else little_endian, {"name": "crc32c"}],
        "index_codecs": [little_endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [count, *shape],
        "data_type": layout.dtype,
        "fill_value": 0 if layout.dtype == "int8" else "NaN",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(count, 1), *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": _DIMENSIONS[array],
        "attributes": {},
    }


def group_document(attributes: Mapping[str, Any], tables: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of the store's group; `tables` maps the tables' names to their SHA-256."""
    sealed = {**attributes, CHECKSUMS: {**tables, "attributes": _seal(attributes, tables)}}
    return {"zarr_format": 3, "node_type": "group", "attributes": sealed}


def read_group(path: Path, *, unfinished: str, remedy: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The attributes without their checksums, and the SHA-256 of each table, from the group document `path`.

    Raises `StoreError` that says `unfinished` if it is missing, and `remedy` if it is of another version or
    damaged.
    """
    document = read_document(path, unfinished)
    attributes = document.get("attributes", {})
    if attributes.get("flowkit_store") != GROUP_SCHEMA:
        found = attributes.get("flowkit_store")
        raise StoreError(f"{path}: flowkit_store is {found!r}, expected {GROUP_SCHEMA}; {remedy}")
    plain_attributes = {name: value for name, value in attributes.items() if name != CHECKSUMS}
    tables = {name: value for name, value in attributes.get(CHECKSUMS, {}).items() if name != "attributes"}
    if document != group_document(plain_attributes, tables):
        raise StoreError(f"{path} does not match its checksum; {remedy}")
    return plain_attributes, tables


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` as JSON gives them back; raises `StoreError` on a value that strict JSON cannot hold."""
    try:
        return dict(json.loads(json.dumps(dict(attributes), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"store attributes {dict(attributes)!r} are not JSON ({error}); "
            "pass text, finite numbers, lists and dicts"
        ) from error


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`; `StoreError` with `remedy` if it is missing or no JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} is missing; {remedy}") from error
    except ValueError as error:
        raise StoreError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} holds a {type(document).__name__}, expected an object; {remedy}")
    return document


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` under a temporary name, flush it to disk, rename it."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        partial.write_text(text, encoding="utf-8")
        commit(partial, path)


def commit(partial: Path, path: Path) -> None:
    """Flush `partial` to disk, give it the name `path`, and flush the folder."""
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Force a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(attributes: Mapping[str, Any], tables: Mapping[str, str]) -> str:
    text = json.dumps([dict(attributes), dict(tables)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
