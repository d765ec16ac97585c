"""Pairs: which row of which source store and which row of which target store show the same image.

    pairs.parquet   sample, view, tar, source_row, target_row     integers, in tar order, then member order

Rejects differ from encoder to encoder, so row i of one store is not row i of the other: rows are joined on
the key inside each tar. `tar` counts the stores in the order in which they were given; the table's metadata
names their tars, so that a reader can refuse other stores. A line is an image. Where objects have several views, a
sample is an object and has as many lines, view by view; an object of which one view found no partner falls out.

Shapes: N samples, V views.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features.store import TokenStore
from flowkit.features.tables import write_parquet
from flowkit.view_keys import object_and_view

Rows = NDArray[np.int32]
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("view", pa.int16(), nullable=False),
        pa.field("tar", pa.int32(), nullable=False),
        pa.field("source_row", pa.int32(), nullable=False),
        pa.field("target_row", pa.int32(), nullable=False),
    ]
)
_TARS, _VIEWS = b"flowkit_tars", b"flowkit_views"
ROW_COLUMNS = ("tar", "source_row", "target_row")
FEWER_VIEWS = "both: other views of the object fell out"
REMEDY = "make the pairs again from the stores in use"


@dataclass(frozen=True)
class PairCounts:
    """How many samples were joined, of how many views, and how many images found no partner, by side and reason.

    For instance `fell_out` = {"source: image undecodable": 2, "both: caption missing": 1}.
    """

    pairs: int
    fell_out: dict[str, int]
    views: int = 1


@dataclass(frozen=True)
class PairRows:
    """Where the images of the samples are: number of the tar and rows of both stores, each [N, V] int32.

    All views of a sample are in one tar, and samples are in the order of the tars.
    """

    tar_NV: Rows
    source_row_NV: Rows
    target_row_NV: Rows

    def __len__(self) -> int:
        return len(self.tar_NV)

    @property
    def views(self) -> int:
        """Images of a sample."""
        return int(self.tar_NV.shape[1])

    def of_tars(self, chosen: range) -> PairRows:
        """Return the samples in the tars `chosen`, which follow each other; no row is copied."""
        first, end = np.searchsorted(self.tar_NV[:, 0], (chosen.start, chosen.stop)) if chosen else (0, 0)
        part = slice(int(first), int(end))
        return PairRows(self.tar_NV[part], self.source_row_NV[part], self.target_row_NV[part])

    def by_view(self) -> PairRows:
        """Return the same rows with every view as a sample of its own."""
        return PairRows(
            *(rows.reshape(-1, 1) for rows in (self.tar_NV, self.source_row_NV, self.target_row_NV))
        )


def merge_pairs(source_stores: Sequence[Path], target_stores: Sequence[Path], out: Path) -> PairCounts:
    """Join the stores of two encoders, given in the same order of tars, and write the table to `out`.

    Raises `StoreError` if the lists name different tars, stores have different numbers of views, a key occurs twice in
    a store, or no pair is left.
    """
    sources, targets = (
        [TokenStore(path) for path in source_stores],
        [TokenStore(path) for path in target_stores],
    )
    check_same_tars(sources, targets)
    views = _same_views([*sources, *targets])
    tables, fell_out = [], Counter[str]()
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        joined, lost = _join(source, target)
        if views > 1:
            joined, fewer = _whole_objects(joined, views)
            lost += fewer
        tables.append(joined.drop(columns="key").assign(tar=number))
        fell_out.update(lost)
    pairs = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if pairs.empty:
        raise StoreError(
            f"{out}: no image is in both the {len(sources)} source and the {len(targets)} target stores"
            f" (fell out: {dict(fell_out)}); look into their rejects tables"
        )
    lines = np.arange(len(pairs))
    pairs = pairs.assign(sample=lines // views, view=lines % views)
    table = pa.Table.from_pandas(pairs[PAIRS_SCHEMA.names], schema=PAIRS_SCHEMA, preserve_index=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    tars = json.dumps([_tar(store) for store in sources])
    write_parquet(out, table.replace_schema_metadata({_TARS: tars, _VIEWS: str(views)}))
    return PairCounts(len(pairs) // views, dict(sorted(fell_out.items())), views)


def read_pairs(path: Path, sources: Sequence[TokenStore], targets: Sequence[TokenStore]) -> PairRows:
    """The rows in `path`; `StoreError` if it is damaged or was made from other tars than the stores."""
    try:
        with pq.ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
            is_table = names == PAIRS_SCHEMA.names and {_TARS, _VIEWS} <= metadata.keys()
            columns = [_column(file, name) for name in ROW_COLUMNS] if is_table else []
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as parquet ({error}); {REMEDY}") from error
    if not is_table:
        raise StoreError(f"{path} is no table of pairs, it has the columns {names}; {REMEDY}")
    check_same_tars(sources, targets)
    expected = json.loads(metadata[_TARS])
    found = [_tar(store) for store in sources]
    if found != expected:
        raise StoreError(
            f"{path} joins the tars {_names(expected)}, the stores are of {_names(found)}; {REMEDY}"
        )
    views = int(metadata[_VIEWS])
    if (np.diff(columns[0]) < 0).any():
        raise StoreError(f"{path} is not in the order of its tars; {REMEDY}")
    rows = PairRows(*(column.reshape(-1, views) for column in columns))
    _check_rows(path, "source_row", rows.tar_NV, rows.source_row_NV, sources)
    _check_rows(path, "target_row", rows.tar_NV, rows.target_row_NV, targets)
    return rows


def _column(file: pq.ParquetFile, name: str) -> Rows:
    """One column, filled piece by piece: a table of millions of lines is never in memory twice."""
    values = np.empty(file.metadata.num_rows, np.int32)
    done = 0
    for batch in file.iter_batches(columns=[name]):
        values[done : done + len(batch)] = batch.column(0).to_numpy()
        done += len(batch)
    return values


def check_same_tars(sources: Sequence[TokenStore], targets: Sequence[TokenStore]) -> None:
    """Raise `StoreError` unless both lists hold stores of the same tars in the same order."""
    if len(sources) != len(targets):
        raise StoreError(
            f"{len(sources)} source stores and {len(targets)} target stores; pass one of each per tar"
        )
    for source, target in zip(sources, targets, strict=True):
        if _tar(source) != _tar(target):
            raise StoreError(
                f"{source.path} is of the tar {_tar(source)}, {target.path} of {_tar(target)}; "
                "pass the stores in the same order, and extract both from the same tar"
            )


def _join(source: TokenStore, target: TokenStore) -> tuple[pd.DataFrame, Counter[str]]:
    """The joined rows of one tar, and why its other keys fell out."""
    left, right = _rows_by_key(source, "source_row"), _rows_by_key(target, "target_row")
    joined = left.merge(right, on="key", how="inner", validate="one_to_one").sort_values("source_row")
    refused = _reasons(source), _reasons(target)
    seen = set(left["key"]).union(right["key"], *refused)
    in_target = set(right["key"])
    lost = Counter(_why(key, *refused, in_target=key in in_target) for key in seen.difference(joined["key"]))
    return joined[["key", "source_row", "target_row"]], lost


def _why(key: str, source: dict[str, str], target: dict[str, str], *, in_target: bool) -> str:
    if key in source and key in target:
        both = (source[key], target[key])
        return f"both: {' / '.join(dict.fromkeys(both))}"
    if key in source:
        return f"source: {source[key]}"
    if key in target:
        return f"target: {target[key]}"
    return "source: not in the store" if in_target else "target: not in the store"


def _rows_by_key(store: TokenStore, column: str) -> pd.DataFrame:
    rows = store.samples[["key", "row"]].rename(columns={"row": column})
    twice = rows["key"][rows["key"].duplicated()]
    if len(twice):
        raise StoreError(f"{store.path} holds the key {twice.iloc[0]!r} twice; give each sample its own key")
    return rows


def _reasons(store: TokenStore) -> dict[str, str]:
    """Key -> class of the reason, which is its part before the first colon."""
    classes: Iterable[str] = (reason.partition(":")[0] for reason in store.rejects["reason"])
    return dict(zip(store.rejects["key"], classes, strict=True))


def _tar(store: TokenStore) -> dict[str, object]:
    source = store.attributes["source"]
    return {name: source.get(name) for name in ("name", "sha256")}


def _names(tars: Sequence[dict[str, object]]) -> list[object]:
    return [tar["name"] for tar in tars]


def _check_rows(path: Path, column: str, tar_NV: Rows, row_NV: Rows, stores: Sequence[TokenStore]) -> None:
    lengths = np.array([len(store) for store in stores], np.int32)
    tars, rows = tar_NV.reshape(-1), row_NV.reshape(-1)
    beyond = np.flatnonzero(rows >= lengths[tars])
    if len(beyond):
        line = int(beyond[0])
        store = stores[int(tars[line])]
        raise StoreError(
            f"{path}: line {line} asks for {column} {int(rows[line])} of {store.path}, "
            f"which has {len(store)}; {REMEDY}"
        )


def _same_views(stores: Sequence[TokenStore]) -> int:
    """How many views the objects of all stores have."""
    found = [int(store.attributes.get("views", 1)) for store in stores]
    for store, views in zip(stores, found, strict=True):
        if views != found[0]:
            raise StoreError(
                f"{store.path} is of objects with {views} view(s), {stores[0].path} of such with {found[0]}; "
                "extract both with the same `views` of the data set"
            )
    return found[0] if found else 1


def _whole_objects(joined: pd.DataFrame, views: int) -> tuple[pd.DataFrame, Counter[str]]:
    """The lines of objects of which all views were joined, view by view, and how many others there are."""
    parts = [object_and_view(key) for key in joined["key"]]
    frame = joined.assign(object=[name for name, _ in parts], view=[view for _, view in parts])
    first = frame.groupby("object")["source_row"].transform("min")
    frame = frame.assign(first=first).sort_values(["first", "view"])
    is_whole = frame.groupby("object")["view"].transform("size") == views
    lost = int((~is_whole).sum())
    return frame.loc[is_whole, joined.columns], Counter({FEWER_VIEWS: lost} if lost else {})
