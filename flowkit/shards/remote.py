"""Downloads one file of known size and SHA-256 over HTTP, and goes on where an earlier attempt was cut.

What has arrived lies in `<name>.partial` and is asked for again with `Range`, under `If-Range` while the server's
ETag is known; a server without ranges, or with another file, makes it start over. The file gets its name only
when size and digest are right. Proxies come from the environment; there is one connection per call.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, SSLError

from flowkit.errors import ShardError
from flowkit.provenance import file_digest
from flowkit.shards.retries import (
    RETRIED_STATUS,
    DownloadError,
    Patience,
    Refused,
    Retries,
    asked_seconds,
    demand_online,
)

CHUNK_BYTES = 1 << 18  # as much may be lost when the process is killed
RENEWING_BYTES = 1 << 20  # as much new data makes earlier failures forgotten
REDIRECTS_ONLY = urllib3.Retry(
    total=None, connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)$")
logger = logging.getLogger("flowkit")


@dataclass(frozen=True)
class RemoteFile:
    """A file on a web server and what it must be."""

    url: str
    bytes: int
    sha256: str


class WrongDigest(DownloadError):
    """All bytes arrived and are not those of the expected file."""


class _Interrupted(Exception):
    """A failure that may pass; `asked` is how long the server asks to wait."""

    def __init__(self, reason: str, asked: float | None = None) -> None:
        super().__init__(reason)
        self.asked = asked


def download(
    file: RemoteFile,
    to: Path,
    *,
    progress: Callable[[int], None] | None = None,
    headers: Mapping[str, str] | None = None,
    patience: Patience | None = None,
) -> Path:
    """Return `to` once it holds exactly `file`; a file that is there already and right costs one digest.

    `progress` gets the bytes that came to be there; they add up to `file.bytes`. A negative count says that bytes
    were thrown away. `headers` (a login) go to the host of the URL only, not to where it redirects. Raises
    `Refused` for an answer that waiting does not change, `WrongDigest`, and `DownloadError` for the rest.
    """
    report = progress or _ignore
    try:
        if to.exists() and to.stat().st_size == file.bytes and file_digest(to) == file.sha256:
            report(file.bytes)
            return to
        demand_online(file.url)
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_of(to)
        transfer = _Transfer(file, partial, headers or {}, report, patience or Patience())
        _complete(transfer)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(to)
    except ShardError:
        raise
    except OSError as fault:
        raise DownloadError(
            f"{to} cannot be written ({fault.strerror}); make room or correct the permissions and run again, "
            "what has arrived is kept"
        ) from fault
    return to


def arrived_bytes(to: Path) -> int:
    """Return how many bytes of the file `to` an earlier attempt left."""
    partial = _partial_of(to)
    return partial.stat().st_size if partial.is_file() else 0


def _partial_of(to: Path) -> Path:
    return to.with_name(f"{to.name}.partial")


def _complete(transfer: _Transfer) -> None:
    """Fetch and check; bytes put together from several answers get a second chance from the start."""
    file = transfer.file
    transfer.fetch()
    found = file_digest(transfer.partial)
    if found != file.sha256 and transfer.is_joined:
        logger.warning("download url=%s the joined parts have a wrong digest, starting over", file.url)
        transfer.discard()
        transfer.fetch()
        found = file_digest(transfer.partial)
    if found != file.sha256:
        transfer.discard()
        raise WrongDigest(
            f"{file.url} has the SHA-256 {found}, expected {file.sha256}; the file on the server is another one: "
            "correct the digest if that is meant, otherwise ask the owner of the data"
        )


class _Transfer:
    """A file on its way: how much has arrived, and how to ask for the rest."""

    def __init__(
        self,
        file: RemoteFile,
        partial: Path,
        headers: Mapping[str, str],
        report: Callable[[int], None],
        patience: Patience,
    ) -> None:
        self.file, self.partial, self.report = file, partial, report
        self.headers = {"User-Agent": "flowkit", **headers, "Accept-Encoding": "identity"}
        self.patience = patience
        self.validator: str | None = None
        self.arrived = partial.stat().st_size if partial.exists() else 0
        self.is_joined = self.arrived > 0
        report(self.arrived)

    def fetch(self) -> None:
        """Ask until all bytes are there."""
        retries = Retries(self.file.url, self.patience)
        self.partial.touch()
        with _pool(self.file.url, self.patience.timeout_seconds) as pool:
            while self.arrived < self.file.bytes:
                before = self.arrived
                try:
                    self._ask(pool)
                except _Interrupted as fault:
                    if self.arrived - before >= RENEWING_BYTES:
                        retries.renew()
                    retries.pause(str(fault), fault.asked)

    def discard(self) -> None:
        """Throw away what has arrived."""
        self.partial.unlink(missing_ok=True)
        self.report(-self.arrived)
        self.arrived, self.is_joined, self.validator = 0, False, None

    def _ask(self, pool: urllib3.PoolManager) -> None:
        headers = dict(self.headers)
        if self.arrived:
            headers["Range"] = f"bytes={self.arrived}-"
            if self.validator is not None:
                headers["If-Range"] = self.validator
        try:
            response = pool.request(
                "GET", self.file.url, headers=headers, preload_content=False, retries=REDIRECTS_ONLY
            )
            try:
                self._check_answer(response)
                self._append(response)
            finally:
                response.close()
        except HTTPError as fault:
            cause = fault.reason if isinstance(fault, MaxRetryError) and fault.reason else fault
            if isinstance(cause, SSLError | LocationValueError):
                raise DownloadError(
                    f"{self.file.url} cannot be asked for ({cause}); correct the address, the clock or the "
                    "certificates of this machine"
                ) from fault
            raise _Interrupted(_in_one_line(cause)) from fault

    def _check_answer(self, response: urllib3.BaseHTTPResponse) -> None:
        """Return if the body continues what has arrived (perhaps nothing); otherwise say what to do."""
        status, headers = response.status, response.headers
        if status == 200:
            length = headers.get("Content-Length", str(self.file.bytes))
            if length != str(self.file.bytes):
                raise self._wrong_size(length)
            if self.arrived:
                self.discard()
        elif status == 206:
            match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
            if match is None or match.groups() != (str(self.arrived), str(self.file.bytes)):
                self.discard()
                raise _Interrupted(f"unfitting part {headers.get('Content-Range')!r}")
            self.is_joined = True
        elif status == 416:
            self.discard()
            raise _Interrupted("HTTP 416, no such part")
        elif status in RETRIED_STATUS:
            raise _Interrupted(f"HTTP {status}", asked_seconds(headers))
        else:
            raise Refused(f"{self.file.url} answered HTTP {status}; {_remedy(status)}", status)
        tag = headers.get("ETag", "")
        self.validator = tag if tag.startswith('"') else None  # a weak tag promises no equal bytes

    def _append(self, response: urllib3.BaseHTTPResponse) -> None:
        with self.partial.open("ab") as stream:
            for chunk in response.stream(CHUNK_BYTES, decode_content=False):
                stream.write(chunk)
                self.arrived += len(chunk)
                self.report(len(chunk))
                if self.arrived > self.file.bytes:
                    break
        if self.arrived > self.file.bytes:
            self.discard()
            raise self._wrong_size(f"more than {self.file.bytes}")
        if self.arrived < self.file.bytes:
            raise _Interrupted(f"the answer ended after {self.arrived} of {self.file.bytes} bytes")

    def _wrong_size(self, found: str) -> DownloadError:
        return DownloadError(
            f"{self.file.url} has {found} bytes, expected {self.file.bytes}; the file on the server is another "
            "one, or something between answers in its place: open the address in a browser"
        )


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "access is not allowed: check the address and ask the owner of the data"
    if status in (404, 410):
        return "there is no such file: correct the address"
    return "correct the address, or ask the owner of the server"


def _pool(url: str, timeout_seconds: float) -> urllib3.PoolManager:
    """Return a connection pool that goes through the proxy of the environment, if there is one for the URL."""
    parts = urlsplit(url)
    timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or proxy_bypass(parts.netloc):
        return urllib3.PoolManager(timeout=timeout)
    return urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}", timeout=timeout)


def _in_one_line(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__


def _ignore(count: int) -> None:
    """Progress that nobody watches."""
