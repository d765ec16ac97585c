"""The server of `flowkit open`: it shows reports and nothing else.

It is a real one on a real port; requests are written as they are, because clients tidy up paths.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from experiments_material import ABOUT, write_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.serving import ReportServer

SECRET = "not for everybody"


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Served:
    results: Path
    port: int

    def ask(self, target: str, method: str = "GET", host: str = "127.0.0.1") -> Answer:
        """Send a request whose target is left exactly as it is."""
        request = f"{method} {target} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("latin-1", "replace")
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            headers = dict(response.getheaders())
            return Answer(response.status, headers.get("Content-Type", ""), headers, response.read())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two reports beside what nobody else should see, and links, pipes and folders inside a report that lead away."""
    top = tmp_path_factory.mktemp("served")
    results, outside = top / "results", top / "outside"
    report = write_experiment(results, "demo", about=ABOUT) / "report"
    write_experiment(results, "ünï code?#", about=ABOUT)
    (write_experiment(results, "unfinished") / "report/index.html").unlink()
    (results / "unfinished/report/style.css").write_text(SECRET)
    for name in (
        "style.css",
        "site.js",
        "map.png",
        "curve.svg",
        "rows.csv",
        "photo.JPG",
        "odd.xyz",
        "a b%20.html",
    ):
        (report / name).write_text(f"content of {name}")
    (report / "runs").mkdir()
    (report / "runs/flow.html").write_text("content of flow")
    hidden = ("secret.txt", ".hidden", "demo/logs/a.log", "demo/runs/flow/train/model.safetensors", "data/shards/a.tar",
              "demo/report/.hidden", "demo/reports.txt", "../outside/index.html", "../outside/report/index.html",
              )  # fmt: skip
    for name in hidden:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(SECRET)
    (report / "link.html").symlink_to(outside / "index.html")
    (report / "linked").symlink_to(outside)
    (report / "inner.css").symlink_to(report / "style.css")
    (results / "elsewhere").symlink_to(outside)
    os.mkfifo(report / "pipe.html")
    server = ReportServer(results, lambda: b"the index", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Served(results, server.server_port)
    server.shutdown()
    server.server_close()


TYPES = {
    "/demo/report/": "text/html; charset=utf-8",
    "/demo/report/index.html": "text/html; charset=utf-8",
    "/demo/report/index.html?from=../mail#top": "text/html; charset=utf-8",
    "/demo/report/runs/flow.html": "text/html; charset=utf-8",
    "/demo/report/%61%20b%2520.html": "text/html; charset=utf-8",
    "/%C3%BCn%C3%AF%20code%3F%23/report/": "text/html; charset=utf-8",
    "/demo/report/style.css": "text/css; charset=utf-8",
    "//demo/report/style.css": "text/css; charset=utf-8",
    "/demo/report/site.js": "text/javascript; charset=utf-8",
    "/demo/report/map.png": "image/png",
    "/demo/report/photo.JPG": "image/jpeg",
    "/demo/report/curve.svg": "image/svg+xml",
    "/demo/report/rows.csv": "text/csv; charset=utf-8",
    "/demo/report/about.json": "application/json",
    "/demo/report/odd.xyz": "application/octet-stream",
}


@pytest.mark.parametrize(("target", "kind"), TYPES.items())
def test_files_of_reports_come_with_their_type_and_length(served: Served, target: str, kind: str) -> None:
    answer = served.ask(target)
    assert (answer.status, answer.kind) == (200, kind)
    assert answer.headers["Content-Length"] == str(len(answer.body)) != "0"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    alone = served.ask(target, "HEAD")
    assert (alone.status, alone.body, alone.headers["Content-Length"]) == (200, b"", str(len(answer.body)))


@pytest.mark.parametrize("target", ["/", "/index.html", "/?sort=r2"])
def test_the_index_is_made_for_each_request(served: Served, target: str) -> None:
    assert served.ask(target).body == b"the index"
    assert not (served.results / "index.html").exists()


def test_a_report_without_its_slash_is_sent_on_so_that_links_hold(served: Served) -> None:
    answer = served.ask("/demo/report")
    assert (answer.status, answer.headers["Location"]) == (301, "/demo/report/")
    assert (
        served.ask("/%C3%BCn%C3%AF%20code%3f%23/report").headers["Location"]
        == "/%C3%BCn%C3%AF%20code%3F%23/report/"
    )


WAYS_OUT = [
    *(
        "/secret.txt",
        "/.hidden",
        "/demo",
        "/demo/",
        "/demo/summary.json",
        "/demo/logs/a.log",
        "/data/shards/a.tar",
    ),
    *("/demo/reports.txt", "/demo/runs/flow/train/model.safetensors", "/unfinished/report/style.css"),
    *(
        "/demo/report/../../secret.txt",
        "/demo/report/./../summary.json",
        "/../outside/index.html",
        "/demo/report/..",
    ),
    *(
        "/demo/report/%2e%2e/summary.json",
        "/demo/report/%2E%2E/%2e%2e/secret.txt",
        "/demo/report/.%2e/summary.json",
    ),
    *(
        "/demo/report/..%2fsummary.json",
        "/demo/report/..%2f..%2fsecret.txt",
        "/demo/report%2f..%2fsummary.json",
    ),
    *(
        "/demo/report/%252e%252e/summary.json",
        "/demo/report/%c0%ae%c0%ae/summary.json",
        "/demo/report/..\\summary.json",
    ),
    *(
        "/demo/report/..;/summary.json",
        "/demo//report/style.css",
        "/demo/report//style.css",
    ),
    *("/demo/report//etc/passwd", "/demo/report/%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/etc/passwd"),
    *("/demo/report/style.css%00.html", "/demo/report/%00", "/demo/report/.hidden", "/demo/report/%2ehidden"),
    *(
        "/demo/report/link.html",
        "/demo/report/linked/index.html",
        "/demo/report/inner.css",
        "/demo/report/linked",
    ),
    *(
        "/elsewhere/report/index.html",
        "/elsewhere/report/",
        "/demo/report/pipe.html",
        "/demo/report/index.html/",
    ),
    *(
        "/demo/report/runs",
        "/demo/report/runs/",
        "/demo/report/index.html/x",
        "/demo/REPORT/",
        "/demo/report/nothing",
    ),
    *(
        "demo/report/index.html",
        "http://127.0.0.1/demo/report/",
        "*",
        "/demo/report/" + "a" * 5000,
        "/~root/",
        "/%",
    ),
]


@pytest.mark.parametrize("target", WAYS_OUT, ids=range(len(WAYS_OUT)))
def test_no_way_leads_out_of_the_reports(served: Served, target: str) -> None:
    for method in ("GET", "HEAD"):
        answer = served.ask(target, method)
        assert answer.status in (400, 404), target
        assert SECRET.encode() not in answer.body


pieces = st.sampled_from([
    *("demo", "report", "reports.txt", "secret.txt", "summary.json", "index.html", "runs", "flow", "train"),
    *("style.css", "..", ".", "%2e%2e", "%2e", "%2f", "/", "//", "%5c", "%00", "..%2f", "linked", "link.html"),
    *("logs", "elsewhere"),
    *("outside", "unfinished", "model.safetensors", ".hidden", "a.log", "data", "?", "#", ";", "%"),
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(names=st.lists(pieces, max_size=8))
def test_no_path_at_all_leads_out(served: Served, names: list[str]) -> None:
    answer = served.ask("/" + "/".join(names))
    assert answer.status in (200, 301, 400, 404)
    assert SECRET.encode() not in answer.body
    assert b"passwd" not in answer.body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "localhost@evil"]
)
def test_a_page_from_elsewhere_cannot_have_its_name_point_here(served: Served, host: str) -> None:
    answer = served.ask("/demo/report/", host=host)
    assert answer.status == 403
    assert b"<title>demo" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:9"])
def test_a_tunnel_may_have_another_port(served: Served, host: str) -> None:
    assert served.ask("/demo/report/", host=host).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(served: Served, method: str) -> None:
    assert served.ask("/demo/report/style.css", method).status == 501


def test_only_this_machine_is_listened_to(served: Served) -> None:
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", served.port), timeout=5):
        pass


def test_a_reader_who_leaves_does_no_harm(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        connection.sendall(b"GET /demo/report/ HTT")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes with a reset
    assert served.ask("/").status == 200
    assert "Traceback" not in capfd.readouterr().err
