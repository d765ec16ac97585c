"""Token stores under fault: full disks, flipped bits, two writers, foreign and missing files.

As a program it fills disks: `test_features_faults.py limit|mount|inodes FOLDER` writes the same store under ever more
room, each time until it fails and then with room enough, and prints what it saw as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from features_material import (
    ATTRIBUTES,
    BATCH,
    files_of,
    open_writer,
    sample_row,
    write_batches,
)

from flowkit.errors import StoreError
from flowkit.features.int8 import convert_store
from flowkit.features.store import TokenStore
from flowkit.features.verify import verify_store
from flowkit.features.writer import TokenStoreWriter


@pytest.fixture
def store_path(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "00000"))


@pytest.mark.parametrize("seed", range(3))
def test_one_flipped_bit_in_any_file_is_named(pristine: Path, tmp_path: Path, seed: int) -> None:
    """Data, checksums, index, tables, metadata: at random places, and at the first and last byte of each file."""
    generator = random.Random(seed)
    convert_store(TokenStore(pristine), tmp_path / "int8")
    for store in (Path(shutil.copytree(pristine, tmp_path / "half")), tmp_path / "int8"):
        verify_store(store)
        for name in TokenStore(store).files():
            content = (store / name).read_bytes()
            places = [0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(12))]
            for place in places:
                damaged = bytearray(content)
                damaged[place] ^= 1 << generator.randrange(8)
                (store / name).write_bytes(damaged)
                with pytest.raises(StoreError) as caught:
                    verify_store(store)
                assert name in str(caught.value), (name, place)
            (store / name).write_bytes(content)
        verify_store(store)


def test_every_bit_of_the_groups_document_counts(store_path: Path) -> None:
    """Among them are the name of the encoder and the digests of tar and weights, which nothing else repeats."""
    content = (store_path / "zarr.json").read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (store_path / "zarr.json").write_bytes(damaged)
        with pytest.raises(StoreError, match=r"zarr\.json"):
            TokenStore(store_path)


@pytest.mark.parametrize(
    "name", ["tokens/c.0.0.0", "pooled/c.0.0", "samples.parquet", "tokens/zarr.json", "zarr.json"]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(store_path: Path, name: str, share: float) -> None:
    content = (store_path / name).read_bytes()
    (store_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(StoreError, match=name):
        TokenStore(store_path)


@pytest.mark.parametrize(
    "name", ["tokens", "pooled", "tokens/c.0.0.0", "samples.parquet", "rejects.parquet", "zarr.json"]
)
def test_missing_file_is_named(store_path: Path, name: str) -> None:
    path = store_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(StoreError, match=name):
        TokenStore(store_path)


def test_store_of_another_version_or_encoder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("flowkit.features.writer.GROUP_SCHEMA", 1)
        patch.setattr("flowkit.features.metadata.GROUP_SCHEMA", 1)
        write_batches(tmp_path / "old", 1)
    with pytest.raises(
        StoreError, match=r"old/zarr\.json: flowkit_store is 1, expected 2; delete this store"
    ):
        TokenStore(tmp_path / "old")
    write_batches(tmp_path / "new", 1)
    with pytest.raises(StoreError, match=r"new holds tokens of 'toy', expected 'demo-eva'"):
        TokenStore(tmp_path / "new", encoder="demo-eva")


# Two writers

HOLDER = """
import sys, features_material
writer = features_material.open_writer(features_material.Path(sys.argv[1]))
features_material.append_batch(writer, 0)
print("at work", flush=True)
sys.stdin.read()
"""


def test_second_writer_refuses_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "at work\n"
        for restart in (False, True):
            with pytest.raises(StoreError, match="store is being written by another process; wait"):
                TokenStoreWriter(
                    folder, token_shape=(5, 6), pooled_width=4, attributes=ATTRIBUTES, restart=restart
                )
        holder.kill()
    with open_writer(folder) as writer:
        assert writer.next_index == BATCH  # the first one's batch is kept
    assert files_of(write_batches(folder, 3)) == files_of(write_batches(tmp_path / "alone", 3))


def test_writer_that_cannot_start_lets_the_next_one_in(tmp_path: Path) -> None:
    open_writer(tmp_path).close()
    with pytest.raises(StoreError, match="begun with encoder") as caught:
        open_writer(tmp_path, encoder="other")
    with open_writer(tmp_path):
        del caught


# Full disks

TOKEN_SHAPE, SAMPLES = (32, 64), 12


def write_large(folder: Path) -> None:
    """A store of 48 kB of tokens, more than its journal and tables, in batches of two."""
    with TokenStoreWriter(folder, token_shape=TOKEN_SHAPE, pooled_width=8, attributes=ATTRIBUTES) as writer:
        while not writer.finished and writer.next_index < SAMPLES:
            members = range(writer.next_index, writer.next_index + 2)
            tokens = np.stack([np.random.default_rng(m).standard_normal(TOKEN_SHAPE) for m in members])
            pooled = np.ones((2, 8), np.float32)
            writer.append(
                tokens.astype(np.float16), pooled, [sample_row(m) for m in members], next_index=members.stop
            )
        writer.finish()


@contextmanager
def limited(folder: Path, room: int) -> Iterator[Callable[[], object]]:
    """Files may not grow beyond `room` bytes; what is yielded takes the limit away."""
    everything = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, everything[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, everything)


@contextmanager
def mounted(folder: Path, room: int, option: str = "size") -> Iterator[Callable[[], object]]:
    """A file system of `room` bytes, or inodes, in `folder`; what is yielded enlarges it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{option}={room}", "tmpfs", folder], check=True)
    yield lambda: subprocess.run(["mount", "-o", f"remount,{option}=16m", folder], check=True)
    subprocess.run(["umount", folder], check=True)


