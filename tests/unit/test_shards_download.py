"""Downloads against a real server: they end with the right bytes under the name, or with an error and no name."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from web_material import remote_file
from web_server import Fault, WebServer

from flowkit.errors import ShardError
from flowkit.shards.remote import CHUNK_BYTES, RENEWING_BYTES, RemoteFile, WrongDigest, download
from flowkit.shards.retries import DownloadError, Patience, Refused, asked_seconds
from flowkit.shards.space import demand_space

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
PATH = "/zips/val.zip"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with WebServer() as server:
        yield server


def _partial(to: Path) -> Path:
    return to.with_name(f"{to.name}.partial")


def test_file_arrives_and_a_second_run_asks_nothing(web: WebServer, tmp_path: Path) -> None:
    file, to, counts = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "new" / "val.zip", []
    assert download(file, to, progress=counts.append) == to
    assert to.read_bytes() == CONTENT
    assert sum(counts) == len(CONTENT)
    assert list(to.parent.iterdir()) == [to]
    again: list[int] = []
    download(file, to, progress=again.append)
    assert again == [len(CONTENT)]
    assert len(web.requests) == 1


def test_file_that_is_there_but_wrong_is_replaced(web: WebServer, tmp_path: Path) -> None:
    to = tmp_path / "val.zip"
    to.write_bytes(OTHER)
    download(remote_file(web.serve(PATH, CONTENT), CONTENT), to)
    assert to.read_bytes() == CONTENT


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_connections_are_continued_not_repeated(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float], reset: bool
) -> None:
    file, to, counts = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip", []
    web.fail(PATH, Fault(cut_after=100_000, reset=reset), Fault(cut_after=50_000, reset=reset))
    download(file, to, progress=counts.append, patience=patience)
    assert to.read_bytes() == CONTENT
    assert sum(counts) == len(CONTENT)
    assert min(counts) >= 0
    assert [request.status for request in web.requests] == [200, 206, 206]
    assert waits == [1, 2]


def test_killed_download_goes_on_in_the_next_process(web: WebServer, tmp_path: Path) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    web.fail(PATH, Fault(body=CONTENT[:280_000], headers={"Content-Length": str(len(CONTENT))}))
    code = (
        "import sys; from pathlib import Path; from flowkit.shards.remote import *; "
        "download(RemoteFile(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, file.url, str(file.bytes), file.sha256, str(to)])
    deadline = time.monotonic() + 60
    while not (_partial(to).exists() and _partial(to).stat().st_size == CHUNK_BYTES):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not to.exists()
    download(file, to)
    assert to.read_bytes() == CONTENT
    assert web.requests[-1].headers["Range"] == f"bytes={CHUNK_BYTES}-"


def test_server_without_ranges_starts_over(web: WebServer, tmp_path: Path, patience: Patience) -> None:
    file, to, counts = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip", []
    web.fail(PATH, Fault(cut_after=100_000), Fault(ignores_range=True))
    download(file, to, progress=counts.append, patience=patience)
    assert to.read_bytes() == CONTENT
    assert sum(counts) == len(CONTENT)


def test_part_that_does_not_fit_is_not_joined(web: WebServer, tmp_path: Path, patience: Patience) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    total = len(CONTENT)
    all_of_it = Fault(body=CONTENT, headers={"Content-Range": f"bytes 0-{total - 1}/{total}"})
    web.fail(PATH, Fault(cut_after=100_000), all_of_it)
    download(file, to, patience=patience)
    assert to.read_bytes() == CONTENT
    assert [request.status for request in web.requests] == [200, 206, 200]


def test_answers_that_end_early_are_not_asked_for_without_end(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float]
) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    web.fail(PATH, Fault(cut_after=100_000), Fault(body=b"", times=-1))
    with pytest.raises(DownloadError, match="ended after 100000 of 300000 bytes"):
        download(file, to, patience=patience)
    assert waits == [1, 2, 4]


def test_file_changed_during_the_download_is_not_joined(
    web: WebServer, tmp_path: Path, patience: Patience
) -> None:
    file, to = remote_file(web.serve(PATH, OTHER), CONTENT), tmp_path / "val.zip"
    web.fail(PATH, Fault(cut_after=100_000))

    def swap(seconds: float) -> None:
        web.serve(PATH, CONTENT)

    download(file, to, patience=Patience(sleep=swap, timeout_seconds=5))
    assert to.read_bytes() == CONTENT
    # the server was told which file the first part came from, and sent all of the other one
    assert [request.status for request in web.requests] == [200, 200]


def test_damaged_rest_of_an_earlier_process_is_thrown_away(web: WebServer, tmp_path: Path) -> None:
    file, to, counts = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip", []
    _partial(to).write_bytes(OTHER[:1000])
    download(file, to, progress=counts.append)
    assert to.read_bytes() == CONTENT
    assert sum(counts) == len(CONTENT)
    assert [request.status for request in web.requests] == [206, 200]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_rest_that_cannot_be_continued_is_thrown_away(web: WebServer, tmp_path: Path, length: int) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    _partial(to).write_bytes((OTHER + OTHER)[:length])
    download(file, to)
    assert to.read_bytes() == CONTENT


def test_wrong_digest_is_an_error_that_leaves_nothing(web: WebServer, tmp_path: Path) -> None:
    file, to = remote_file(web.serve(PATH, OTHER), CONTENT), tmp_path / "val.zip"
    with pytest.raises(WrongDigest) as fault:
        download(file, to)
    assert file.sha256 in str(fault.value)
    assert remote_file(file.url, OTHER).sha256 in str(fault.value)
    assert list(tmp_path.iterdir()) == []
    assert len(web.requests) == 1


@pytest.mark.parametrize("body", [OTHER[:99], OTHER + OTHER], ids=["shorter", "longer"])
def test_file_of_another_size_is_refused_before_it_is_fetched(
    web: WebServer, tmp_path: Path, body: bytes
) -> None:
    file, to = remote_file(web.serve(PATH, body), CONTENT), tmp_path / "val.zip"
    _partial(to).write_bytes(CONTENT[:50])
    web.fail(PATH, Fault(ignores_range=True))
    with pytest.raises(DownloadError, match=rf"has {len(body)} bytes, expected {len(CONTENT)}"):
        download(file, to)
    assert (
        _partial(to).read_bytes() == CONTENT[:50]
    )  # a page of a login portal costs nothing that has arrived


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_not_repeated(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float], status: int
) -> None:
    file = remote_file(web.serve(PATH, CONTENT), CONTENT)
    web.fail(PATH, Fault(status=status))
    with pytest.raises(Refused, match=rf"{file.url} answered HTTP {status}; .*(address|owner)") as fault:
        download(file, tmp_path / "val.zip", patience=patience)
    assert fault.value.status == status
    assert isinstance(fault.value, ShardError)
    assert waits == []


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_gets_the_time_it_asks_for(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float], status: int
) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    web.fail(
        PATH,
        Fault(status=status, headers={"Retry-After": "7"}),
        Fault(status=status, headers={"ratelimit": '"resolvers";r=0;t=42'}),
        Fault(status=500),
    )
    download(file, to, patience=patience)
    assert to.read_bytes() == CONTENT
    assert waits == [7, 42, 4]


def test_too_long_a_wait_and_too_many_failures_are_errors(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float]
) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    web.fail(PATH, Fault(status=503, headers={"Retry-After": "86400"}))
    with pytest.raises(DownloadError, match=r"asks to wait 86400 seconds.*run again after"):
        download(file, to, patience=patience)
    web.fail(PATH, Fault(cut_after=100_000), Fault(status=503, times=-1))
    with pytest.raises(DownloadError, match=r"4 failures in a row.*HTTP 503.*what has arrived is kept"):
        download(file, to, patience=patience)
    assert waits == [1, 2, 4]
    assert _partial(to).read_bytes() == CONTENT[:100_000]


def test_progress_makes_earlier_failures_forgotten(
    web: WebServer, tmp_path: Path, waits: list[float]
) -> None:
    content = np.random.default_rng(2).bytes(6 * RENEWING_BYTES)
    file, to = remote_file(web.serve(PATH, content), content), tmp_path / "val.zip"
    web.fail(PATH, *(Fault(cut_after=RENEWING_BYTES) for _ in range(5)))
    download(file, to, patience=Patience(failures_in_a_row=2, timeout_seconds=5, sleep=waits.append))
    assert to.read_bytes() == content
    assert waits == [1] * 5


def test_silent_server_and_no_server_are_failures_that_may_pass(
    web: WebServer, tmp_path: Path, waits: list[float]
) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    web.fail(PATH, Fault(stall_seconds=2))
    quick = Patience(failures_in_a_row=2, timeout_seconds=0.3, sleep=waits.append)
    download(file, to, patience=quick)
    assert to.read_bytes() == CONTENT
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        nobody = RemoteFile(f"http://127.0.0.1:{reserved.getsockname()[1]}/x", file.bytes, file.sha256)
        with pytest.raises(DownloadError, match=r"2 failures in a row.*[Rr]efused"):
            download(nobody, tmp_path / "x", patience=quick)
    assert waits == [1, 1]


def test_address_that_cannot_be_is_an_error_at_once(tmp_path: Path, patience: Patience) -> None:
    with pytest.raises(DownloadError, match="correct the address"):
        download(RemoteFile("no address", 1, "0" * 64), tmp_path / "x", patience=patience)


def test_offline_forbids_the_download_but_not_the_file(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE=1.*login node"):
        download(file, to)
    to.write_bytes(CONTENT)
    assert download(file, to) == to
    assert web.requests == []


def test_proxy_of_the_environment_is_used(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", web.url)
    web.files["/zips/val.zip"] = CONTENT  # a proxy is asked for the whole address
    to = download(remote_file("http://images.invalid/zips/val.zip", CONTENT), tmp_path / "val.zip")
    assert to.read_bytes() == CONTENT


def test_login_stays_with_its_host(web: WebServer, tmp_path: Path) -> None:
    address = web.serve("/stored", CONTENT)
    web.fail(
        PATH, Fault(status=302, headers={"Location": address.replace("127.0.0.1", "localhost")}, times=2)
    )
    download(remote_file(web.url + PATH, CONTENT), tmp_path / "a", headers={"Authorization": "Bearer secret"})
    assert web.asked(PATH)[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in web.asked("/stored")[0].headers


def test_folder_that_cannot_be_written_is_an_error(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ShardError, match="cannot be written"):
        download(remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "file" / "val.zip")


def test_disk_full_is_an_error_and_the_next_run_goes_on(web: WebServer, tmp_path: Path) -> None:
    file, to = remote_file(web.serve(PATH, CONTENT), CONTENT), tmp_path / "val.zip"
    code = (
        "import resource, signal, sys; from pathlib import Path; from flowkit.shards.remote import *; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (131072, 131072)); "
        "download(RemoteFile(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file.url, str(file.bytes), file.sha256, str(to)],
        capture_output=True,
        text=True,
    )
    assert "val.zip cannot be written (File too large)" in done.stderr
    assert not to.exists()
    download(file, to)
    assert to.read_bytes() == CONTENT
    assert web.requests[-1].status == 206


def test_retry_after_is_read_as_seconds_or_date() -> None:
    assert asked_seconds({"retry-after": " 12 "}) == 12
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < (asked_seconds({"Retry-After": soon}) or 0) <= 100
    assert asked_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert asked_seconds({"Retry-After": "later"}) is None
    assert asked_seconds({"ratelimit": '"api";r=3;t=55'}) is None
    assert asked_seconds({}) is None


def test_space_is_demanded_before_work(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    demand_space(folder, 1, "one byte")
    with pytest.raises(ShardError, match=r"2 shards needs 1000000.000 GB in .*yet, but only \d+\.\d+ GB"):
        demand_space(folder, 10**15, "2 shards")
    assert not folder.exists()
