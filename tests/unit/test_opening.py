"""`flowkit open`: a browser where there is a screen, words where there is none, and a server that shows reports only.

The server is a real one on a real port; requests are written as they are, because clients tidy up paths.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from experiments_material import ABOUT, write_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.opening import copy_command, has_screen, tunnel
from flowkit.serving import ReportServer

ROOT = Path(__file__).parents[2]
SECRET = "not for everybody"
SSH = {"SSH_CONNECTION": "192.0.2.7 50122 198.51.100.3 22"}


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


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": ":1", **SSH}, True),  # a desktop that was started from within ssh
        ({"DISPLAY": "localhost:10.0", **SSH}, False),  # windows forwarded one by one
        (SSH, False),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other screens")
def test_a_screen_is_one_of_this_machine(environment: dict[str, str], expected: bool) -> None:
    assert has_screen(environment) is expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SSH, "ssh -N -L 8123:127.0.0.1:8123 ada@198.51.100.3"),
        ({"SSH_CONNECTION": "a 1 2001:db8::3 2222"}, "ssh -N -L 8123:127.0.0.1:8123 -p 2222 ada@2001:db8::3"),
        ({**SSH, "SLURMD_NODENAME": "tcn7"}, "ssh -N -L 8123:127.0.0.1:8123 -J ada@198.51.100.3 ada@tcn7"),
        ({"SSH_CONNECTION": "a 1 2001:db8::3 2222", "SLURMD_NODENAME": "n"},
         "ssh -N -L 8123:127.0.0.1:8123 -J 'ada@[2001:db8::3]:2222' ada@n"),
        ({"SSH_CONNECTION": "damaged"}, None),
    ],
)  # fmt: skip
def test_the_tunnel_goes_the_way_that_ssh_came(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert tunnel(8123, environment) == expected


def test_what_is_copied_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    folder = Path("/scratch/my results/demo/report")
    assert copy_command(folder, SSH) == "scp -r 'ada@198.51.100.3:/scratch/my results/demo/report' ."
    other = {"SSH_CONNECTION": "a 1 2001:db8::3 2222"}
    assert (
        copy_command(folder, other) == "scp -r -P 2222 'ada@[2001:db8::3]:/scratch/my results/demo/report' ."
    )


@dataclass(frozen=True)
class Command:
    """`flowkit open` as a person calls it, in a folder of its own; its browser notes what it is given."""

    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        theirs = ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "SLURMD_NODENAME", "FLOWKIT_RESULTS")
        kept = {name: value for name, value in os.environ.items() if name not in theirs}
        return {**kept, "PYTHONPATH": str(ROOT), "BROWSER": str(self.folder / "browser"), **more}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flowkit", "open", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flowkit", "open", "--serve", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def browsed(self) -> str:
        noted = self.folder / "browsed"
        return noted.read_text().strip() if noted.is_file() else ""


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "workflow/config").mkdir(parents=True)
    shutil.copy(ROOT / "workflow/config/demo.yaml", tmp_path / "workflow/config/demo.yaml")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/browsed\n')
    browser.chmod(0o755)
    return Command(tmp_path)


def _read_until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    said: list[str] = []
    while not said or not said[-1].startswith("Ctrl-C"):
        line = process.stdout.readline()
        assert line, process.communicate()
        said.append(line.rstrip("\n"))
    return said


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (0, "", "")


def test_the_browser_opens_the_report_or_the_index(command: Command) -> None:
    write_experiment(command.folder / "results", "demo", about=ABOUT)
    done = command(DISPLAY=":0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "results/demo/report/index.html\n", "")
    assert command.browsed == (command.folder / "results/demo/report/index.html").as_uri()
    done = command("--all", DISPLAY=":0")
    assert (done.returncode, done.stdout) == (0, "results/index.html\n")
    assert command.browsed == (command.folder / "results/index.html").as_uri()
    assert "demo/report/index.html" in (command.folder / "results/index.html").read_text()


def test_without_a_screen_it_says_where_the_page_is_and_how_to_look_at_it(command: Command) -> None:
    folder = write_experiment(command.folder / "my results", "demo", about=ABOUT)
    done = command("--results", "my results", LOGNAME="ada", **SSH)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "my results/demo/report/index.html",
        "There is no screen here to open it on. Serve it:",
        "  python -m flowkit open --results 'my results' --serve",
        "or copy the folder to where you sit, and open report/index.html:",
        f"  scp -r 'ada@198.51.100.3:{folder.resolve()}/report' .",
    ]
    assert command.browsed == ""
    of_all = command("--all", "--results", "my results").stdout
    assert "--serve" in of_all
    assert "scp" not in of_all, "beside the index lies all data"


def test_serving_lasts_until_it_is_interrupted(command: Command) -> None:
    write_experiment(command.folder / "results", "demo", about=ABOUT)
    process = command.start(LOGNAME="ada", **SSH)
    said = _read_until_ready(process)
    assert re.fullmatch(r"http://127\.0\.0\.1:(\d+)/demo/report/", said[0])
    port = said[0].split(":")[2].split("/")[0]
    assert said[2] == f"  ssh -N -L {port}:127.0.0.1:{port} ada@198.51.100.3"
    with urlopen(said[0]) as page:
        assert b"<title>demo</title>" in page.read()
    with urlopen(f"http://127.0.0.1:{port}/") as page:
        assert b"<h1>1 experiment</h1>" in page.read()
    write_experiment(command.folder / "results", "more")
    with urlopen(f"http://127.0.0.1:{port}/") as page:
        assert b"<h1>2 experiments</h1>" in page.read()
    _interrupt(process)
    assert not (command.folder / "results/index.html").exists()


def test_serving_opens_the_browser_at_its_address_and_refuses_a_port_that_is_taken(command: Command) -> None:
    write_experiment(command.folder / "results", "demo", about=ABOUT)
    process = command.start("--all", DISPLAY=":0")
    (address, last) = _read_until_ready(process)
    assert command.browsed == address
    assert last == "Ctrl-C ends it."
    port = address.split(":")[2].rstrip("/")
    second = command("--serve", "--port", port)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == (
        f"flowkit: error: port {port} is taken, give another --port, or none for a free one\n"
    )
    _interrupt(process)


@pytest.mark.parametrize(
    ("arguments", "folders", "message"),
    [
        ((), (), "results: no such folder, name that of your results with --results or --profile"),
        ((), ("results",), "results/demo/report/index.html: no report yet, make it: make demo"),
        (("--serve",), ("results",), "results/demo/report/index.html: no report yet, make it: make demo"),
        (("--all",), ("results",), "results: no experiment has a report yet, make one: make demo"),
        (("--results", "my own"), ("my own",),
         "my own/demo/report/index.html: no report yet, make it: snakemake --profile profiles/local "
         "--configfile workflow/config/demo.yaml --config 'results=my own'"),
        (("--config", "gone.yaml"), ("results",), "gone.yaml: "),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_says_what_to_do(
    command: Command, arguments: tuple[str, ...], folders: tuple[str, ...], message: str
) -> None:
    for name in folders:
        (command.folder / name).mkdir()
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"flowkit: error: {message}")
    assert done.stderr.count("\n") == 1
