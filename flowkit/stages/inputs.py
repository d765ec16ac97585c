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


def weights_of(spec: Spec) -> tuple[Path, str]:
    """Return the path of the weights in `target.weights`, a file or a folder, and their sha256.

    Raises `EncoderError` if weights that stayed where the user has them are gone or were replaced.
    """
    content, manifest = committed(spec.places.weights(spec.target["weights"]))
    counts, location = manifest["counts"], read_json(content / LOCATION)
    path = content / location["path"]
    for name, identity in location["outside"].items():
        if file_identity(Path(name)) != identity:
            raise EncoderError(
                f"{name}: gone or replaced since the digest of the weights of {counts['encoder']} was taken, "
                "put it back or run stage weights again"
            )
    return path, counts["sha256"]


def file_identity(file: Path) -> list[int] | None:
    """Return size and time of change of a file, None if there is none: what tells cheaply that it is the same."""
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
