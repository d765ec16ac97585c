"""Tars of the hub against a real server that answers as the hub does; the client is the real huggingface_hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_material import short_caption_tar
from web_server import Fault, WebServer, storage_path

from flowkit.errors import ConfigError, ShardError
from flowkit.shards.hub import (
    Listing,
    download_tar,
    list_tars_of_hub,
    missing_numbers,
)
from flowkit.shards.reader import Sample, read_samples
from flowkit.shards.remote import WrongDigest
from flowkit.shards.retries import DownloadError, Patience, Refused

REPOSITORY = "BLIP3o/BLIP3o-Pretrain-Short-Caption"
TARS = {f"{number:05d}.tar": short_caption_tar(number) for number in (0, 1, 3)}
FILES = {"README.md": b"# data", ".hidden.tar": b"x", **TARS}
API = f"/api/datasets/{REPOSITORY}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with WebServer(page_size=2) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        yield server


def _resolve(commit: str, name: str) -> str:
    return f"/datasets/{REPOSITORY}/resolve/{commit}/{name}"


def test_listing_names_commit_sizes_and_digests_of_all_pages(web: WebServer) -> None:
    commit = web.commit(REPOSITORY, FILES)
    listing = list_tars_of_hub(REPOSITORY, "main")
    assert (listing.repository, listing.revision, listing.commit) == (REPOSITORY, "main", commit)
    assert [(tar.name, tar.bytes) for tar in listing.tars] == [(name, len(TARS[name])) for name in TARS]
    assert [storage_path(TARS[tar.name]) for tar in listing.tars] == [
        f"/storage/{tar.sha256}" for tar in listing.tars
    ]
    assert len(web.asked(f"{API}/tree/{commit}")) == 3  # five files, two per page
    assert Listing.from_json(listing.to_json()) == listing


def test_tars_arrive_as_listed_although_the_branch_moved(web: WebServer, tmp_path: Path) -> None:
    commit = web.commit(REPOSITORY, FILES)
    listing = list_tars_of_hub(REPOSITORY, "main")
    web.commit(REPOSITORY, {"00000.tar": short_caption_tar(99)})
    counts: list[int] = []
    paths = [download_tar(listing, tar, tmp_path, progress=counts.append) for tar in listing.tars]
    assert {path.name: path.read_bytes() for path in paths} == TARS
    assert sum(counts) == sum(len(content) for content in TARS.values())
    assert len(web.asked(_resolve(commit, "00003.tar"))) == 1
    samples = list(read_samples(paths[2]))
    assert all(isinstance(sample, Sample) for sample in samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(TARS)


def test_cut_download_goes_on_at_the_storage_host(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float]
) -> None:
    commit = web.commit(REPOSITORY, FILES)
    listing = list_tars_of_hub(REPOSITORY, commit)
    stored = storage_path(TARS["00001.tar"])
    web.fail(stored, Fault(cut_after=3000, reset=True), Fault(status=503, headers={"Retry-After": "5"}))
    web.fail(_resolve(commit, "00001.tar"), Fault(), Fault(status=429, headers={"Retry-After": "9"}))
    path = download_tar(listing, listing.tars[1], tmp_path, patience=patience)
    assert path.read_bytes() == TARS["00001.tar"]
    assert [request.status for request in web.asked(stored)] == [200, 503, 206]
    assert waits == [1, 9, 5]


def test_token_goes_to_the_hub_and_not_to_the_storage_host(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    commit = web.commit(REPOSITORY, FILES)
    web.repositories[REPOSITORY].is_gated = True
    listing = list_tars_of_hub(REPOSITORY, "main")
    download_tar(listing, listing.tars[0], tmp_path)
    assert web.asked(_resolve(commit, "00000.tar"))[0].headers["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in web.asked(storage_path(TARS["00000.tar"]))[0].headers


def test_gated_set_says_how_to_get_in(web: WebServer, tmp_path: Path, patience: Patience) -> None:
    web.commit(REPOSITORY, FILES)
    web.repositories[REPOSITORY].is_gated = True
    listing = list_tars_of_hub(REPOSITORY, "main")
    page = f"{web.url}/datasets/{REPOSITORY}"
    with pytest.raises(Refused, match=rf"HTTP 401; it is gated.*{page}.*hf auth login"):
        download_tar(listing, listing.tars[0], tmp_path, patience=patience)


def test_file_that_is_gone_from_the_commit_is_an_error(
    web: WebServer, tmp_path: Path, patience: Patience, waits: list[float]
) -> None:
    commit = web.commit(REPOSITORY, FILES)
    listing = list_tars_of_hub(REPOSITORY, "main")
    del web.repositories[REPOSITORY].commits[commit]["00001.tar"]
    with pytest.raises(Refused, match=rf"00001.tar of {REPOSITORY} at commit {commit} with HTTP 404"):
        download_tar(listing, listing.tars[1], tmp_path, patience=patience)
    assert waits == []


def test_wrong_bytes_are_never_kept(web: WebServer, tmp_path: Path) -> None:
    web.commit(REPOSITORY, FILES)
    listing = list_tars_of_hub(REPOSITORY, "main")
    right = TARS["00000.tar"]
    web.fail(storage_path(right), Fault(body=bytes(len(right)), times=-1))
    with pytest.raises(WrongDigest, match=listing.tars[0].sha256):
        download_tar(listing, listing.tars[0], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("repository", "revision", "message"),
    [
        ("owner/nothing", "main", "HTTP 401; it is gated, private or does not exist"),
        (REPOSITORY, "v9", "at revision v9 with HTTP 404; there is no such revision"),
    ],
)
def test_unknown_repository_or_revision_is_an_error_at_once(
    web: WebServer, patience: Patience, waits: list[float], repository: str, revision: str, message: str
) -> None:
    web.commit(REPOSITORY, FILES)
    with pytest.raises(Refused, match=message):
        list_tars_of_hub(repository, revision, patience=patience)
    assert waits == []


def test_name_that_is_no_repository_is_a_configuration_error(web: WebServer) -> None:
    with pytest.raises(ConfigError, match="'a/b/c' is no name of a repository"):
        list_tars_of_hub("a/b/c", "main")


def test_listing_waits_for_a_busy_hub(web: WebServer, patience: Patience, waits: list[float]) -> None:
    commit = web.commit(REPOSITORY, FILES)
    question = f"{API}/revision/main"
    web.fail(question, Fault(status=429, headers={"Retry-After": "3"}), Fault(status=503), Fault(cut_after=0))
    web.fail(f"{API}/tree/{commit}", Fault(status=503, headers={"Retry-After": "0"}))
    assert len(list_tars_of_hub(REPOSITORY, "main", patience=patience).tars) == 3
    assert waits == [3, 2, 4]


def test_hub_that_stays_away_or_is_none_is_an_error(web: WebServer, patience: Patience) -> None:
    web.commit(REPOSITORY, FILES)
    question = f"{API}/revision/main"
    web.fail(question, *(Fault(status=503) for _ in range(4)), Fault(body=b"<html>log in</html>"))
    with pytest.raises(DownloadError, match=r"4 failures in a row, the last one: HTTP 503"):
        list_tars_of_hub(REPOSITORY, "main", patience=patience)
    with pytest.raises(DownloadError, match="does not answer as a hub does; correct HF_ENDPOINT"):
        list_tars_of_hub(REPOSITORY, "main", patience=patience)


def test_offline_is_said_before_anything_is_asked(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.commit(REPOSITORY, FILES)
    listing = list_tars_of_hub(REPOSITORY, "main")
    download_tar(listing, listing.tars[0], tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(web.requests)
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE=1 forbids downloads; .*where there is internet"):
        list_tars_of_hub(REPOSITORY, "main")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE=1 forbids downloads"):
        download_tar(listing, listing.tars[1], tmp_path)
    assert download_tar(listing, listing.tars[0], tmp_path).read_bytes() == TARS["00000.tar"]
    assert len(web.requests) == before


def test_mixed_names_and_folders_keep_an_order_and_distinct_files(web: WebServer, tmp_path: Path) -> None:
    names = ["sa_000002.tar", "webdataset_shard_10.tar", "webdataset_shard_9.tar", "part/a/x.tar"]
    web.commit("owner/long", {name: short_caption_tar(number, 1) for number, name in enumerate(names)})
    listing = list_tars_of_hub("owner/long", "main")
    assert [tar.file_name for tar in listing.tars] == [
        "part-a-x.tar", "sa_000002.tar", "webdataset_shard_10.tar", "webdataset_shard_9.tar",
    ]  # fmt: skip
    assert download_tar(listing, listing.tars[0], tmp_path) == tmp_path / "part-a-x.tar"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"nothing"}, "has no \\*.tar at main"),
        ({"a/b.tar": b"1", "a-b.tar": b"2"}, "both be kept as a-b.tar"),
    ],
)
def test_repositories_that_cannot_be_a_data_set(
    web: WebServer, files: dict[str, bytes], message: str
) -> None:
    web.commit("owner/odd", files)
    with pytest.raises(ShardError, match=message):
        list_tars_of_hub("owner/odd", "main")


def test_missing_numbers_are_those_of_a_numbering_only() -> None:
    present = [f"{number:05d}.tar" for number in range(1833) if number not in (842, 1812)]
    assert missing_numbers(present) == ["00842.tar", "01812.tar"]
    assert missing_numbers(["sa_000000.tar", "00000.tar", "00002.tar"]) == []
    assert missing_numbers(["00000.tar", "90000.tar"]) == []
    assert missing_numbers([]) == []


def test_the_server_of_these_tests_answers_as_the_hub_client_expects(web: WebServer, tmp_path: Path) -> None:
    """The hub's own download works against it, so what flowkit reads from it is what the hub says."""
    commit = web.commit("owner/weights", {"model.bin": TARS["00000.tar"]}, kind="models")
    code = "import sys; from huggingface_hub import hf_hub_download as get; get(*sys.argv[1:3], local_dir=sys.argv[3])"
    subprocess.run([sys.executable, "-c", code, "owner/weights", "model.bin", str(tmp_path)], check=True)
    assert (tmp_path / "model.bin").read_bytes() == TARS["00000.tar"]
    metadata = (tmp_path / ".cache/huggingface/download/model.bin.metadata").read_text().splitlines()
    assert metadata[:2] == [commit, storage_path(TARS["00000.tar"]).rpartition("/")[2]]


def test_import_is_cheap() -> None:
    code = (
        "import flowkit.shards.hub, sys; sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
