"""How stages open the paired tokens of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.features.loader import PairedTokens
from flowkit.features.store import TokenStore
from flowkit.features.store_index import StoreIndex, read_index
from flowkit.paths import PAIRS
from flowkit.stages.session import Spec, committed


def stores_of(spec: Spec, dataset: str, encoder_id: str) -> list[Path]:
    """Return the stores of a data set that its pairs were made of, in tar order.

    They stand in the index of the pairs: thousands of manifests need not be read.
    """
    return list(indexed_stores(spec, dataset, encoder_id).paths)


@dataclass(frozen=True)
class Stores:
    """The stores of one encoder in tar order, to be opened one by one: thousands of them would not fit in memory."""

    paths: Sequence[Path]
    index: StoreIndex

    def open(self, number: int) -> TokenStore:
        """Return the store of a tar, which remembers nothing of an earlier one."""
        return self.index.open([self.paths[number]])[0]


def indexed_stores(spec: Spec, dataset: str, encoder_id: str) -> Stores:
    """Return the stores of `stores_of` with what is known of them."""
    content, manifest = committed(_pairs_of(spec, dataset))
    index = read_index(content / PAIRS)
    return Stores(_stores(spec, dataset, encoder_id, index, manifest["counts"]["tars"]), index)


def _pairs_of(spec: Spec, dataset: str) -> Path:
    return spec.places.pairs(dataset, spec.target["source"], spec.target["target"])


def _stores(spec: Spec, dataset: str, encoder_id: str, index: StoreIndex, tars: Sequence[str]) -> list[Path]:
    names = index.names["source" if encoder_id == spec.target["source"] else "target"]
    return [spec.places.store(dataset, encoder_id, tar) / name for tar, name in zip(tars, names, strict=True)]


def open_pairs(
    spec: Spec,
    dataset: str,
    *,
    tars: slice = slice(None),
    data: Mapping[str, Any] | None = None,
    by_view: bool = False,
) -> PairedTokens:
    """Return the paired tokens of the tars in `tars`, in tar order.

    Layout and source tokens are those of the configuration, or of `data` for a stage that does not see them. With
    `by_view`, every view of an object is a sample of its own.
    """
    content, manifest = committed(_pairs_of(spec, dataset))
    index = read_index(content / PAIRS)
    sources, targets = (
        _stores(spec, dataset, spec.target[role], index, manifest["counts"]["tars"])
        for role in ("source", "target")
    )
    data = spec.values["data"] if data is None else data
    return PairedTokens(
        content / PAIRS,
        sources,
        targets,
        layout=data["layout"],
        source_tokens=data["source_tokens"],
        tars=tars,
        by_view=by_view,
        index=index,
    )


def open_training_pairs(spec: Spec, dataset: str, *, by_view: bool = False) -> PairedTokens:
    """Return the pairs of the tars that training reads: all but those held out."""
    held_out = spec.values["data"]["validation_shards"]
    return open_pairs(spec, dataset, tars=slice(0, -held_out), by_view=by_view)
