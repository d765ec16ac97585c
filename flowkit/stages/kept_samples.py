"""Samples that an earlier execution of stage `sample` made, and that need not be made again.

One more sampler, or a kill, would otherwise cost what all samplers cost. A store of samples is known by the digest of
all that it is made from: checkpoint, pairs, code, and the values of this sampler alone. `state/samplers.json` says
where it lies and what it cost; it is taken over by links, if its checksums are still what they were.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypedDict

from flowkit.errors import StoreError
from flowkit.features.store import TokenStore
from flowkit.progress import logger
from flowkit.provenance import read_json, write_json

RECORD = "samplers.json"
MOST_KEPT = 500


class Cost(TypedDict):
    """Network evaluations and images per second of a store of samples."""

    evaluations: float
    images_per_s: float


class _Kept(TypedDict):
    path: str
    digest: str
    cost: Cost


class KeptSamples:
    """The stores of samples below the result `folder`, by the digest of what they are made from."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._record = folder, folder / "state" / RECORD
        self._kept: dict[str, _Kept] = read_json(self._record) if self._record.is_file() else {}

    def take(self, key: str, store: Path) -> Cost | None:
        """Bring the store that is known as `key` to the path `store` and return its cost, None if there is none."""
        kept = self._kept.get(key)
        if kept is None or not self._is_intact(kept):
            return None
        known = self._folder / kept["path"]
        if known != store:
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(known, store, copy_function=os.link)
        logger.info("samples=%s kept=%s", store.name, kept["path"])
        return kept["cost"]

    def add(self, key: str, store: Path, cost: Cost) -> None:
        """Remember a finished store."""
        path = store.relative_to(self._folder).as_posix()
        self._kept[key] = _Kept(path=path, digest=TokenStore(store).digest(), cost=cost)
        self._write()

    def moved(self, work: Path, final: Path) -> None:
        """Follow the stores below `work`, which became the result `final`."""
        before, after = (path.relative_to(self._folder).as_posix() for path in (work, final))
        for kept in self._kept.values():
            if kept["path"].startswith(f"{before}/"):
                kept["path"] = after + kept["path"].removeprefix(before)
        self._write()

    def _is_intact(self, kept: _Kept) -> bool:
        try:
            return TokenStore(self._folder / kept["path"]).digest() == kept["digest"]
        except StoreError:
            return False

    def _write(self) -> None:
        there = {key: kept for key, kept in self._kept.items() if (self._folder / kept["path"]).is_dir()}
        self._kept = dict(list(there.items())[-MOST_KEPT:])
        write_json(self._record, self._kept)
