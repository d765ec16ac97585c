"""Showing reports to a person: in the browser, over HTTP on this machine alone, or as words on how to get at them."""

from __future__ import annotations

import errno
import getpass
import os
import shlex
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowkit.errors import ReportError
from flowkit.paths import FIRST_PAGE, report_folders
from flowkit.serving import HERE, Index, ReportServer, address_of

SSH_PORT = "22"
DEMO = Path("workflow/config/demo.yaml")


@dataclass(frozen=True)
class Door:
    """What is to be opened: a page, where it is served, and the folder that holds all of it and nothing else."""

    page: Path
    path: str
    folder: Path | None = None


def door_to_report(report: Path, made_by: str) -> Door:
    """Return the way into one report; raises `ReportError` with the command that makes it when there is none."""
    _demand_results(report.parent.parent)
    if not (report / FIRST_PAGE).is_file():
        raise ReportError(f"{report / FIRST_PAGE}: no report yet, make it: {made_by}")
    return Door(report / FIRST_PAGE, address_of(report), report)


def door_to_all(results: Path, write_index: Callable[[Path], Path], made_by: str) -> Door:
    """Return the way to the index of experiments; raises `ReportError` when none has a report."""
    _demand_results(results)
    if not report_folders(results):
        raise ReportError(f"{results}: no experiment has a report yet, make one: {made_by}")
    return Door(write_index(results), "/")


def workflow_command(config: Path, profile: Path | None, results: Path | None) -> str:
    """Return the command that makes the report of a configuration."""
    if (config, profile, results) == (DEMO, None, None):
        return "make demo"
    place = [] if results is None else ["--config", f"results={results}"]
    chosen = str(profile or "profiles/local")
    return shlex.join(["snakemake", "--profile", chosen, "--configfile", str(config), *place])


def open_page(door: Door, serve_command: str) -> Iterator[str]:
    """Open a page in the browser; yields where it is and, when no browser could be opened, how to look at it."""
    yield str(door.page)
    if _show(door.page.resolve().as_uri()):
        return
    yield "There is no screen here to open it on. Serve it:"
    yield f"  {serve_command}"
    if door.folder:
        yield f"or copy the folder to where you sit, and open {door.folder.name}/{door.page.name}:"
        yield f"  {copy_command(door.folder.resolve(), os.environ)}"


def has_screen(environment: Mapping[str, str]) -> bool:
    """Whether programs can show windows to the person at this machine; windows forwarded through ssh do not count."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in environment
    display = environment.get("DISPLAY", "")
    is_forwarded = "SSH_CONNECTION" in environment and not display.startswith(":")
    return "WAYLAND_DISPLAY" in environment or (bool(display) and not is_forwarded)


def tunnel(port: int, environment: Mapping[str, str]) -> str | None:
    """Return the command that brings a port of this machine to the one that ssh was called on; None without ssh.

    A job's node is reached through the machine that ssh was called for.
    """
    if (reached := _reached(environment)) is None:
        return None
    host, ssh_port = reached
    user = getpass.getuser()
    command = ["ssh", "-N", "-L", f"{port}:{HERE}:{port}"]
    if node := environment.get("SLURMD_NODENAME"):
        gate = _gate(host) if ssh_port == SSH_PORT else f"{_gate(host)}:{ssh_port}"
        return shlex.join([*command, "-J", f"{user}@{gate}", f"{user}@{node}"])
    return shlex.join([*command, *([] if ssh_port == SSH_PORT else ["-p", ssh_port]), f"{user}@{host}"])


def serve(results: Path, index: Index, *, port: int, path: str, say: Callable[[str], None]) -> None:
    """Serve the reports below `results` until Ctrl-C and open the browser at `path`; says where and how to reach it.

    Port 0 is a free one. Raises `ReportError` when the port cannot be had.
    """
    try:
        server = ReportServer(results, index, port)
    except OSError as error:
        reasons = {errno.EADDRINUSE: "is taken", errno.EACCES: "may not be used by you"}
        reason = reasons.get(error.errno or 0, f"cannot be had ({error.strerror})")
        raise ReportError(f"port {port} {reason}, give another --port, or none for a free one") from None
    with server, suppress(KeyboardInterrupt):
        address = f"http://{HERE}:{server.server_port}{path}"
        say(address)
        if not _show(address) and (command := tunnel(server.server_port, os.environ)):
            say(
                "This machine was reached by ssh: type this on the one that you sit at, and open the address there."
            )
            say(f"  {command}")
        say("Ctrl-C ends it.")
        server.serve_forever()


def copy_command(folder: Path, environment: Mapping[str, str]) -> str:
    """Return the command that copies a folder of this machine to the one that ssh was called on."""
    host, port = _reached(environment) or (socket.gethostname(), SSH_PORT)
    options = [] if port == SSH_PORT else ["-P", port]
    return shlex.join(["scp", "-r", *options, f"{getpass.getuser()}@{_gate(host)}:{folder}", "."])


def _demand_results(results: Path) -> None:
    if not results.is_dir():
        raise ReportError(f"{results}: no such folder, name that of your results with --results or --profile")


def _show(address: str) -> bool:
    return has_screen(os.environ) and webbrowser.open(address)


def _reached(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return address and port of this machine as the ssh that leads here was called with; None without one."""
    fields = environment.get("SSH_CONNECTION", "").split()
    return (fields[2], fields[3]) if len(fields) == 4 else None


def _gate(host: str) -> str:
    return f"[{host}]" if ":" in host else host
