"""Where weights come from: a path, the hub's cache, or a download through a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
from encoders_material import TINY_EVA_HUB, TINY_EVA_MODEL, register_tiny_eva
from huggingface_hub import constants, hf_hub_download
from web_server import Fault, WebServer

from flowkit.encoders.eva_names import MODELS, PublishedTower
from flowkit.encoders.weight_hub import HubWeights
from flowkit.encoders.weight_registry import RemoteWeights, find_weights
from flowkit.errors import EncoderError
from flowkit.provenance import file_digest
from flowkit.shards.remote import RemoteFile, download
from flowkit.shards.retries import Patience

EVA = f"eva_clip:{TINY_EVA_MODEL}"
OPENAI = "open_clip:ViT-L-14-quickgelu/openai"
OPENAI_REPOSITORY = "timm/vit_large_patch14_clip_224.openai"
FILE = bytes(range(256)) * 400


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    register_tiny_eva(monkeypatch)
    with WebServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def _download(file: RemoteWeights, to: Path) -> Path:
    """As the weights stage does it."""
    patience = Patience(first_wait_seconds=0.01)
    return download(
        RemoteFile(file.url, file.bytes, file.sha256), to, headers=file.headers, patience=patience
    )


def test_a_tag_is_fetched_pinned_checked_and_resumed(web: WebServer, tmp_path: Path) -> None:
    commit = web.commit(TINY_EVA_HUB.repository, {"tiny.pt": FILE}, kind="models")
    pinned = f"/{TINY_EVA_HUB.repository}/resolve/{commit}/tiny.pt"
    storage = next(path for path in web.files if path.startswith("/storage/"))
    web.fail(f"/{TINY_EVA_HUB.repository}/resolve/main/tiny.pt", Fault(status=503))
    web.fail(storage, Fault(cut_after=1000), Fault(status=503))
    file = find_weights(EVA, tmp_path / "made", download=_download)
    assert file == tmp_path / "made" / "tiny.pt"
    assert file.read_bytes() == FILE
    assert {request.path for request in web.requests if request.method == "GET"} == {pinned, storage}
    assert web.asked(storage)[-1].headers["Range"] == "bytes=1000-", "goes on where it was cut"


def test_open_clip_tags_take_the_safe_format_first(web: WebServer, tmp_path: Path) -> None:
    """As open_clip itself does; the older name is for repositories that have no other."""
    assert open_clip.get_pretrained_cfg("ViT-L-14-quickgelu", "openai")["hf_hub"] == f"{OPENAI_REPOSITORY}/"
    web.commit(OPENAI_REPOSITORY, {"open_clip_pytorch_model.bin": FILE}, kind="models")
    file = find_weights(OPENAI, tmp_path / "made", download=_download)
    assert file.name == "open_clip_pytorch_model.bin"
    web.commit(
        OPENAI_REPOSITORY,
        {"open_clip_pytorch_model.bin": b"other", "open_clip_model.safetensors": FILE},
        kind="models",
    )
    file = find_weights(OPENAI, tmp_path / "made", download=_download)
    assert file.name == "open_clip_model.safetensors"
    assert file.read_bytes() == FILE
    web.commit(OPENAI_REPOSITORY, {"README.md": b""}, kind="models")
    with pytest.raises(
        EncoderError,
        match=rf"has none of open_clip_model\.safetensors, .* on the hub; .* name it: {OPENAI}=FILE",
    ):
        find_weights(OPENAI, tmp_path / "made", download=_download)


def test_a_cached_file_stays_where_it_is(web: WebServer, tmp_path: Path) -> None:
    repository = TINY_EVA_HUB.repository
    web.commit(repository, {"tiny.pt": FILE}, kind="models")
    cached = Path(hf_hub_download(repository, "tiny.pt", endpoint=web.url, cache_dir=tmp_path / "cache"))
    web.requests.clear()
    assert find_weights(EVA) == cached
    assert not web.requests, "nothing is asked of the network"
    blob = cached.resolve()
    assert blob.name == file_digest(blob)
    blob.chmod(0o600)
    blob.write_bytes(FILE[:-1] + b"!")
    with pytest.raises(EncoderError, match=rf"tiny\.pt has sha256 .*, expected {blob.name}: damaged"):
        find_weights(EVA)


def test_a_file_that_was_replaced_on_the_hub_is_refused(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = HubWeights(TINY_EVA_HUB.repository, TINY_EVA_HUB.names, sha256="0" * 64)
    monkeypatch.setitem(MODELS, TINY_EVA_MODEL, PublishedTower(MODELS[TINY_EVA_MODEL].config, known))
    web.commit(known.repository, {"tiny.pt": FILE}, kind="models")
    with pytest.raises(EncoderError, match=r"expected 000.*: it was replaced; .*EVA-CLIP-tiny/FILE"):
        find_weights(EVA, tmp_path, download=_download)
    hf_hub_download(known.repository, "tiny.pt", endpoint=web.url, cache_dir=tmp_path / "cache")
    with pytest.raises(EncoderError, match=r"expected 000.*: damaged or another file"):
        find_weights(EVA, tmp_path, download=_download)


def test_without_a_way_to_fetch_the_remedy_is_named(web: WebServer, tmp_path: Path) -> None:
    remedy = r"run the weights stage where there is internet .* name it: eva_clip:EVA-CLIP-tiny/FILE"
    with pytest.raises(EncoderError, match=rf"are not in the cache of the hub; {remedy}"):
        find_weights(EVA)
    with pytest.raises(EncoderError, match=rf"cannot be fetched \(.*401.*\); {remedy}"):
        find_weights(EVA, tmp_path, download=_download)
    web.commit(TINY_EVA_HUB.repository, {"tiny.pt": FILE}, kind="models")
    web.repositories[TINY_EVA_HUB.repository].is_gated = True
    with pytest.raises(
        EncoderError, match=r"cannot be fetched .*a login is needed where a repository is gated"
    ):
        find_weights(EVA, tmp_path, download=_download)
    assert not list(tmp_path.glob("*.pt*"))


def test_offline_nothing_is_asked(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.commit(TINY_EVA_HUB.repository, {"tiny.pt": FILE}, kind="models")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        EncoderError, match=r"cannot be fetched \(.*HF_HUB_OFFLINE.*\); run the weights stage where"
    ):
        find_weights(EVA, tmp_path, download=_download)
    assert not web.requests


def test_paths_and_demo_towers_need_no_network(tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    names = (f"open_clip:ViT-B-32/laion2b_e16={file}", f"open_clip:ViT-B-32-256/{file}")
    for name in names:
        with pytest.raises(
            EncoderError, match=r"weights file .*mine\.pt .* does not exist; correct the path"
        ):
            find_weights(name)
    file.write_bytes(FILE)
    for name in names:
        assert find_weights(name) == file
    for name in ("demo-eva", "demo-vit"):
        assert find_weights(name).stat().st_size > 100_000
