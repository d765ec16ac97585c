"""Token store: what one encoder made of one source tar, as a Zarr v3 group that any Zarr reader opens.

    <store>/zarr.json                           group; attributes: see below
    <store>/tokens/{zarr.json, c.0.0.0}         [N, T, D] float16, last block before the final norm
    <store>/pooled/{zarr.json, c.0.0}           [N, P] float16, projected embedding, not normalised
    <store>/{samples,rejects}.parquet           see tables.py

The group's attributes name the encoder, its preprocessing, the source tar with its digest and the counts.
Records are read directly (records.py), which is several times faster than through zarr-python; `as_zarr` is
the slow reference. A store may hold its tokens as int8 (int8.py): it reads as float16 all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from flowkit.errors import StoreError
from flowkit.features import tables
from flowkit.features.metadata import (
    CHANNELS,
    CHUNKS,
    DOCUMENT,
    POOLED,
    TOKENS,
    TOKENS_SCALE,
    array_document,
    data_file,
    read_document,
    read_group,
)
from flowkit.features.records import (
    LARGEST_BITS,
    REMEDY,
    HalfArray,
    RecordLayout,
    RecordReader,
    Rows,
    check_size,
    largest_bits,
)
from flowkit.provenance import file_digest

if TYPE_CHECKING:
    import zarr

    from flowkit.features.quantisation import QuantisedReader

STORAGES = ("float16", "int8")
UNFINISHED = "this store is not finished: run the extraction of its tar"

VERIFY_RECORDS_AT_ONCE = 64
"""Records that `verify` holds in memory; 256 tokens of width 4096 make 2 MiB each."""


class TokenStore:
    """A finished store, checked on opening: every file is there, has its size and belongs to the rest.

    `encoder`, if given, is the name of the encoder that the store must come from.
    Raises `StoreError` naming the file that is missing, of a wrong size, or foreign.
    """

    def __init__(self, path: Path, *, encoder: str | None = None) -> None:
        self.path = Path(path)
        self.attributes, self.table_digests = read_group(
            self.path / DOCUMENT, unfinished=UNFINISHED, remedy=REMEDY
        )
        if encoder is not None and self.attributes.get("encoder") != encoder:
            found = self.attributes.get("encoder")
            raise StoreError(f"{self.path} holds tokens of {found!r}, expected {encoder!r}; {REMEDY}")
        for name, layout in self._layouts().items():
            self._check_document(name, layout)
        self._check_sizes()
        self._check_table_lengths()

    @classmethod
    def known(cls, path: Path, attributes: Mapping[str, Any], table_digests: Mapping[str, str]) -> TokenStore:
        """A store whose group document was found to be one that was read and checked before (store_index.py).

        Its tables and arrays are opened when they are asked for; now, the files of the arrays must have their sizes.
        Raises `StoreError` naming the file that is missing or has not.
        """
        store = cls.__new__(cls)
        store.path, store.attributes, store.table_digests = path, dict(attributes), dict(table_digests)
        store._check_sizes()
        return store

    def __len__(self) -> int:
        """The number of samples, rejects not counted."""
        return int(self.attributes["counts"]["samples"])

    @property
    def token_shape(self) -> tuple[int, int]:
        """(tokens, channels) of one sample."""
        tokens, channels = self._arrays[TOKENS].layout.shape
        return tokens, channels

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled embedding; `StoreError` if the store keeps none."""
        return self.array(POOLED).layout.shape[0]

    @property
    def storage(self) -> str:
        """How the tokens lie on disk: "float16" or "int8"."""
        return str(self.attributes.get("storage", STORAGES[0]))

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is the class token; False if the attributes do not say so."""
        return bool(self.attributes.get("has_cls", False))

    @cached_property
    def _records(self) -> dict[str, RecordReader]:
        """Readers of the arrays as they lie on disk."""
        return {
            name: RecordReader(data_file(self.path, name), layout, self._count(name))
            for name, layout in self._layouts().items()
        }

    @cached_property
    def _arrays(self) -> dict[str, RecordReader | QuantisedReader]:
        """Readers of the arrays that the attributes name, which give float16."""
        return self._open_values()

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The sample table (tables.py), one line per record, in record order."""
        return self._table(tables.SAMPLES_FILE, tables.SAMPLES_SCHEMA)

    @cached_property
    def rejects(self) -> pd.DataFrame:
        """The table of refused samples (tables.py)."""
        return self._table(tables.REJECTS_FILE, tables.REJECTS_SCHEMA)

    def column(self, name: str) -> pa.Array:
        """One column of the sample table (tables.py), in record order; nothing of it is kept."""
        path, digest = self.path / tables.SAMPLES_FILE, self.table_digests.get(tables.SAMPLES_FILE)
        return tables.read_column(path, tables.SAMPLES_SCHEMA, name, REMEDY, sha256=digest)

    def array(self, name: str) -> RecordReader | QuantisedReader:
        """The reader of the array `name`, "tokens" or "pooled", which gives float16."""
        if name not in self._arrays:
            raise StoreError(f"{self.path} has no array {name!r}, only {sorted(self._arrays)}; {REMEDY}")
        return self._arrays[name]

    def records(self, name: str) -> RecordReader:
        """The reader of one array as it lies on disk."""
        return self._records[name]

    def files(self) -> list[str]:
        """Every file of the store, relative to it."""
        files = [DOCUMENT, tables.SAMPLES_FILE, tables.REJECTS_FILE]
        for name, reader in self._records.items():
            files.append(f"{name}/{DOCUMENT}")
            if reader.count:
                files.append(reader.path.relative_to(self.path).as_posix())
        return sorted(files)

    def read_tokens(self, rows: Rows, out: HalfArray | None = None) -> HalfArray:
        """Tokens [n, T, D] float16 of `rows`, checksums verified, into `out` if given."""
        return self._arrays[TOKENS].read(rows, out)

    def read_pooled(self, rows: Rows) -> HalfArray:
        """Pooled embeddings [n, P] float16 of `rows`, checksums verified."""
        return self.array(POOLED).read(rows)

    def record_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one record of the array `name`: (T, D) of "tokens", (P,) of "pooled"."""
        return self.array(name).layout.shape

    def read_into(self, name: str, rows: Rows, out: HalfArray, slots: Rows, *, check: bool = True) -> None:
        """Read record `rows[k]` of the array `name` into `out[slots[k]]` for every k, for loaders.

        `out` is C-contiguous float16 [slots, *record_shape(name)]. Checksums are verified unless `check` is
        false. Safe to call from several threads at once, on different slots.
        """
        self.array(name).read_into(rows, out, slots, check=check)

    def verify(self) -> int:
        """Check every record and index: the number of records, or `StoreError` on the first bad one."""
        for reader in self._records.values():
            reader.check_index()
            for start in range(0, reader.count, VERIFY_RECORDS_AT_ONCE):
                rows = range(start, min(start + VERIFY_RECORDS_AT_ONCE, reader.count))
                for row, record in zip(rows, reader.read(rows), strict=True):
                    if record.dtype == np.float16 and largest_bits(record) > LARGEST_BITS:
                        raise StoreError(
                            f"{reader.path}: row {row} holds a value that is not finite; {REMEDY}"
                        )
        return sum(reader.count for reader in self._records.values())

    def digest(self) -> str:
        """SHA-256 of the metadata, the tables and the checksum of every record; reads no tensor data.

        Two stores with the same digest hold the same tokens; `verify` proves that the tokens fit their
        checksums.
        """
        digest = hashlib.sha256()
        documents = [DOCUMENT, *(f"{name}/{DOCUMENT}" for name in sorted(self._records))]
        for name in [*documents, tables.SAMPLES_FILE, tables.REJECTS_FILE]:
            digest.update(hashlib.sha256((self.path / name).read_bytes()).digest())
        for name in sorted(self._records):
            digest.update(self._records[name].checksums())
        return digest.hexdigest()

    def file_digests(self) -> dict[str, str]:
        """A digest of every file of the store, by its name; reads no tensor data.

        SHA-256 of small files; that of a record file begins with "crc32c:" and follows from the checksums of its
        records (`RecordReader.digest`): `verify` proves that the records fit them.
        """
        records = {
            reader.path.relative_to(self.path).as_posix(): reader
            for reader in self._records.values()
            if reader.count
        }
        return {
            name: records[name].digest() if name in records else file_digest(self.path / name)
            for name in self.files()
        }

    def as_zarr(self) -> zarr.Group:
        """The same store through zarr-python, read only: slow, for checks and for other tools."""
        import zarr

        return zarr.open_group(self.path, mode="r")

    def _table(self, name: str, schema: pa.Schema) -> pd.DataFrame:
        return tables.read_table(self.path / name, schema, REMEDY, sha256=self.table_digests.get(name))

    def _layouts(self) -> dict[str, RecordLayout]:
        layouts = {name: RecordLayout(tuple(shape)) for name, shape in self.attributes["arrays"].items()}
        if self.storage not in STORAGES:
            raise StoreError(
                f"{self.path / DOCUMENT}: storage is {self.storage!r}, expected one of {', '.join(STORAGES)}; "
                "read it with the version that wrote it"
            )
        if self.storage == "int8":
            tokens, channels = layouts[TOKENS].shape
            layouts[TOKENS] = RecordLayout((tokens, channels), "int8")
            layouts[TOKENS_SCALE] = RecordLayout((tokens,), "float32")
            layouts[CHANNELS] = RecordLayout((channels,), "float32")
        return layouts

    def _count(self, name: str) -> int:
        return 2 if name == CHANNELS else len(self)

    def _check_document(self, name: str, layout: RecordLayout) -> None:
        document, count = self.path / name / DOCUMENT, self._count(name)
        if read_document(document, REMEDY) != array_document(name, count, layout):
            raise StoreError(
                f"{document} does not describe {count} samples of shape {list(layout.shape)} "
                f"in the layout of a token store; {REMEDY}"
            )

    def _check_sizes(self) -> None:
        for name, layout in self._layouts().items():
            check_size(f"{self.path}/{CHUNKS[name]}", layout, self._count(name))

    def _open_values(self) -> dict[str, RecordReader | QuantisedReader]:
        values: dict[str, RecordReader | QuantisedReader] = {
            name: self._records[name] for name in self.attributes["arrays"]
        }
        if self.storage == "int8":
            from flowkit.features.quantisation import QuantisedReader  # torch, which float16 does not need

            values[TOKENS] = QuantisedReader(
                *(self._records[name] for name in (TOKENS, TOKENS_SCALE, CHANNELS))
            )
        return values

    def _check_table_lengths(self) -> None:
        counts = self.attributes["counts"]
        for name, expected in [
            (tables.SAMPLES_FILE, counts["samples"]),
            (tables.REJECTS_FILE, counts["rejects"]),
        ]:
            found = tables.count_rows(self.path / name, REMEDY)
            if found != expected:
                raise StoreError(f"{self.path / name} has {found} lines, expected {expected}; {REMEDY}")
