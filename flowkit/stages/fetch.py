"""Stage `fetch`: files that a data set is made from, from the network to this data root, checked by digest.

The tars of a hub repository commit one by one, each in a folder of its own; the two archives of COCO are one result.
What cannot be had is marked in `missing.json` with the reason, everything else is fetched all the same, and the next
start goes on with what is missing. This and `weights` are the only stages that touch the network.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flowkit.errors import ShardError
from flowkit.progress import Progress, logger
from flowkit.provenance import file_digest, read_json, write_json
from flowkit.shards.hub import HubTar, Listing, download_tar, missing_numbers
from flowkit.shards.remote import RemoteFile, WrongDigest, download
from flowkit.shards.retries import Refused
from flowkit.shards.space import demand_space
from flowkit.stages.session import Session, Spec, open_session

MISSING = "missing.json"
FETCHED = "fetched"


def run(spec: Spec) -> None:
    """Commit the tars in `target.tars`, or the archives, of `target.dataset`."""
    dataset = spec.target["dataset"]
    if spec.values["datasets"][dataset]["kind"] == "hub":
        _fetch_tars(spec, dataset)
    else:
        _fetch_archives(spec, dataset)


def _fetch_tars(spec: Spec, dataset: str) -> None:
    values, names = spec.values["datasets"][dataset], spec.target["tars"].split(",")
    listing = Listing.from_json(read_json(spec.places.listing(values["repository"], values["revision"])))
    tars = {tar.file_name: tar for tar in listing.tars}
    if gaps := missing_numbers(list(tars)):
        logger.info("repository=%s numbers_without_tar=%s", listing.repository, ",".join(gaps))
    if gone := [name for name in names if name not in tars]:
        raise ShardError(
            f"{gone[0]}: not in the listing of {listing.repository} at {listing.commit}, parse the workflow again"
        )
    new = [
        tars[name].bytes for name in names if not list(spec.places.fetched(dataset, name).glob(f"*/{name}"))
    ]
    demand_space(spec.places.shards(dataset), sum(new), f"data set {dataset} ({len(new)} tars)")
    missing: dict[str, str] = {}
    progress = Progress(f"fetch {dataset}", sum(tars[name].bytes for name in names), "byte")
    for number, name in enumerate(names):
        one = replace(spec, target={**spec.target, "tars": name})
        try:
            _fetch_tar(one, listing, tars[name], progress.advance)
        except ShardError as error:
            logger.error("tar=%s missing: %s", name, error)
            missing[name] = str(error)
            if not isinstance(error, Refused | WrongDigest):  # the server is away, not this one file
                missing |= dict.fromkeys(names[number + 1 :], "not tried, the server did not answer before")
                break
    progress.close()
    _mark(spec.places.shards(dataset) / f"{names[0].removesuffix('.tar')}.{MISSING}", missing, len(names))


def _fetch_tar(spec: Spec, listing: Listing, tar: HubTar, progress: Callable[[int], None]) -> None:
    name = spec.target["tars"]
    folder = spec.places.fetched(spec.target["dataset"], name)
    with open_session(spec, folder, [], content=[tar.sha256]) as session:
        if session.is_done:
            progress(tar.bytes)
            return
        made = session.work / FETCHED
        made.mkdir(exist_ok=True)
        if not _reuse(folder, name, tar.sha256, made / name):
            found = download_tar(listing, tar, session.work / "download", progress=progress)
            found.replace(made / name)
        described = {"name": name, "bytes": tar.bytes, "sha256": tar.sha256}
        source = {"repository": listing.repository, "commit": listing.commit, "path": tar.name}
        session.commit({"tars": [described], "source": source}, folder=made)


def _fetch_archives(spec: Spec, dataset: str) -> None:
    values, folder = spec.values["datasets"][dataset], spec.places.archives(dataset)
    files = [RemoteFile(**values[name]) for name in ("pictures", "annotations")]
    missing: dict[str, str] = {}
    with open_session(spec, folder, [], content=[file.sha256 for file in files]) as session:
        if session.is_done:
            return
        made = session.work / FETCHED
        made.mkdir(exist_ok=True)
        progress = Progress(f"fetch {dataset}", sum(file.bytes for file in files), "byte")
        for file in files:
            try:
                _fetch_archive(
                    session, file, made / Path(file.url).name, values["archives"], progress.advance
                )
            except ShardError as error:
                logger.error("archive=%s missing: %s", file.url, error)
                missing[file.url] = str(error)
        progress.close()
        _mark(folder / MISSING, missing, len(files))
        session.commit({"archives": [Path(file.url).name for file in files]}, folder=made)


def _fetch_archive(
    session: Session, file: RemoteFile, to: Path, local: str | None, progress: Callable[[int], None]
) -> None:
    if to.is_file() or _reuse(session.folder, to.name, file.sha256, to):
        progress(file.bytes)
        return
    if local is None:
        demand_space(to.parent, file.bytes, f"archive {to.name}")
        download(file, to, progress=progress)
        return
    found = Path(local) / to.name
    if not found.is_file() or file_digest(found) != file.sha256:
        raise ShardError(
            f"{found} is missing or has another digest than {file.sha256}; fetch {file.url} to that place"
        )
    shutil.copyfile(found, to.with_suffix(".partial"))
    to.with_suffix(".partial").replace(to)


def _reuse(folder: Path, name: str, sha256: str, to: Path) -> bool:
    """Link a file of an earlier generation with the same digest, so that a change of code fetches nothing again."""
    for found in folder.glob(f"*/{name}"):
        if found.parent.name != "state" and file_digest(found) == sha256:
            to.unlink(missing_ok=True)
            os.link(found, to)
            return True
    return False


def _mark(file: Path, missing: dict[str, str], wanted: int) -> None:
    """Write down what could not be had and raise `ShardError`, or remove the mark of an earlier start."""
    if not missing:
        file.unlink(missing_ok=True)
        return
    write_json(file, missing)
    name, reason = next(iter(missing.items()))
    raise ShardError(
        f"{len(missing)} of {wanted} files are missing, the first is {name} ({reason}); all are in {file}, "
        "start again to go on with them"
    )
