"""What the tests of token stores share: small stores with known values, tiny images, plain tars.

As a program it writes a store until somebody kills it: `features_material.py FOLDER BATCHES`.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowkit.features.tables import RejectRow, SampleRow
from flowkit.features.writer import TokenStoreWriter

TOKEN_SHAPE, POOLED_WIDTH, BATCH = (5, 6), 4, 4
ATTRIBUTES = {"encoder": "toy", "has_cls": True, "source": {"name": "00000.tar", "sha256": "ab"}}


def token_values(index: int) -> NDArray[np.float16]:
    """The tokens of member `index`, different in every element and every member."""
    return np.random.default_rng(index).standard_normal(TOKEN_SHAPE).astype(np.float16)


def pooled_values(index: int) -> NDArray[np.float16]:
    return np.random.default_rng([index, 1]).standard_normal(POOLED_WIDTH).astype(np.float16)


def sample_row(index: int) -> SampleRow:
    return SampleRow(
        index, f"{index:04d}", (f"caption ü {index}",), 32, 24, f"{index:064x}", json.dumps({"n": index})
    )


def is_rejected(index: int) -> bool:
    """Every seventh member is undecodable, so batches have gaps."""
    return index % 7 == 3


BATCHES = 5
ORIGIN = {"weights_sha256": "1" * 64, "source": {"name": "00000.tar", "sha256": "2" * 64}}
KEPT = sum(not is_rejected(index) for index in range(BATCHES * BATCH))


def open_writer(folder: Path, **attributes: object) -> TokenStoreWriter:
    return TokenStoreWriter(
        folder, token_shape=TOKEN_SHAPE, pooled_width=POOLED_WIDTH, attributes={**ATTRIBUTES, **attributes}
    )


def append_batch(writer: TokenStoreWriter, batch: int) -> None:
    """Append the members [batch * BATCH, (batch + 1) * BATCH)."""
    members = range(batch * BATCH, (batch + 1) * BATCH)
    kept = [index for index in members if not is_rejected(index)]
    writer.append(
        np.stack([token_values(index) for index in kept]).astype(np.float32),
        np.stack([pooled_values(index) for index in kept]).astype(np.float32),
        [sample_row(index) for index in kept],
        rejects=[RejectRow(i, f"{i:04d}", "image undecodable: torn") for i in members if is_rejected(i)],
        next_index=members.stop,
    )


def write_batches(folder: Path, batches: int, *, pause_seconds: float = 0.0, **attributes: object) -> Path:
    """Write the rest of a store of `batches` batches and finish it."""
    with open_writer(folder, **attributes) as writer:
        while not writer.finished and writer.next_index < batches * BATCH:
            append_batch(writer, writer.next_index // BATCH)
            time.sleep(pause_seconds)
        writer.finish()
    return folder


def files_of(folder: Path) -> dict[str, str]:
    """Relative name -> digest of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def png(index: int, size: int = 8) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A plain tar of `members`, name -> content."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


if __name__ == "__main__":
    write_batches(Path(sys.argv[1]), int(sys.argv[2]), pause_seconds=0.002)
