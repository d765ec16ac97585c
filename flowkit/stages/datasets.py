"""Which tars a data set has, known before anything runs.

Tars of a hub repository are listed once and pinned to a commit: the listing lies in `<data_root>/listings/`, so parsing
the workflow again, also on a node without internet, gives the same rules. Delete the file to move on to newer tars.
"""

from __future__ import annotations

import re
from pathlib import Path

from flowkit.datasets import AnyDataset, CocoDataset, DemoDataset, FolderDataset, HubDataset, SolidsDataset
from flowkit.errors import ShardError
from flowkit.paths import Places
from flowkit.progress import logger
from flowkit.provenance import read_json, write_json
from flowkit.shards.catalogue import choose_tars, list_tars
from flowkit.shards.hub import HubTar, Listing, list_tars_of_hub
from flowkit.shards.retries import Patience

SHORT_PATIENCE = Patience(failures_in_a_row=4)
"""Somebody waits for the answer at a terminal."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9._+-]+")


def tar_names(dataset: AnyDataset, places: Places) -> list[str]:
    """Return the names of the tars of a data set in their order.

    Lists a hub repository if no listing is there yet. Raises `ShardError` if there is no folder, repository or tar.
    """
    if isinstance(dataset, DemoDataset | SolidsDataset | CocoDataset):
        return [f"{number:05d}.tar" for number in range(-(-dataset.images // dataset.images_per_shard))]
    if isinstance(dataset, FolderDataset):
        return [_demand_plain(tar.name, dataset.path) for tar in folder_tars(dataset)]
    return [_demand_plain(tar.file_name, dataset.repository) for tar in hub_tars(dataset, places)]


def _demand_plain(name: str, where: str) -> str:
    """Return a tar's name if it can be part of a rule and of a path."""
    if not PLAIN_NAME.fullmatch(name):
        raise ShardError(f"{where}: the tar {name!r} has other letters than A-Z a-z 0-9 . _ + -, rename it")
    return name


def folder_tars(dataset: FolderDataset) -> list[Path]:
    """Return the tars of a local folder that the data set uses."""
    tars = list_tars(Path(dataset.path))
    return choose_tars(tars, dataset.first_shard, dataset.shards, where=dataset.path)


def hub_tars(dataset: HubDataset, places: Places) -> list[HubTar]:
    """Return the tars of a hub repository that the data set uses."""
    listing = listing_of(dataset, places)
    return choose_tars(listing.tars, dataset.first_shard, dataset.shards, where=dataset.repository)


def listing_of(dataset: HubDataset, places: Places) -> Listing:
    """Return the listing that this data root is pinned to, making it if there is none."""
    file = places.listing(dataset.repository, dataset.revision)
    if file.is_file():
        return Listing.from_json(read_json(file))
    listing = list_tars_of_hub(dataset.repository, dataset.revision, patience=SHORT_PATIENCE)
    write_json(file, listing.to_json())
    logger.info(
        "repository=%s revision=%s pinned=%s tars=%d listing=%s",
        dataset.repository, dataset.revision, listing.commit, len(listing.tars), file,
    )  # fmt: skip
    return listing
