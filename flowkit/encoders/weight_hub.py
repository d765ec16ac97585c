"""Published weights: in the cache of the hub's own tools, or described for a download that somebody else does.

What is wanted is a repository and the names its file may have. This module asks the hub where that file is, how
long it is and what its SHA-256 is (HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count); the bytes are fetched by the
`download` that the caller brings, because this room and the one that fetches tars do not know each other.
Importing it is cheap: huggingface_hub is imported where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowkit.encoders.names import form_with_file
from flowkit.errors import EncoderError
from flowkit.hub_access import LIBRARY, hub_endpoint, hub_headers
from flowkit.provenance import file_digest

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubWeights:
    """A weights file on the hub: the first of `names` that the repository has; `sha256` where it is known."""

    repository: str
    names: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class RemoteWeights:
    """A file to download: `headers` hold a login and are for the host of `url` alone."""

    url: str
    bytes: int
    sha256: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


Download = Callable[[RemoteWeights, Path], Path]


def find_on_hub(
    wanted: HubWeights, encoder: str, download_to: Path | None, download: Download | None
) -> Path:
    """Return the weights file from the cache, else `download(file, download_to / name)`.

    Raises `EncoderError` if a cached file is not what it should be, if the hub does not have the file, asks for
    a login, cannot be reached, or has another file than the known one, and if there is no `download`.
    """
    cached = _cached(wanted)
    if cached is not None:
        return cached
    if download is None or download_to is None:
        raise EncoderError(
            f"weights of encoder {encoder!r} are not in the cache of the hub; {_remedy(encoder)}"
        )
    name, file = _ask(wanted, encoder)
    if wanted.sha256 not in (None, file.sha256):
        raise EncoderError(
            f"{name} of {wanted.repository} has sha256 {file.sha256} now, expected {wanted.sha256}: it was "
            f"replaced; {_remedy(encoder)}"
        )
    return download(file, download_to / name)


def _cached(wanted: HubWeights) -> Path | None:
    """Return a cached file after checking its digest: the known one, else the one its blob is named after."""
    from huggingface_hub import try_to_load_from_cache

    for name in wanted.names:
        found = try_to_load_from_cache(wanted.repository, name)
        if not isinstance(found, str):
            continue
        path = Path(found)
        blob = path.resolve().name
        expected = wanted.sha256 or (blob if _SHA256.fullmatch(blob) else None)
        if expected is not None and (digest := file_digest(path)) != expected:
            raise EncoderError(
                f"{path} has sha256 {digest}, expected {expected}: damaged or another file; delete it and "
                "what it links to, and run again"
            )
        return path
    return None


def _ask(wanted: HubWeights, encoder: str) -> tuple[str, RemoteWeights]:
    from httpx2 import TransportError
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    endpoint = hub_endpoint()
    for name in wanted.names:
        url = hf_hub_url(wanted.repository, name, endpoint=endpoint)
        try:
            found = get_hf_file_metadata(url, library_name=LIBRARY, retry_on_errors=True)
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, TransportError, OSError) as fault:
            reason = str(fault).strip().partition("\n")[0]
            raise EncoderError(
                f"weights {name} of {wanted.repository} cannot be fetched ({reason}); {_remedy(encoder)}"
            ) from None
        if found.size is None or found.commit_hash is None or not _SHA256.fullmatch(found.etag or ""):
            raise EncoderError(
                f"{url} comes without size, commit or SHA-256, so it cannot be checked; {_remedy(encoder)}"
            )
        pinned = hf_hub_url(wanted.repository, name, revision=found.commit_hash, endpoint=endpoint)
        return name, RemoteWeights(pinned, found.size, str(found.etag), hub_headers())
    raise EncoderError(
        f"{wanted.repository} has none of {', '.join(wanted.names)} on the hub; {_remedy(encoder)}"
    )


def _remedy(encoder: str) -> str:
    return (
        "run the weights stage where there is internet (a login is needed where a repository is gated), or fetch "
        f"the file by other means and name it: {form_with_file(encoder)}"
    )
