"""Stage `pairs`: which row of which source store belongs to which row of which target store.

Also the place where other stages open paired tokens. The manifest names the stores' digests, so a store with other
content makes everything after it run again even if the rows are the same.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from flowkit.features.loader import PairedTokens
from flowkit.features.pairs import merge_pairs
from flowkit.features.store import TokenStore
from flowkit.provenance import digest_of
from flowkit.stages.session import Spec, committed, open_session

FILE = "pairs.parquet"


def run(spec: Spec) -> None:
    """Commit `pairs.parquet` for `target.dataset`, source and target encoder."""
    dataset, source, target = (spec.target[key] for key in ("dataset", "source", "target"))
    tars = spec.target["tars"].split(",")
    stores = [[spec.places.store(dataset, encoder, tar) for tar in tars] for encoder in (source, target)]
    folder = spec.places.pairs(dataset, source, target)
    with open_session(spec, folder, [*stores[0], *stores[1]]) as session:
        if session.is_done:
            return
        contents = [[committed(store)[0] for store in side] for side in stores]
        counts = merge_pairs(contents[0], contents[1], session.work / FILE)
        digests = [[path.name for path in side] for side in contents]
        session.commit({**asdict(counts), "tars": tars, "stores": digest_of(digests)})


def stores_of(spec: Spec, dataset: str, encoder_id: str) -> list[Path]:
    """Return the committed stores of a data set in tar order."""
    _, manifest = committed(spec.places.pairs(dataset, spec.target["source"], spec.target["target"]))
    return [committed(spec.places.store(dataset, encoder_id, tar))[0] for tar in manifest["counts"]["tars"]]


def open_pairs(spec: Spec, dataset: str, *, layout: str, tars: slice = slice(None)) -> PairedTokens:
    """Return the paired tokens of the tars in `tars`, in tar order."""
    source, target = spec.target["source"], spec.target["target"]
    content, _ = committed(spec.places.pairs(dataset, source, target))
    sources, targets = stores_of(spec, dataset, source), stores_of(spec, dataset, target)
    return PairedTokens(content / FILE, sources, targets, layout=layout, tars=tars)


def target_store(path: Path) -> TokenStore:
    """Open one committed store."""
    return TokenStore(path)
