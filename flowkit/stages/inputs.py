"""Where stages find the tars and weights that other stages committed; needs nothing of how those were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.errors import ShardError
from flowkit.paths import LOCATION
from flowkit.provenance import read_json
from flowkit.stages.session import Spec, committed


def tar_of(spec: Spec, dataset: str, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the path of one tar of a committed data set and its description {name, bytes, sha256}."""
    content, manifest = committed(spec.places.shards(dataset))
    described = next((tar for tar in manifest["counts"]["tars"] if tar["name"] == name), None)
    if described is None:
        raise ShardError(
            f"{name}: not among the tars that stage shards found for {dataset}, run that stage again"
        )
    return content / read_json(content / LOCATION) / name, described


def weights_of(spec: Spec, encoder_id: str) -> tuple[Path, str]:
    """Return the path and the sha256 of the committed weights of an encoder."""
    content, manifest = committed(spec.places.weights(encoder_id))
    file = manifest["counts"]["file"]
    return content / file, manifest["files"][file]
