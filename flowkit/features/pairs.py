"""Pairs: which row of which source store and which row of which target store show the same image.

    pairs.parquet       sample, view, tar, source_row, target_row     integers, in tar order, then member order
    pairs.stores.json   what is known of the stores, see store_index.py

Rejects differ from encoder to encoder, so row i of one store is not row i of the other: rows are joined on
the key inside each tar. `tar` counts the stores in the order in which they were given; the table's metadata
names their tars, so that a reader can refuse other stores. A line is an image. Where objects have several views, a
sample is an object and has as many lines, view by view; an object of which one view found no partner falls out.

Shapes: N samples, V views.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flowkit.errors import StoreError
from flowkit.features.store import TokenStore
from flowkit.features.store_index import ROLES, IndexBuilder
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
        ends = np.array([chosen.start, chosen.stop], np.int32)  # of the same type, or all rows are converted
        first, end = np.searchsorted(self.tar_NV[:, 0], ends) if chosen else (0, 0)
        part = slice(int(first), int(end))
        return PairRows(self.tar_NV[part], self.source_row_NV[part], self.target_row_NV[part])

    def by_view(self) -> PairRows:
        """Return the same rows with every view as a sample of its own."""
        return PairRows(
            *(rows.reshape(-1, 1) for rows in (self.tar_NV, self.source_row_NV, self.target_row_NV))
        )


def merge_pairs(
    source_stores: Sequence[Path],
    target_stores: Sequence[Path],
    out: Path,
    *,
    encoders: tuple[str | None, str | None] = (None, None),
    advance: Callable[[], None] = lambda: None,
) -> PairCounts:
    """Join the stores of two encoders, given in the same order of tars; write the table to `out`, its index beside it.

    One store of each side is open at a time. `encoders` names those that the sides must come from; `advance` is called
    after every tar. Raises `StoreError` if the lists name different tars, stores are of another encoder or have
    different numbers of views, a key occurs twice in a store, or no pair is left.
    """
    _check_same_number(source_stores, target_stores)
    index, tars, parts, fell_out = IndexBuilder(), [], [], Counter[str]()
    first: TokenStore | None = None
    for number, paths in enumerate(zip(source_stores, target_stores, strict=True)):
        source, target = (
            TokenStore(path, encoder=encoder) for path, encoder in zip(paths, encoders, strict=True)
        )
        _check_same_tar(source, target)
        first = first or source
        views = _same_views(first, source, target)
        rows, lost = _join(source, target, views)
        parts.append(np.vstack([np.full(rows.shape[1], number, np.int32), rows]))
        tars.append(_tar(source))
        fell_out.update(lost)
        for role, store in zip(ROLES, (source, target), strict=True):
            index.add(role, store)
        advance()
    images = sum(part.shape[1] for part in parts)
    if first is None or not images:
        raise StoreError(
            f"{out}: no image is in both the {len(source_stores)} source and the {len(target_stores)} target stores"
            f" (fell out: {dict(fell_out)}); look into their rejects tables"
        )
    views = _views(first)
    out.parent.mkdir(parents=True, exist_ok=True)
    index.write(out)
    write_parquet(out, _table(parts, images, views, tars))
    return PairCounts(images // views, dict(sorted(fell_out.items())), views)


def _table(parts: list[Rows], images: int, views: int, tars: Sequence[dict[str, object]]) -> pa.Table:
    """The table of all images; empties `parts`, each [3, n]: tar, source row and target row of a tar's images."""
    lines = np.arange(images)
    columns = [lines // views, (lines % views).astype(np.int16)]
    columns += [np.concatenate([part[row] for part in parts]) for row in range(len(ROW_COLUMNS))]
    parts.clear()
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PAIRS_SCHEMA, strict=True)]
    metadata = {_TARS: json.dumps(tars), _VIEWS: str(views)}
    return pa.Table.from_arrays(arrays, schema=PAIRS_SCHEMA.with_metadata(metadata))


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
    tar = columns[0]
    if len(columns[0]) % views:
        raise StoreError(
            f"{path} has {len(columns[0])} lines, which are no objects of {views} views; {REMEDY}"
        )
    if (tar[1:] < tar[:-1]).any():
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
    _check_same_number(sources, targets)
    for source, target in zip(sources, targets, strict=True):
        _check_same_tar(source, target)


def _check_same_number(sources: Sequence[object], targets: Sequence[object]) -> None:
    if len(sources) != len(targets):
        raise StoreError(
            f"{len(sources)} source stores and {len(targets)} target stores; pass one of each per tar"
        )


