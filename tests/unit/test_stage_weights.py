"""Weights that stay where the user has them: what happens when they are touched, replaced or gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowkit.errors import EncoderError
from flowkit.paths import Places
from flowkit.stages import weights as stage
from flowkit.stages.inputs import weights_of
from flowkit.stages.session import Spec

ENCODER = "some-weights"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "tower.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def spec_of(tmp_path: Path, name: str) -> Spec:
    places = Places("test", tmp_path / "results", tmp_path / "data")
    return Spec("weights", {"encoder": ENCODER, "weights": ENCODER}, {"encoder": {"name": name}}, places, ())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_file_of_the_users_stays_where_it_is(tmp_path: Path, file: Path) -> None:
    spec = spec_of(tmp_path, f"eva_clip:EVA-CLIP-8B/{file}")
    stage.run(spec)
    assert weights_of(spec) == (file, sha256(b"weights"))
    assert not list((tmp_path / "data").rglob("*.pt"))


def test_folder_of_shards_has_one_digest_over_all(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"pytorch_model-0000{number}-of-00002.bin").write_bytes(bytes([number]))
    spec = spec_of(tmp_path, f"eva_clip:EVA-CLIP-8B/{folder}")
    stage.run(spec)
    path, before = weights_of(spec)
    assert path == folder
    (folder / "pytorch_model-00002-of-00002.bin").write_bytes(b"other")
    with pytest.raises(EncoderError, match=r"pytorch_model-00002-of-00002\.bin: gone or replaced"):
        weights_of(spec)
    stage.run(spec)
    assert weights_of(spec)[1] != before


def cached(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Spec, Callable[[], int]]:
    """A tag whose file lies in a cache outside the data root, and how often it was looked for."""
    asked = []

    def find(name: str, download_to: Path, *, download: object) -> Path:
        asked.append(name)
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(b"weights")
        return file

    monkeypatch.setattr(stage, "find_weights", find)
    spec = spec_of(tmp_path, "eva_clip:EVA-CLIP-8B")
    stage.run(spec)
    return spec, lambda: len(asked)


def test_cache_that_was_purged_is_filled_again(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, asked = cached(tmp_path, file, monkeypatch)
    file.unlink()
    with pytest.raises(EncoderError, match="run stage weights again"):
        weights_of(spec)
    stage.run(spec)
    assert weights_of(spec) == (file, sha256(b"weights"))
    assert asked() == 2


def test_file_that_was_replaced_in_the_cache_is_seen(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, asked = cached(tmp_path, file, monkeypatch)
    file.write_bytes(b"other weights")
    with pytest.raises(EncoderError, match="gone or replaced since the digest"):
        weights_of(spec)
    stage.run(spec)
    assert weights_of(spec) == (file, sha256(b"other weights"))
    assert asked() == 2


def test_file_that_was_only_touched_is_the_same(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, asked = cached(tmp_path, file, monkeypatch)
    os.utime(file, ns=(1, 1))
    stage.run(spec)
    assert weights_of(spec) == (file, sha256(b"weights"))
    assert asked() == 1, "nothing was looked for again"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"nowhere\.pt: weights of encoder .* are not there"):
        stage.run(spec_of(tmp_path, f"eva_clip:EVA-CLIP-8B/{tmp_path}/nowhere.pt"))
