"""Tars of a data set on the Hugging Face hub: listed with huggingface_hub, pinned to a commit, fetched one by one.

`huggingface_hub` finds the commit, the names, sizes and SHA-256 digests, the addresses and the login; the bytes
come through `remote.download`, because `hf_hub_download` (2.4) throws away what has arrived when it fails or is
killed, and gives up on a reset connection and on 503. Honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
Importing this module is cheap: huggingface_hub is imported where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flowkit.errors import ConfigError, ShardError
from flowkit.hub_access import LIBRARY, hub_endpoint, hub_headers
from flowkit.shards.remote import RemoteFile, download
from flowkit.shards.retries import (
    RETRIED_STATUS,
    DownloadError,
    Patience,
    Refused,
    Retries,
    asked_seconds,
    demand_online,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_NUMBERED = re.compile(r"(\d+)\.tar$")
Result = TypeVar("Result")


@dataclass(frozen=True)
class HubTar:
    """A tar of the repository; `name` is its path there."""

    name: str
    bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name under which it is kept: folders become part of the name."""
        return self.name.replace("/", "-")


@dataclass(frozen=True)
class Listing:
    """The tars of one commit, in the order of their file names; `revision` is what was asked for."""

    repository: str
    revision: str
    commit: str
    tars: tuple[HubTar, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the listing as JSON values."""
        tars = [{"name": tar.name, "bytes": tar.bytes, "sha256": tar.sha256} for tar in self.tars]
        return {
            "repository": self.repository,
            "revision": self.revision,
            "commit": self.commit,
            "tars": tars,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Listing:
        """Return the listing that `to_json` described."""
        tars = tuple(HubTar(**tar) for tar in fields["tars"])
        return cls(fields["repository"], fields["revision"], fields["commit"], tars)


def list_tars_of_hub(repository: str, revision: str, *, patience: Patience | None = None) -> Listing:
    """Return all `*.tar` of a data set repository (hidden ones left out) at what `revision` points to now.

    Raises `ShardError` if there are none, one has no digest, or two would get the same file name; `Refused` if the
    repository or revision does not exist or is not open to this login; `DownloadError` when the hub stays away.
    """
    demand_online(f"the list of tars of {repository}")
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub_endpoint(), library_name=LIBRARY)
    patience = patience or Patience()
    commit = _ask(repository, revision, lambda: _find_commit(api, repository, revision, patience), patience)
    tars = _ask(repository, revision, lambda: _list_commit(api, repository, commit), patience)
    if not tars:
        raise ShardError(
            f"{repository} has no *.tar at {revision} ({commit}); correct repository or revision"
        )
    by_name: dict[str, HubTar] = {}
    for tar in sorted(tars, key=lambda tar: tar.file_name):
        twin = by_name.setdefault(tar.file_name, tar)
        if twin is not tar:
            raise ShardError(
                f"{repository} has {twin.name} and {tar.name}, which would both be kept as {tar.file_name}; "
                "fetch them by hand and use a data set of kind folder"
            )
    return Listing(repository, revision, commit, tuple(by_name.values()))


def missing_numbers(names: Iterable[str]) -> list[str]:
    """Return the names that a numbering 00000.tar, 00001.tar, ... leaves out between its first and last.

    Names that are not all numbers of one width, or leave out more than they have, are no numbering: nothing is
    missing.
    """
    stems = [match[1] if (match := _NUMBERED.fullmatch(name)) else "" for name in names]
    widths = {len(stem) for stem in stems}
    if len(widths) != 1 or 0 in widths:
        return []
    width, present = widths.pop(), {int(stem) for stem in stems}
    absent = [number for number in range(min(present), max(present)) if number not in present]
    return [f"{number:0{width}d}.tar" for number in absent] if len(absent) < len(present) else []


def download_tar(
    listing: Listing,
    tar: HubTar,
    folder: Path,
    *,
    progress: Callable[[int], None] | None = None,
    patience: Patience | None = None,
) -> Path:
    """Return `folder/<file name>` once it holds the tar as listed; resumes, see `remote.download`."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(
        listing.repository, tar.name, repo_type="dataset", revision=listing.commit, endpoint=hub_endpoint()
    )
    try:
        return download(
            RemoteFile(url, tar.bytes, tar.sha256),
            folder / tar.file_name,
            progress=progress,
            headers=hub_headers(),
            patience=patience,
        )
    except Refused as fault:
        what = f"{tar.name} of {listing.repository} at commit {listing.commit}"
        raise _refusal(what, listing.repository, fault.status) from fault


def _find_commit(api: HfApi, repository: str, revision: str, patience: Patience) -> str:
    found = api.dataset_info(repository, revision=revision, expand=["sha"], timeout=patience.timeout_seconds)
    if found.sha is None:
        raise ShardError(f"the hub names no commit for {repository} at {revision}; give a commit as revision")
    return found.sha


def _list_commit(api: HfApi, repository: str, commit: str) -> list[HubTar]:
    from huggingface_hub.hf_api import RepoFile

    tars = []
    for entry in api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset"):
        if not isinstance(entry, RepoFile) or not entry.path.endswith(".tar") or entry.path.startswith("."):
            continue
        if entry.lfs is None:
            raise ShardError(
                f"{repository} lists {entry.path} without a SHA-256 (it is no LFS file); "
                "fetch the tars by hand and use a data set of kind folder"
            )
        tars.append(HubTar(entry.path, entry.lfs.size, entry.lfs.sha256))
    return tars


def _ask(repository: str, revision: str, question: Callable[[], Result], patience: Patience) -> Result:
    """Ask the hub until it answers; huggingface_hub itself retries only some requests, and only briefly."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    retries = Retries(f"the list of tars of {repository} at {revision}", patience)
    while True:
        try:
            return question()
        except HfHubHTTPError as fault:
            status = fault.response.status_code
            if status not in RETRIED_STATUS:
                what = f"data set {repository} at revision {revision}"
                raise _refusal(what, repository, status, _error_code(fault)) from fault
            retries.pause(f"HTTP {status}", asked_seconds(fault.response.headers))
        except TransportError as fault:
            retries.pause(" ".join(str(fault).split()) or type(fault).__name__, None)
        except JSONDecodeError as fault:
            raise DownloadError(
                f"{hub_endpoint()} does not answer as a hub does; correct HF_ENDPOINT, or log in to the network"
            ) from fault
        except HFValidationError as fault:
            raise ConfigError(f"{repository!r} is no name of a repository; expected owner/name") from fault


def _error_code(fault: HfHubHTTPError) -> str:
    return fault.response.headers.get("X-Error-Code", "")


def _refusal(what: str, repository: str, status: int, code: str = "") -> DownloadError:
    if code == "RevisionNotFound":
        remedy = "there is no such revision: give a branch, tag or commit of the repository"
    elif status in (401, 403):
        page = f"{hub_endpoint()}/datasets/{repository}"
        remedy = (
            f"it is gated, private or does not exist: accept its terms at {page}, log in with `hf auth login` or "
            "set HF_TOKEN, and check the name"
        )
    elif status in (404, 410):
        remedy = "there is no such thing (any more): check the name, or list again with another revision"
    else:
        remedy = "see the hub's status page, or give another HF_ENDPOINT"
    return Refused(f"the hub at {hub_endpoint()} refused {what} with HTTP {status}; {remedy}", status)