DISKS = {
    "limit": (limited, (10, 700, 2000, 4000, 9000, 20000, 40000, 49200, 49300)),
    "mount": (mounted, range(8192, 90000, 8192)),
    "inodes": (partial(mounted, option="nr_inodes"), range(1, 13)),
}


def fill_disks(kind: str, folder: Path) -> list[dict[str, object]]:
    """For each amount of room: the error, whether a store was left, and whether the rerun made the right one."""
    write_large(folder / "whole")
    expected, seen = files_of(folder / "whole"), []
    limit, rooms = DISKS[kind]
    for room in rooms:
        place = folder / str(room)
        with limit(place, room) as make_room:
            error = ""
            try:
                write_large(place / "store")
            except StoreError as caught:
                error = str(caught)
            left = (place / "store" / "zarr.json").exists()
            make_room()
            write_large(place / "store")
            seen.append({"error": error, "left": left, "right": files_of(place / "store") == expected})
    return seen


def _run_filling(kind: str, folder: Path) -> list[dict[str, object]]:
    inside = [] if kind == "limit" else ["unshare", "--map-root-user", "--mount"]
    done = subprocess.run(
        [*inside, sys.executable, __file__, kind, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="no right to mount a file system")


@pytest.mark.parametrize(
    "kind",
    ["limit", pytest.param("mount", marks=needs_mounts), pytest.param("inodes", marks=needs_mounts)],
)
def test_full_disk_is_an_error_and_the_rerun_is_right(tmp_path: Path, kind: str) -> None:
    seen = _run_filling(kind, tmp_path)
    assert len(seen) >= 8
    for one in seen:
        assert one["right"], seen
        assert bool(one["error"]) != one["left"], "either an error, or a store"
    errors = [str(one["error"]) for one in seen if one["error"]]
    reason = "File too large" if kind == "limit" else "No space left on device"
    assert len(errors) >= 6
    assert all(
        f"could not be written ({reason}); make room and run this again" in error for error in errors
    ), errors
    named = {
        "limit": ["journal.jsonl", "tokens/c.0.0.0"],
        "mount": ["tokens/c.0.0.0", ".parquet"],
        "inodes": [
            "store ",
            "journal.jsonl",
            "store/tokens ",
            "store/pooled ",
            "tokens/c.0.0.0",
            "pooled/c.0.0",
        ],
    }
    for name in named[kind]:
        assert any(name in error for error in errors), (name, errors)


@pytest.mark.parametrize(
    "name", ["store", "journal.jsonl", "store/tokens", "store/pooled", "tokens/c.0.0.0", "pooled/c.0.0"]
)
def test_quota_at_the_creation_of_a_file_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No quota can be had without rights over the machine: the system's calls answer as they would."""

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).endswith(name):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
            return call(path, *arguments, **options)

        return refuse

    with monkeypatch.context() as patch:
        for call in ("open", "mkdir"):
            patch.setattr(os, call, refusing(getattr(os, call)))
        with pytest.raises(
            StoreError, match=rf"{name} could not be written \(Disk quota exceeded\); make room"
        ):
            write_large(tmp_path / "store")
    write_large(tmp_path / "store")
    write_large(tmp_path / "whole")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


if __name__ == "__main__":
    print(json.dumps(fill_disks(sys.argv[1], Path(sys.argv[2]))))  # noqa: T201
