"""An HTTP server on 127.0.0.1 for the index of experiments and the files of their reports, and for nothing else.

Every part of a path is opened by itself inside its folder and without following links, so there is no way up and no
way out; checkpoints, data and logs lie beside the reports and are not reached.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from flowkit.paths import FIRST_PAGE, REPORT, report_folders

HERE = "127.0.0.1"
OWN_NAMES = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
"""Hosts that a request may ask for: a page from elsewhere that has its name point here is turned away."""
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}
Index = Callable[[], bytes]
"""Makes the page that lists all experiments."""


def address_of(report: Path) -> str:
    """Return the path at which the report in this folder is served."""
    return f"/{quote(os.fsencode(report.parent.name))}/{report.name}/"


class ReportServer(ThreadingHTTPServer):
    """Serves the reports below one folder on 127.0.0.1."""

    def __init__(self, results: Path, index: Index, port: int) -> None:
        self.results, self.index = results, index
        super().__init__((HERE, port), ReportHandler)

    def has_report(self, parts: Sequence[bytes]) -> bool:
        """Whether the first two names are those of an experiment that has a report, and of its folder."""
        reports = report_folders(self.results)
        return parts[:2] in [(os.fsencode(found.parent.name), REPORT.encode()) for found in reports]

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about readers who leave before a page is whole."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ReportHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for `/`, and for files in `/<experiment>/report/`."""

    server: ReportServer
    server_version, sys_version = "flowkit", ""
    timeout = 30

    def do_GET(self) -> None:
        """Send a file of a report, or the index of experiments."""
        self._answer(is_body_wanted=True)

    def do_HEAD(self) -> None:
        """Send what GET would send, without the content."""
        self._answer(is_body_wanted=False)

    def log_message(self, *_: object) -> None:
        """Say nothing: what is read is nobody's business."""

    def _answer(self, *, is_body_wanted: bool) -> None:
        parts = path_parts(self.path)
        if not OWN_NAMES.fullmatch(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN, f"Ask for {HERE} or localhost")
        elif parts in ((b"",), (FIRST_PAGE.encode(),)):
            page = self.server.index()
            self._send(io.BytesIO(page), len(page), CONTENT_TYPES[".html"], is_body_wanted=is_body_wanted)
        elif parts is None or not self.server.has_report(parts):
            self.send_error(HTTPStatus.NOT_FOUND, "No page of a report")
        elif len(parts) == 2:
            self._send_on("".join(f"/{quote(part)}" for part in (*parts, b"")))
        else:
            self._send_file((*parts[:-1], parts[-1] or FIRST_PAGE.encode()), is_body_wanted=is_body_wanted)

    def _send_on(self, path: str) -> None:
        """Answer with another address: relative links of a page hold only behind the slash of its folder."""
        self.send_response(HTTPStatus.MOVED_PERMANENTLY)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, parts: Sequence[bytes], *, is_body_wanted: bool) -> None:
        file = open_inside(self.server.results, parts)
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND, "No file of a report")
            return
        suffix = os.path.splitext(os.fsdecode(parts[-1]))[1].lower()
        with file:
            size = os.fstat(file.fileno()).st_size
            kind = CONTENT_TYPES.get(suffix, "application/octet-stream")
            self._send(file, size, kind, is_body_wanted=is_body_wanted)

    def _send(self, content: BinaryIO, size: int, kind: str, *, is_body_wanted: bool) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if is_body_wanted:
            shutil.copyfileobj(content, self.wfile)


def path_parts(target: str) -> tuple[bytes, ...] | None:
    """Return the names in the path of a request; None for one that could lead elsewhere or names a hidden file.

    The last one is empty behind a slash. Names are taken apart before they are decoded, so that `%2f` is no slash.
    """
    start, *names = re.split("[?#]", target, maxsplit=1)[0].split("/")
    parts = tuple(map(unquote_to_bytes, names))
    if start or not parts or b"" in parts[:-1]:
        return None
    return None if any(part.startswith(b".") or b"/" in part or b"\0" in part for part in parts) else parts


def open_inside(folder: Path, parts: Sequence[bytes]) -> BinaryIO | None:
    """Open a regular file by the names that lead to it from a folder, none of them a link; None if there is none."""
    flags, opened = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, []
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for part in parts[:-1]:
            opened.append(os.open(part, flags | os.O_DIRECTORY, dir_fd=opened[-1]))
        file = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=opened[-1])  # a pipe would wait for a writer
    except OSError:
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        return None
    return os.fdopen(file, "rb")
