"""`flowkit open`: a browser where there is a screen, words where there is none."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from experiments_material import ABOUT, write_experiment

from flowkit.opening import copy_command, has_screen, tunnel

ROOT = Path(__file__).parents[2]
SSH = {"SSH_CONNECTION": "192.0.2.7 50122 198.51.100.3 22"}


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
