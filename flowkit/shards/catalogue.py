"""Which tars a data set has: their order, sizes and digests.

The order of the names is the order of the data set everywhere downstream.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

from flowkit.errors import ShardError
from flowkit.provenance import file_digest

Tar = TypeVar("Tar")


class TarDescription(TypedDict):
    """What identifies one tar; holds nothing that differs between identical copies."""

    name: str
    bytes: int
    sha256: str


def list_tars(folder: Path) -> list[Path]:
    """Return the `*.tar` files of a folder sorted by name; raises `ShardError` if there are none."""
    if not folder.is_dir():
        raise ShardError(f"{folder} is not a folder; fetch or write the shards first, or correct the path")
    tars = sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if not tars:
        raise ShardError(f"{folder} has no *.tar file; fetch or write the shards first, or correct the path")
    return tars


def describe_tar(tar: Path) -> TarDescription:
    """Return name, size in bytes and SHA-256 of a tar; raises `ShardError` if it cannot be read."""
    try:
        return {"name": tar.name, "bytes": tar.stat().st_size, "sha256": file_digest(tar)}
    except OSError as fault:
        raise ShardError(f"{tar} cannot be read ({fault.strerror}); fetch or write it again") from fault


def choose_tars(tars: Sequence[Tar], first_shard: int, shards: int | None, *, where: str) -> list[Tar]:
    """Return `shards` tars from position `first_shard` on, or all of them if `shards` is None.

    Raises `ShardError` if the range goes beyond the tars; `where` names their folder or repository.
    """
    end = len(tars) if shards is None else first_shard + shards
    if first_shard >= len(tars) or end > len(tars):
        raise ShardError(
            f"{where} has {len(tars)} tars, asked for are those from first_shard={first_shard} to {end - 1}; "
            "lower shards or first_shard"
        )
    return list(tars[first_shard:end])
