"""A real web server on loopback: plain files and a tiny Hugging Face hub, with faults on demand.

Answers as the hub does to the requests of huggingface_hub: the commit of a revision, the tree in pages, and
`resolve`, which names commit, size and digest and redirects large files to a storage host (here: the same server
under the name `localhost`, so that a login that leaks there is seen). Files answer to `Range` and `If-Range`.
A `Fault` is used up by the next request for its path; `times=-1` stays. Processes reach it through `url`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with one answer; fields that are not set leave it as it was."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection ends
    reset: bool = False  # with a reset instead of an orderly end
    stall_seconds: float = 0.0  # silence before the answer
    body: bytes | None = None  # instead of the content, under the same headers
    ignores_range: bool = False
    times: int = 1


@dataclass(frozen=True)
class Request:
    """A request as it arrived (header names as `Content-Length`), and the status that it got."""

    method: str
    path: str
    headers: dict[str, str]
    status: int


@dataclass
class Repository:
    """Files per commit, and the names that point to commits."""

    kind: Literal["datasets", "models"]
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False


class WebServer:
    """Serves from threads of this process while the `with` block lasts."""

    def __init__(self, *, page_size: int = 1000) -> None:
        self.page_size = page_size
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            web = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage_url = f"http://localhost:{self.port}"

    def __enter__(self) -> WebServer:
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, path: str, content: bytes) -> str:
        """Serve a plain file under `path` (which begins with /) and return its address."""
        self.files[path] = content
        return self.url + path

    def commit(
        self,
        repository: str,
        files: dict[str, bytes],
        *,
        kind: Literal["datasets", "models"] = "datasets",
        revision: str = "main",
    ) -> str:
        """Make a commit that holds exactly `files`, point `revision` to it and return its name."""
        parts = [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in sorted(files.items())]
        commit = hashlib.sha1("\n".join([repository, *parts]).encode()).hexdigest()
        place = self.repositories.setdefault(repository, Repository(kind))
        place.commits[commit] = dict(files)
        place.revisions[revision] = commit
        for content in files.values():
            self.files[storage_path(content)] = content
        return commit

    def fail(self, path: str, *faults: Fault) -> None:
        """Let the next requests for `path` (without its query) go wrong, one fault each."""
        self.faults[path].extend(faults)

    def asked(self, path: str) -> list[Request]:
        """Return the requests for `path` so far."""
        with self.lock:
            return [request for request in self.requests if request.path == path]

    def take_fault(self, path: str) -> Fault:
        """Return what is to go wrong with this request."""
        with self.lock:
            waiting = self.faults[path]
            if not waiting:
                return Fault()
            if waiting[0].times > 0:
                waiting[0].times -= 1
            return waiting[0] if waiting[0].times else waiting.pop(0)


def storage_path(content: bytes) -> str:
    """The path at the storage host to which the hub redirects for this content."""
    return f"/storage/{hashlib.sha256(content).hexdigest()}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    web: WebServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, format: str, *values: object) -> None:
        """Keep the output of the tests clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        fault = self.web.take_fault(path)
        time.sleep(fault.stall_seconds)
        if fault.status is not None:
            return self._send(path, fault.status, fault.headers, b"", fault)
        if path.startswith("/api/"):
            return self._answer_api(path, parse_qs(address.query), fault)
        match = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match:
            return self._answer_resolve(path, match[2], match[3], match[4], fault)
        content = self.web.files.get(path)
        if content is None:
            return self._send(path, 404, {}, b"no such file", fault)
        return self._send_file(path, content, fault)

    def _answer_api(self, path: str, query: dict[str, list[str]], fault: Fault) -> None:
        match = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if match is None:
            return self._send(path, 404, {}, b"{}", fault)
        repository, commit, error = self._find(match[2], match[4] or "main")
        if repository is None or commit is None:
            return self._send(path, *error, b"{}", fault)
        if match[3] != "tree":
            content = {"id": match[2], "sha": commit, "gated": "auto" if repository.is_gated else False}
            return self._send_json(path, content, {}, fault)
        entries = _tree(repository.commits[commit])
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.web.page_size < len(entries):
            following = f"{self.web.url}{path}?recursive=True&cursor={start + self.web.page_size}"
            headers["Link"] = f'<{following}>; rel="next"'
        return self._send_json(path, entries[start : start + self.web.page_size], headers, fault)

    def _answer_resolve(self, path: str, name: str, revision: str, file: str, fault: Fault) -> None:
        repository, commit, error = self._find(name, revision)
        if repository is None or commit is None:
            return self._send(path, *error, b"", fault)
        if repository.is_gated and "Authorization" not in self.headers:
            return self._send(path, 401, {"X-Error-Code": "GatedRepo"}, b"", fault)
        content = repository.commits[commit].get(file)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self._send(path, 404, headers, b"", fault)
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Location": f"{self.web.storage_url}{storage_path(content)}?signature=abc",
        }
        return self._send(path, 302, headers, b"", fault)

    def _find(
        self, name: str, revision: str
    ) -> tuple[Repository | None, str | None, tuple[int, dict[str, str]]]:
        repository = self.web.repositories.get(name)
        if repository is None:
            return None, None, (401, {"X-Error-Code": "RepoNotFound"})
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            return None, None, (404, {"X-Error-Code": "RevisionNotFound"})
        return repository, commit, (200, {})

    def _send_json(self, path: str, content: Any, headers: dict[str, str], fault: Fault) -> None:
        headers = {**headers, "Content-Type": "application/json"}
        self._send(path, 200, headers, json.dumps(content).encode(), fault)

    def _send_file(self, path: str, content: bytes, fault: Fault) -> None:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None or fault.ignores_range or self.headers.get("If-Range", tag) != tag:
            return self._send(path, 200, headers, content, fault)
        start = int(wanted[1])
        if start >= len(content):
            headers["Content-Range"] = f"bytes */{len(content)}"
            return self._send(path, 416, headers, b"", fault)
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(path, 206, headers, content[start:], fault)

    def _send(self, path: str, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        received = {name.title(): value for name, value in self.headers.items()}
        with self.web.lock:
            self.web.requests.append(Request(self.command, path, received, status))
        body = body if fault.body is None else fault.body
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: fault.cut_after])
        if fault.cut_after is not None:
            self._cut(fault.reset)

    def _cut(self, reset: bool) -> None:
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    folders = sorted({name.rpartition("/")[0] for name in files if "/" in name})
    entries: list[dict[str, Any]] = [
        {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
        for name in folders
    ]
    for name, content in sorted(files.items()):
        entry: dict[str, Any] = {
            "type": "file",
            "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            "size": len(content),
            "path": name,
        }
        if name.endswith((".tar", ".bin", ".pt", ".safetensors")):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries
