"""Tars that are not the listed ones: nothing that came of them is ever in a store, whenever it was found out.

As a program it is an extraction that is killed in its third batch, before the digest is known:
`test_features_origin.py TAR STORE LISTED`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from features_material import files_of, png, write_tar
from test_features_extraction import ToyEncoder, extract

from flowkit.errors import ShardError
from flowkit.features import origin
from flowkit.shards.catalogue import TarDescription, describe_tar

MEMBERS, BATCHES = 14, [4, 4, 4, 2]


class Acting(ToyEncoder):
    """Does something before its third batch."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.batches) == 2:
            self.act()
        return super().encode(pixels_NCHW)


def make_tar(path: Path, *, first: int = 0) -> Path:
    """Pictures that depend on `first`; their sizes do not, so any two of these tars are alike from the outside."""
    files: dict[str, bytes] = {}
    for number in range(MEMBERS):
        files[f"{number:03d}.png"] = png(first + number).ljust(400, b"\0")
        files[f"{number:03d}.txt"] = b"noise"
    return write_tar(path, files)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return make_tar(tmp_path / "00007.tar")


@pytest.fixture
def listed(tar: Path) -> TarDescription:
    return describe_tar(tar)


@pytest.fixture
def expected(tar: Path, listed: TarDescription, tmp_path: Path) -> dict[str, str]:
    extract(tar, tmp_path / "expected", source=listed)
    return files_of(tmp_path / "expected")


def kill_before_the_digest(tar: Path, store: Path, listed: TarDescription) -> None:
    command = [sys.executable, __file__, str(tar), str(store), json.dumps(listed)]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    assert (store / "tokens/c.0.0.0").stat().st_size > 0


def resumed(tar: Path, store: Path, listed: TarDescription) -> list[int]:
    """The batches that it took to complete the store."""
    encoder = ToyEncoder()
    extract(tar, store, encoder, source=listed)
    return encoder.batches


def test_work_on_a_wrong_tar_is_thrown_away(
    tar: Path, listed: TarDescription, expected: dict[str, str], tmp_path: Path
) -> None:
    make_tar(tar, first=100)
    assert tar.stat().st_size == listed["bytes"]
    with pytest.raises(ShardError, match=r"00007\.tar .*its list says"):
        extract(tar, tmp_path / "store", source=listed)
    assert (tmp_path / "store/tokens/c.0.0.0").stat().st_size == 0
    make_tar(tar)
    assert resumed(tar, tmp_path / "store", listed) == BATCHES
    assert files_of(tmp_path / "store") == expected


def test_work_of_a_wrong_tar_is_thrown_away_when_the_digest_comes_last(
    tar: Path,
    listed: TarDescription,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_tar(tar, first=100)
    is_late = threading.Event()
    monkeypatch.setattr(origin, "describe_tar", lambda path: is_late.wait(60) and describe_tar(path))
    wrong = Acting(lambda: threading.Timer(1.0, is_late.set).start())
    with pytest.raises(ShardError, match="its list says"):
        extract(tar, tmp_path / "store", wrong, source=listed)
    assert wrong.batches == BATCHES
    assert (tmp_path / "store/tokens/c.0.0.0").stat().st_size == 0
    make_tar(tar)
    assert resumed(tar, tmp_path / "store", listed) == BATCHES
    assert files_of(tmp_path / "store") == expected


def test_work_that_was_killed_before_the_digest_counts_if_the_tar_is_right(
    tar: Path, listed: TarDescription, expected: dict[str, str], tmp_path: Path
) -> None:
    kill_before_the_digest(tar, tmp_path / "store", listed)
    batches = resumed(tar, tmp_path / "store", listed)
    assert 0 < len(batches) < len(BATCHES)
    assert files_of(tmp_path / "store") == expected


@pytest.mark.parametrize("keeps_date", [False, True])
def test_work_that_was_killed_before_the_digest_is_thrown_away_if_the_tar_was_repaired(
    tar: Path, listed: TarDescription, expected: dict[str, str], tmp_path: Path, keeps_date: bool
) -> None:
    """With `keeps_date` the two files have the same size and date, as after a copy that keeps dates."""
    make_tar(tar, first=100)
    before = tar.stat()
    kill_before_the_digest(tar, tmp_path / "store", listed)
    make_tar(tar)
    if keeps_date:
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert resumed(tar, tmp_path / "store", listed) == BATCHES
    assert files_of(tmp_path / "store") == expected


def test_wrong_tar_in_between_costs_nothing_that_was_right(
    tar: Path, listed: TarDescription, expected: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(tar, tmp_path / "store", ToyEncoder(dies_at=2), source=listed)
    make_tar(tar, first=100)
    wrong = ToyEncoder()
    with pytest.raises(ShardError, match="its list says"):
        extract(tar, tmp_path / "store", wrong, source=listed)
    assert wrong.batches == []
    make_tar(tar)
    assert resumed(tar, tmp_path / "store", listed) == BATCHES[2:]
    assert files_of(tmp_path / "store") == expected


def test_known_file_is_not_hashed_again(
    tar: Path, listed: TarDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(tar, tmp_path / "store", ToyEncoder(dies_at=2), source=listed)
    hashed: list[Path] = []
    monkeypatch.setattr(origin, "describe_tar", lambda path: hashed.append(path) or describe_tar(path))
    assert resumed(tar, tmp_path / "store", listed) == BATCHES[2:]
    assert not hashed


@pytest.mark.parametrize("is_listed", [True, False])
def test_tar_that_is_exchanged_while_it_is_read_is_an_error(
    tar: Path, listed: TarDescription, expected: dict[str, str], tmp_path: Path, is_listed: bool
) -> None:
    """Written anew in place, so the thread that reads it may meet its short beginning first."""
    source = listed if is_listed else None
    with pytest.raises(ShardError, match=r"00007\.tar (changed|became shorter) while it was read"):
        extract(tar, tmp_path / "store", Acting(lambda: make_tar(tar, first=100)), source=source)
    assert not (tmp_path / "store/zarr.json").exists()
    make_tar(tar)
    resumed(tar, tmp_path / "store", listed)
    assert files_of(tmp_path / "store") == expected


def test_tar_that_is_deleted_while_it_is_read_is_an_error(
    tar: Path, listed: TarDescription, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match=r"00007\.tar cannot be read \(No such file"):
        extract(tar, tmp_path / "store", Acting(tar.unlink), source=listed)
    assert not (tmp_path / "store/zarr.json").exists()


if __name__ == "__main__":

    def slow(path: Path) -> TarDescription:
        time.sleep(60)
        return describe_tar(path)

    origin.describe_tar = slow
    tar_path, store_path, description = sys.argv[1:]
    killing = Acting(lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGKILL)))
    extract(Path(tar_path), Path(store_path), killing, source=json.loads(description))
