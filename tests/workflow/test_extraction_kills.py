"""kill -9 at twenty random moments of an extraction, then the same command again: the same bytes.

As a program it is the extraction: `test_extraction_kills.py TAR STORE` prints a line when the encoder is loaded and
the work begins, and one at the end.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowkit.features.extraction import extract_tar

MEMBERS, BATCH = 600, 8
KILLS = 20
BEGUN, ENDED = b"begun\n", b"ended\n"


def make_tar(path: Path) -> Path:
    """Pictures of noise; every eleventh is damaged, so that batches have gaps."""
    with tarfile.open(path, "w") as tar:
        for number in range(MEMBERS):
            pixels = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            image = buffer.getvalue()[: 3000 if number % 11 == 5 else None]
            for extension, content in (("jpg", image), ("txt", f"noise {number}".encode())):
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def extract(tar: Path, store: Path) -> None:
    from flowkit.encoders.registry import load_encoder

    encoder = load_encoder("demo-vit")
    os.write(1, BEGUN)
    extract_tar(tar, encoder, store, batch_size=BATCH, attributes={}, decode_threads=2)
    os.write(1, ENDED)


def files_of(store: Path) -> dict[str, str]:
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def killed_after(seconds: float, tar: Path, store: Path) -> bool:
    """Start the extraction, kill it `seconds` after its work began; False if it had ended by then."""
    command = [sys.executable, __file__, str(tar), str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == BEGUN
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    return rest != ENDED


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_extraction_leaves_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "00000.tar")
    begin = time.monotonic()
    extract(tar, tmp_path / "whole")
    seconds = time.monotonic() - begin
    whole = files_of(tmp_path / "whole")
    dice, kills, stores = random.Random(20), 0, 0
    while kills < KILLS:
        store = tmp_path / f"store-{stores}"
        stores += 1
        while kills < KILLS and killed_after(dice.uniform(0, seconds / 4), tar, store):
            kills += 1
        if kills == KILLS:
            extract(tar, store)
        assert files_of(store) == whole


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
