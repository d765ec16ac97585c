"""The two tables beside the arrays of a token store, written as parquet with a fixed schema.

    samples.parquet   row, key, index, captions, width, height, image_sha256, attributes_json
    rejects.parquet   index, key, reason

`index` is the position of the sample in its tar, rejects included; `row` is the record number in the arrays.
The part of `reason` before the first colon is its class, the rest is detail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flowkit.errors import StoreError
from flowkit.features.metadata import commit
from flowkit.features.stream import disk_errors
from flowkit.provenance import file_digest

SAMPLES_FILE, REJECTS_FILE = "samples.parquet", "rejects.parquet"

SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("attributes_json", pa.string()),
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class SampleRow:
    """What the store keeps of a sample beside its tokens; width and height of the source image in pixels."""

    index: int
    key: str
    captions: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    image_sha256: str | None = None
    attributes_json: str | None = None


@dataclass(frozen=True)
class RejectRow:
    """A sample that the store refused, and why."""

    index: int
    key: str
    reason: str


def write_samples(path: Path, rows: Sequence[SampleRow]) -> str:
    """Write the sample table, whose order is the order of the records; returns its SHA-256."""
    return _write(path, [{"row": number, **asdict(row)} for number, row in enumerate(rows)], SAMPLES_SCHEMA)


def write_rejects(path: Path, rows: Sequence[RejectRow]) -> str:
    """Write the table of refused samples, by index; returns its SHA-256."""
    return _write(path, [asdict(row) for row in sorted(rows, key=lambda row: row.index)], REJECTS_SCHEMA)


def read_table(path: Path, schema: pa.Schema, remedy: str, *, sha256: str | None) -> pd.DataFrame:
    """The table in `path`; `StoreError` with `remedy` if it is missing, not that of `sha256`, or has other columns."""
    return _read(path, schema, None, remedy, sha256).to_pandas()


def read_column(path: Path, schema: pa.Schema, name: str, remedy: str, *, sha256: str | None) -> pa.Array:
    """One column of the table in `path`, without making Python objects of it; errors as of `read_table`."""
    return _read(path, schema, [name], remedy, sha256).column(name).combine_chunks()


def _read(
    path: Path, schema: pa.Schema, columns: list[str] | None, remedy: str, sha256: str | None
) -> pa.Table:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise StoreError(f"{path} does not match its checksum; {remedy}")
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        table = file.read(columns) if names == schema.names else None
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as parquet ({_first_line(error)}); {remedy}") from error
    if table is None:
        raise StoreError(f"{path} has the columns {names}, expected {schema.names}; {remedy}")
    return table


def count_rows(path: Path, remedy: str) -> int:
    """The number of lines of a table, from its footer alone."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as parquet ({_first_line(error)}); {remedy}") from error


def _write(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> str:
    return write_parquet(path, pa.Table.from_pylist(list(rows), schema=schema))


def write_parquet(path: Path, table: pa.Table) -> str:
    """Write `table` under a temporary name, flush it to disk, rename it; returns its SHA-256."""
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        pq.write_table(table, partial)
        digest = file_digest(partial)
        commit(partial, path)
    return digest


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
