"""Stage `fetch`: files that a data set is made from, from the network to this data root, checked by digest.

The tars of a hub repository commit one by one, each in a folder of its own; the two archives of COCO are one result.
What cannot be had is marked in `missing.json` with the reason, everything else is fetched all the same, and the next
start goes on with what is missing. This and `weights` are the only stages that touch the network.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flowkit.errors import ShardError
from flowkit.progress import Progress, logger
from flowkit.provenance import file_digest, read_json, write_json
from flowkit.shards.hub import HubTar, Listing, download_tar, missing_numbers
from flowkit.shards.remote import RemoteFile, WrongDigest, arrived_bytes, download
from flowkit.shards.retries import Refused
from flowkit.shards.space import demand_space
from flowkit.stages.session import Spec, open_session, reuse

MISSING = "missing.json"
FETCHED, DOWNLOAD = "fetched", "download"


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
    wanted = sum(_bytes_to_come(spec.places.fetched(dataset, name), tars[name]) for name in names)
    demand_space(spec.places.shards(dataset), wanted, f"data set {dataset} ({len(names)} tars)")
    # which tars share a job and what else is listed makes no difference to one of them
    values = {"datasets": {dataset: {key: value for key, value in values.items() if key != "tars"}}}
    missing: dict[str, str] = {}
    progress = Progress(f"fetch {dataset}", sum(tars[name].bytes for name in names), "byte")
    for number, name in enumerate(names):
        one = replace(spec, target={**spec.target, "tars": name}, values=values)
        try:
            _fetch_tar(one, listing, tars[name], progress.advance)
        except ShardError as error:
            logger.error("tar=%s missing: %s", name, error)
            missing[name] = str(error)
            if not isinstance(error, Refused | WrongDigest):  # not this file's fault, the next would fail too
                missing |= dict.fromkeys(names[number + 1 :], f"not tried after {name}")
                break
    progress.close()
    _mark(spec.places.shards(dataset) / f"{names[0].removesuffix('.tar')}.{MISSING}", missing, len(names))


def _bytes_to_come(folder: Path, tar: HubTar) -> int:
    """Return how much of a tar is not on this disk yet."""
    if any(path.parent.name != "state" for path in folder.glob(f"*/{tar.file_name}")):
        return 0
    return tar.bytes - sum(path.stat().st_size for path in folder.glob(f"state/*/{DOWNLOAD}/*.partial"))


def _fetch_tar(spec: Spec, listing: Listing, tar: HubTar, progress: Callable[[int], None]) -> None:
    name = spec.target["tars"]
    folder = spec.places.fetched(spec.target["dataset"], name)
    with open_session(spec, folder, [], content=[tar.sha256]) as session:
        if session.is_done:
            progress(tar.bytes)
            return
        made = session.work / FETCHED
        made.mkdir(exist_ok=True)
        if not reuse(folder, name, tar.sha256, made / name):
            found = download_tar(listing, tar, session.work / DOWNLOAD, progress=progress)
            found.replace(made / name)
        described = {"name": name, "bytes": tar.bytes, "sha256": tar.sha256}
        source = {"repository": listing.repository, "commit": listing.commit, "path": tar.name}
        session.commit({"tars": [described], "source": source}, folder=made)


def _fetch_archives(spec: Spec, dataset: str) -> None:
    values, folder = spec.values["datasets"][dataset], spec.places.archives(dataset)
    files = {f"{role}.zip": RemoteFile(**values[role]) for role in ("pictures", "annotations")}
    missing: dict[str, str] = {}
    with open_session(spec, folder, [], content=[file.sha256 for file in files.values()]) as session:
        if session.is_done:
            (folder / MISSING).unlink(missing_ok=True)
            return
        made = session.work / FETCHED
        made.mkdir(exist_ok=True)
        new = [
            file.bytes - arrived_bytes(made / name)
            for name, file in files.items()
            if not (made / name).is_file()
        ]
        demand_space(made, sum(new), f"data set {dataset} ({len(new)} archives)")
        progress = Progress(f"fetch {dataset}", sum(file.bytes for file in files.values()), "byte")
        for name, file in files.items():
            try:
                _fetch_archive(folder, file, made / name, values["archives"], progress.advance)
            except ShardError as error:
                logger.error("archive=%s missing: %s", file.url, error)
                missing[file.url] = str(error)
        progress.close()
        _mark(folder / MISSING, missing, len(files))
        session.commit({"archives": list(files)}, folder=made)


def _fetch_archive(
    folder: Path, file: RemoteFile, to: Path, local: str | None, progress: Callable[[int], None]
) -> None:
    if to.is_file() or reuse(folder, to.name, file.sha256, to):
        progress(file.bytes)
        return
    if local is None:
        download(file, to, progress=progress)
        return
    found = Path(local) / Path(file.url).name
    if not found.is_file() or file_digest(found) != file.sha256:
        raise ShardError(
            f"{found} is missing or has another digest than {file.sha256}; fetch {file.url} to that place"
        )
    shutil.copyfile(found, to.with_suffix(".partial"))
    to.with_suffix(".partial").replace(to)


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