def _check_same_tar(source: TokenStore, target: TokenStore) -> None:
    if _tar(source) != _tar(target):
        raise StoreError(
            f"{source.path} is of the tar {_tar(source)}, {target.path} of {_tar(target)}; "
            "pass the stores in the same order, and extract both from the same tar"
        )


def _join(source: TokenStore, target: TokenStore, views: int) -> tuple[Rows, Counter[str]]:
    """Rows of both stores [2, n] of the images of one tar that are in both, and why its other keys fell out."""
    keys, target_keys = _keys(source), _keys(target)
    place = pc.index_in(keys, value_set=target_keys)
    source_row = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
    rows = np.vstack([source_row, place.drop_null().to_numpy()]).astype(np.int32)
    lost = _lost(source, target, keys, target_keys, rows)
    if views > 1:
        whole, fewer = _whole_objects(keys.take(pa.array(source_row)).to_pylist(), views)
        return rows[:, whole], lost + fewer
    return rows, lost


def _lost(
    source: TokenStore, target: TokenStore, keys: pa.Array, target_keys: pa.Array, rows: Rows
) -> Counter[str]:
    """Why keys of a tar are in no pair."""
    refused = _reasons(source), _reasons(target)
    alone = [
        np.delete(np.arange(len(side)), joined)
        for side, joined in zip((keys, target_keys), rows, strict=True)
    ]
    only = [
        set(side.take(pa.array(at)).to_pylist()) for side, at in zip((keys, target_keys), alone, strict=True)
    ]
    kept_by_none = [*{*refused[0], *refused[1]}]
    for side in (keys, target_keys):
        is_kept = pc.is_in(pa.array(kept_by_none, pa.string()), value_set=side).to_pylist()
        kept_by_none = [key for key, kept in zip(kept_by_none, is_kept, strict=True) if not kept]
    found = only[0].union(only[1], kept_by_none)
    return Counter(_why(key, *refused, in_target=key in only[1]) for key in found)


def _why(key: str, source: dict[str, str], target: dict[str, str], *, in_target: bool) -> str:
    if key in source and key in target:
        both = (source[key], target[key])
        return f"both: {' / '.join(dict.fromkeys(both))}"
    if key in source:
        return f"source: {source[key]}"
    if key in target:
        return f"target: {target[key]}"
    return "source: not in the store" if in_target else "target: not in the store"


def _keys(store: TokenStore) -> pa.Array:
    """The keys of a store, in the order of its records."""
    keys = store.column("key")
    if len(keys.unique()) < len(keys):
        counts = pc.value_counts(keys)
        twice = next(one["values"].as_py() for one in counts if one["counts"].as_py() > 1)
        raise StoreError(f"{store.path} holds the key {twice!r} twice; give each sample its own key")
    return keys


def _reasons(store: TokenStore) -> dict[str, str]:
    """Key -> class of the reason, which is its part before the first colon."""
    if not store.attributes["counts"]["rejects"]:
        return {}
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
    starts = np.searchsorted(tars, np.arange(len(stores) + 1, dtype=np.int32))
    used = np.flatnonzero(starts[1:] > starts[:-1])
    if (np.maximum.reduceat(rows, starts[used]) < lengths[used]).all():
        return
    line = int(np.argmax(rows >= lengths[tars]))
    store = stores[int(tars[line])]
    raise StoreError(
        f"{path}: line {line} asks for {column} {int(rows[line])} of {store.path}, "
        f"which has {len(store)}; {REMEDY}"
    )


def _views(store: TokenStore) -> int:
    return int(store.attributes.get("views", 1))


def _same_views(first: TokenStore, *stores: TokenStore) -> int:
    """How many views the objects of all stores have."""
    for store in stores:
        if _views(store) != _views(first):
            raise StoreError(
                f"{store.path} is of objects with {_views(store)} view(s), {first.path} of such with "
                f"{_views(first)}; extract both with the same `views` of the data set"
            )
    return _views(first)


def _whole_objects(keys: Sequence[str], views: int) -> tuple[NDArray[np.integer], Counter[str]]:
    """The places in `keys` of objects of which all views are there, view by view, and how many other keys there are."""
    places: dict[str, dict[int, int]] = {}
    for place, key in enumerate(keys):
        name, view = object_and_view(key)
        places.setdefault(name, {})[view] = place
    whole = [
        by_view[view] for by_view in places.values() if len(by_view) == views for view in sorted(by_view)
    ]
    lost = len(keys) - len(whole)
    return np.array(whole, np.int64), Counter({FEWER_VIEWS: lost} if lost else {})
