"""The metadata documents of a token store: `zarr.json` of the group and of each array, byte-stable.

The format is the one of Zarr v3 (`sharding_indexed`, inner chunk = one sample). Documents hold no time, host
or job id. This module turns shapes and attributes into documents and back; it writes files but reads no
tensor data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowkit.errors import StoreError

GROUP_SCHEMA = 1
TOKENS, POOLED = "tokens", "pooled"
DOCUMENT = "zarr.json"
_DIMENSIONS = {TOKENS: ["sample", "token", "channel"], POOLED: ["sample", "channel"]}


def data_file(store: Path, array: str) -> Path:
    """The one chunk file of `array`: `tokens/c.0.0.0` or `pooled/c.0.0`."""
    return store / array / ".".join(["c", *["0"] * len(_DIMENSIONS[array])])


def array_document(array: str, count: int, shape: Sequence[int]) -> dict[str, Any]:
    """The metadata of `array` with `count` samples of `shape`; without samples the chunk has size one."""
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, *shape],
        "codecs": [little_endian, {"name": "crc32c"}],
        "index_codecs": [little_endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [count, *shape],
        "data_type": "float16",
        "fill_value": "NaN",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(count, 1), *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": _DIMENSIONS[array],
        "attributes": {},
    }


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the store's group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


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
