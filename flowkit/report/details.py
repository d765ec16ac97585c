"""The arrays behind one evaluated sampler: one value per image, per token position and per gallery image.

Format: `details-<sampler>.npz`, no pickles. N images, T token positions (row-major, CLS first where there
is one), G gallery images. `cos_image` is the cosine of an image's token means, `cos_constant` and
`cos_shuffled` are the same for the constant prediction and for shuffled pairs; `cos_token_mean` is the
mean cosine over its tokens. Errors are squared and in units of the targets' spread: 1 is as bad as the constant
prediction. Ranks count from 1; 0 is not measured.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowkit.errors import ReportError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Details:
    """Arrays of one sampler of one run; see the module header for the letters."""

    cos_image: Array
    cos_token_mean: Array
    cos_constant: Array
    cos_shuffled: Array
    error_image: Array
    self_rank: Array
    t2i_rank: Array
    r2_position: Array
    norm_ratio_position: Array
    error_map: Array
    gallery_index: NDArray[np.int64]


@dataclass(frozen=True)
class TokenLayout:
    """Where the token positions lie: an optional class token, then `rows` x `columns` patches."""

    has_cls: bool
    rows: int
    columns: int

    @classmethod
    def of(cls, tokens: int) -> TokenLayout:
        """Return the layout of `tokens` positions: a square, a class token and a square, or else one row."""
        for has_cls in (False, True):
            side = math.isqrt(max(tokens - has_cls, 0))
            if side and side * side == tokens - has_cls:
                return cls(has_cls, side, side)
        return cls(False, 1, tokens)

    def split(self, values: Array) -> tuple[float | None, Array]:
        """Return the class token's value (None without one) and the patches as [rows, columns]."""
        patches = values[1:] if self.has_cls else values
        return (float(values[0]) if self.has_cls else None), patches.reshape(self.rows, self.columns)

    def name(self, position: int) -> str:
        """Return what to call a position, counting rows and columns from 1."""
        if self.has_cls and position == 0:
            return "CLS"
        row, column = divmod(position - self.has_cls, self.columns)
        return f"row {row + 1}, column {column + 1}"


def read_details(path: Path) -> Details:
    """Read one `details-<sampler>.npz`; raises `ReportError` naming the file and the array that is wrong."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} cannot be read ({error}), evaluate the run again") from error
    names = [item.name for item in fields(Details)]
    if missing := [name for name in names if name not in arrays]:
        raise ReportError(f"{path} lacks the arrays {', '.join(missing)}, evaluate the run again")
    values = {name: arrays[name].astype(np.float64) for name in names if name != "gallery_index"}
    details = Details(**values, gallery_index=arrays["gallery_index"].astype(np.int64))
    _check_shapes(details, path)
    return details


def _check_shapes(details: Details, path: Path) -> None:
    images = details.cos_image.shape[:1]
    tokens = details.r2_position.shape[:1]
    gallery = details.gallery_index.shape[:1]
    per_image = (
        "cos_image",
        "cos_token_mean",
        "cos_constant",
        "cos_shuffled",
        "error_image",
        "self_rank",
        "t2i_rank",
    )
    expected = {
        **dict.fromkeys(per_image, images),
        **dict.fromkeys(("r2_position", "norm_ratio_position"), tokens),
        "gallery_index": gallery,
        "error_map": gallery + tokens,
    }
    for name, shape in expected.items():
        if getattr(details, name).shape != shape:
            found = getattr(details, name).shape
            raise ReportError(f"{path}: {name} has shape {found}, expected {shape}; evaluate the run again")
    index = details.gallery_index
    if index.size and (index.min() < 0 or index.max() >= images[0]):
        raise ReportError(
            f"{path}: gallery_index reaches {index.max()}, there are {images[0]} images; evaluate again"
        )
