"""Asks for room on a disk before it is needed, so that a night's work does not end in a full one."""

from __future__ import annotations

import shutil
from pathlib import Path

from flowkit.errors import ShardError

GIGABYTE = 10**9


def demand_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Raise `ShardError` if the disk of `folder` (which need not exist yet) has less than `bytes_needed` free.

    A quota that the system does not tell cannot be seen here.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < bytes_needed:
        raise ShardError(
            f"{what} needs {bytes_needed / GIGABYTE:.3f} GB in {folder}, but only {free / GIGABYTE:.3f} GB are "
            "free there; make room, take fewer shards or choose another data_root"
        )
