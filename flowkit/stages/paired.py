"""How stages open the paired tokens of a data set."""

from __future__ import annotations

from pathlib import Path

from flowkit.features.loader import Layout, PairedTokens
from flowkit.paths import PAIRS
from flowkit.stages.session import Spec, committed


def stores_of(spec: Spec, dataset: str, encoder_id: str) -> list[Path]:
    """Return the committed stores of a data set in tar order."""
    _, manifest = committed(spec.places.pairs(dataset, spec.target["source"], spec.target["target"]))
    return [committed(spec.places.store(dataset, encoder_id, tar))[0] for tar in manifest["counts"]["tars"]]


def open_pairs(spec: Spec, dataset: str, *, layout: Layout, tars: slice = slice(None)) -> PairedTokens:
    """Return the paired tokens of the tars in `tars`, in tar order."""
    source, target = spec.target["source"], spec.target["target"]
    content, _ = committed(spec.places.pairs(dataset, source, target))
    sources, targets = stores_of(spec, dataset, source), stores_of(spec, dataset, target)
    return PairedTokens(content / PAIRS, sources, targets, layout=layout, tars=tars)
