"""One tensor [N, ...] as a file that grows row by row, though its head must tell N: a row may turn out not to be whole.

    safetensors   the head has its room from the start and is written last; spaces fill what is left of it
    npz           the rows go into a file beside it and are then packed behind a head that knows N, uncompressed

Both hold the same float32 numbers in C order. The same rows give the same bytes: no time or machine is in a file.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from flowkit.features.stream import disk_errors

Format = Literal["safetensors", "npz"]
TENSOR = "embeddings"
"""What the tensor is called in every file."""
COPY_BYTES = 2**23
ALIGNMENT = 64
FIRST_ZIP_DAY = (1980, 1, 1, 0, 0, 0)


class TensorFile:
    """A float32 tensor that is written row by row; `finish` makes it a file of the format, else it is deleted.

    Raises `StoreError` where the disk is full.
    """

    def __init__(self, folder: Path, file_format: Format, row_shape: tuple[int, ...], most_rows: int) -> None:
        self.path = folder / f"{TENSOR}.{file_format}"
        self._format, self._row_shape = file_format, row_shape
        self._rows = 0
        self._room = len(_safetensors_head((most_rows, *row_shape), room=0))
        self._growing = self.path if file_format == "safetensors" else folder / f".{TENSOR}.rows"
        with disk_errors(self._growing):
            self._file = self._growing.open("wb", buffering=0)
            if file_format == "safetensors":
                self._file.seek(self._room)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            self._growing.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows [n, *row_shape], C-contiguous."""
        if rows.shape[1:] != self._row_shape or rows.dtype != np.float32 or not rows.flags.c_contiguous:
            raise ValueError(
                f"rows are {rows.dtype} {rows.shape}, expected C-contiguous float32 {self._row_shape}"
            )
        left = memoryview(rows.data).cast("B") if rows.size else memoryview(b"")
        with disk_errors(self._growing):
            while left:
                left = left[self._file.write(left) :]
        self._rows += len(rows)

    def finish(self) -> tuple[int, ...]:
        """Make the file whole and return the shape of the tensor."""
        shape = (self._rows, *self._row_shape)
        with disk_errors(self.path):
            if self._format == "safetensors":
                self._file.seek(0)
                self._file.write(_safetensors_head(shape, room=self._room))
            else:
                self._file.close()
                _pack(self.path, self._growing, shape)
                self._growing.unlink()
        return shape


def _safetensors_head(shape: tuple[int, ...], *, room: int) -> bytes:
    """Return length and description, filled up with spaces to `room` bytes, or to a multiple of the alignment."""
    end = int(np.prod(shape, dtype=np.int64)) * 4
    described = {TENSOR: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, end]}}
    text = json.dumps(described, separators=(",", ":")).encode()
    whole = room or -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT
    return (whole - 8).to_bytes(8, "little") + text.ljust(whole - 8)


def _pack(path: Path, rows: Path, shape: tuple[int, ...]) -> None:
    """Write an uncompressed npz of one array whose numbers lie in the file `rows`."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        member = zipfile.ZipInfo(f"{TENSOR}.npy", date_time=FIRST_ZIP_DAY)
        with archive.open(member, "w", force_zip64=True) as file, rows.open("rb") as numbers:
            file.write(head.getvalue())
            shutil.copyfileobj(numbers, file, COPY_BYTES)
