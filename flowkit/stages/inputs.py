"""Where stages find the tars and weights that other stages committed; needs nothing of how those were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.errors import EncoderError, ShardError
from flowkit.paths import LOCATION
from flowkit.provenance import read_json
from flowkit.stages.session import Spec, committed


def tar_of(spec: Spec, dataset: str, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the path of one tar of a committed data set and its description {name, bytes, sha256}."""
    is_fetched = spec.values["datasets"][dataset]["kind"] == "hub"
    folder = spec.places.fetched(dataset, name) if is_fetched else spec.places.shards(dataset)
    content, manifest = committed(folder)
    described = next((tar for tar in manifest["counts"]["tars"] if tar["name"] == name), None)
    if described is None:
        raise ShardError(
            f"{name}: not among the tars that stage shards found for {dataset}, run that stage again"
        )
    return (content if is_fetched else content / read_json(content / LOCATION)) / name, described


def weights_of(spec: Spec, encoder_id: str) -> tuple[Path, str]:
    """Return the path of the weights of an encoder, a file or a folder, and their sha256."""
    content, manifest = committed(spec.places.weights(encoder_id))
    counts = manifest["counts"]
    path = content / read_json(content / LOCATION)
    if not path.exists():
        raise EncoderError(
            f"{path}: weights of {counts['encoder']} were here and are gone, put them back or run stage weights again"
        )
    return path, counts["sha256"]
