"""Pairs: which row of which source store and which row of which target store show the same image.

    pairs.parquet   sample, view, tar, source_row, target_row     integers, in tar order, then member order

Rejects differ from encoder to encoder, so row i of one store is not row i of the other: rows are joined on
the key inside each tar. `tar` counts the stores in the order in which they were given; the table's metadata
names their tars, so that a reader can refuse other stores. `view` is 0 until an object has several views.
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

from flowkit.errors import StoreError
from flowkit.features.store import TokenStore
from flowkit.features.tables import write_parquet

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("view", pa.int16(), nullable=False),
        pa.field("tar", pa.int32(), nullable=False),
        pa.field("source_row", pa.int32(), nullable=False),
        pa.field("target_row", pa.int32(), nullable=False),
    ]
)
_TARS = b"flowkit_tars"
REMEDY = "make the pairs again from the stores in use"


@dataclass(frozen=True)
class PairCounts:
    """How many rows were joined, and how many keys found no partner, by side and reason.

    For instance `fell_out` = {"source: image undecodable": 2, "both: caption missing": 1}.
    """

    pairs: int
    fell_out: dict[str, int]


def merge_pairs(source_stores: Sequence[Path], target_stores: Sequence[Path], out: Path) -> PairCounts:
    """Join the stores of two encoders, given in the same order of tars, and write the table to `out`.

    Raises `StoreError` if the lists name different tars, a key occurs twice in a store, or no pair is left.
    """
    sources, targets = (
        [TokenStore(path) for path in source_stores],
        [TokenStore(path) for path in target_stores],
    )
    check_same_tars(sources, targets)
    tables, fell_out = [], Counter[str]()
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        joined, lost = _join(source, target)
        tables.append(joined.assign(tar=number))
        fell_out.update(lost)
    pairs = pd.concat(tables, ignore_index=True).assign(view=0) if tables else pd.DataFrame()
    if pairs.empty:
        raise StoreError(
            f"{out}: no image is in both the {len(sources)} source and the {len(targets)} target stores"
            f" (fell out: {dict(fell_out)}); look into their rejects tables"
        )
    pairs["sample"] = np.arange(len(pairs))
    table = pa.Table.from_pandas(pairs[PAIRS_SCHEMA.names], schema=PAIRS_SCHEMA, preserve_index=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(out, table.replace_schema_metadata({_TARS: json.dumps([_tar(store) for store in sources])}))
    return PairCounts(len(pairs), dict(sorted(fell_out.items())))


def read_pairs(path: Path, sources: Sequence[TokenStore], targets: Sequence[TokenStore]) -> pd.DataFrame:
    """The table in `path`; `StoreError` if it is damaged or was made from other tars than the stores."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as parquet ({error}); {REMEDY}") from error
    if table.schema.names != PAIRS_SCHEMA.names or _TARS not in (table.schema.metadata or {}):
        raise StoreError(f"{path} is no table of pairs, it has the columns {table.schema.names}; {REMEDY}")
    check_same_tars(sources, targets)
    expected = json.loads(table.schema.metadata[_TARS])
    found = [_tar(store) for store in sources]
    if found != expected:
        raise StoreError(
            f"{path} joins the tars {_names(expected)}, the stores are of {_names(found)}; {REMEDY}"
        )
    frame = table.to_pandas()
    _check_rows(path, frame, "source_row", sources)
    _check_rows(path, frame, "target_row", targets)
    return frame


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
    return joined[["source_row", "target_row"]], lost


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


def _check_rows(path: Path, frame: pd.DataFrame, column: str, stores: Sequence[TokenStore]) -> None:
    lengths = np.array([len(store) for store in stores])
    beyond = frame[column].to_numpy() >= lengths[frame["tar"].to_numpy()]
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        store = stores[int(frame["tar"].iloc[row])]
        raise StoreError(
            f"{path}: line {row} asks for {column} {int(frame[column].iloc[row])} of {store.path}, "
            f"which has {len(store)}; {REMEDY}"
        )
