"""Writes webdataset tars whose bytes depend on their samples alone: fixed times and owners, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from flowkit.errors import ShardError


def plan_tars(folder: Path, samples: int, samples_per_shard: int) -> list[tuple[Path, range]]:
    """Return `folder/00000.tar` ... with the indices of the samples that go into each.

    Makes the folder. Raises `ShardError` if it holds tars that are not part of the set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, samples, samples_per_shard)
    plan = [
        (folder / f"{number:05d}.tar", range(start, min(start + samples_per_shard, samples)))
        for number, start in enumerate(starts)
    ]
    strangers = sorted(path.name for path in set(folder.glob("*.tar")) - {tar for tar, _ in plan})
    if strangers:
        raise ShardError(
            f"{folder} holds tars that are not part of this set of {len(plan)}: {', '.join(strangers[:5])}; "
            "move them away or choose another folder"
        )
    return plan


def write_tar(tar: Path, records: Iterable[Mapping[str, str | bytes]]) -> None:
    """Write samples (`__key__` and one value per extension) to a tar that gets its name when it is complete."""
    from webdataset.writer import TarWriter  # a second to import, needed only here

    partial = tar.with_name(f".{tar.name}.partial")
    with partial.open("wb") as stream:
        with TarWriter(stream, user="flowkit", group="flowkit", mtime=0, encoder=False) as writer:
            for record in records:
                writer.write(record)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(tar)
