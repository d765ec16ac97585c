"""Stage `pairs`: which row of which source store belongs to which row of which target store.

The manifest names the stores' digests, so a store with other content makes everything after it run again even if the
rows are the same.
"""

from __future__ import annotations

from dataclasses import asdict

from flowkit.features.pairs import merge_pairs
from flowkit.paths import PAIRS
from flowkit.progress import Progress
from flowkit.provenance import digest_of
from flowkit.stages.session import Spec, committed, open_session


def run(spec: Spec) -> None:
    """Commit `pairs.parquet` and its index of stores for `target.dataset`, source and target encoder."""
    dataset, source, target = (spec.target[key] for key in ("dataset", "source", "target"))
    tars = spec.target["tars"].split(",")
    stores = [[spec.places.store(dataset, encoder, tar) for tar in tars] for encoder in (source, target)]
    folder = spec.places.pairs(dataset, source, target)
    with open_session(spec, folder, [*stores[0], *stores[1]]) as session:
        if session.is_done:
            return
        contents = [[committed(store)[0] for store in side] for side in stores]
        encoders = (spec.values["encoders"]["source"]["name"], spec.values["encoders"]["target"]["name"])
        progress = Progress(f"pairs {dataset}", len(tars), "tar")
        counts = merge_pairs(
            contents[0], contents[1], session.work / PAIRS, encoders=encoders, advance=progress.advance
        )
        progress.close()
        digests = [[path.name for path in side] for side in contents]
        session.commit({**asdict(counts), "tars": tars, "stores": digest_of(digests)})
