"""The arrays behind one evaluated sampler: one value per image, per token position and per gallery image.

Format: `details-<sampler>.npz`, no pickles. N images, T token positions (row-major, CLS first where there
is one), G gallery images. `cos_image` is the cosine of an image's token means, `cos_constant` and
`cos_shuffled` are the same for the constant prediction and for shuffled pairs; `cos_token_mean` is the
mean cosine over its tokens. `component_*` are figures along the principal components of the true tokens,
largest variance first. `neighbours_*` are rows of the images nearest to each gallery image's true and
predicted vector, `query_*` the images whose first captions were asked and those that they find among true
and predicted embeddings. Errors are squared and in units of the targets' spread: 1 is as bad as the constant
prediction. Ranks count from 1; 0 is not measured. `spread_image` weighs the images of an R2, and `without_<metric>` is
a figure without each tenth of the images: both tell how sure a difference between two runs is, and may be missing.
Where an image is an object of several `views`, its positions are those of view after view.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowkit.errors import ReportError

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
ROWS_OF_IMAGES = (
    *("gallery_index", "neighbours_true", "neighbours_predicted"),
    *("query_index", "query_true", "query_predicted"),
)
"""Arrays that name images by their row."""
WITHOUT = "without_"


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
    cos_position: Array
    r2_position: Array
    norm_ratio_position: Array
    component_share: Array
    component_ratio: Array
    component_r2: Array
    error_map: Array
    gallery_index: Rows
    neighbours_true: Rows
    neighbours_predicted: Rows
    query_index: Rows
    query_true: Rows
    query_predicted: Rows
    spread_image: Array | None = None
    without: Mapping[str, Array] = field(default_factory=dict)
    """By metric."""
    views: int = 1
    """Of an object, whose token positions follow each other."""


@dataclass(frozen=True)
class TokenLayout:
    """Where the token positions lie: in each view an optional class token, then `rows` x `columns` patches.

    Several views are drawn as tiles, `across` of them side by side.
    """

    has_cls: bool
    rows: int
    columns: int
    views: int = 1

    @classmethod
    def of(cls, tokens: int, views: int = 1) -> TokenLayout:
        """Return the layout of `tokens` positions.

        Those of a view are a square, a class token and a square, or else one row.
        """
        of_view = tokens // views
        for has_cls in (False, True):
            side = math.isqrt(max(of_view - has_cls, 0))
            if side and side * side == of_view - has_cls:
                return cls(has_cls, side, side, views)
        return cls(False, 1, of_view, views)

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return tiles_across(self.views)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of all tiles together."""
        return -(-self.views // self.across) * self.rows, self.across * self.columns

    def split(self, values: Array) -> tuple[Array, Array]:
        """Return the class tokens' values [views], none without one, and the patches as drawn, NaN beside the tiles."""
        by_view = values.reshape(self.views, -1)
        drawn = np.full(self.shape, np.nan)
        for view, patches in enumerate(by_view[:, int(self.has_cls) :]):
            down, right = divmod(view, self.across)
            tile = np.s_[
                down * self.rows : (down + 1) * self.rows, right * self.columns : (right + 1) * self.columns
            ]
            drawn[tile] = patches.reshape(self.rows, self.columns)
        return by_view[:, 0] if self.has_cls else np.empty(0), drawn

    def name(self, position: int) -> str:
        """Return what to call a position, counting views, rows and columns from 1."""
        view, place = divmod(position, self.rows * self.columns + self.has_cls)
        of_view = f"view {view + 1}, " if self.views > 1 else ""
        if self.has_cls and place == 0:
            return f"{of_view}CLS"
        row, column = divmod(place - self.has_cls, self.columns)
        return f"{of_view}row {row + 1}, column {column + 1}"


def tiles_across(views: int) -> int:
    """Return how many of the views of an object are drawn side by side."""
    return math.isqrt(views - 1) + 1


def read_details(path: Path) -> Details:
    """Read one `details-<sampler>.npz`; raises `ReportError` naming the file and the array that is wrong."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} cannot be read ({error}), evaluate the run again") from error
    names = [
        item.name for item in fields(Details) if item.default is MISSING and item.default_factory is MISSING
    ]
    if missing := [name for name in names if name not in arrays]:
        raise ReportError(f"{path} lacks the arrays {', '.join(missing)}, evaluate the run again")
    spread = arrays.get("spread_image")
    details = Details(
        **{name: arrays[name].astype(np.int64 if name in ROWS_OF_IMAGES else np.float64) for name in names},
        spread_image=None if spread is None else spread.astype(np.float64),
        without={
            name.removeprefix(WITHOUT): values.astype(np.float64)
            for name, values in sorted(arrays.items())
            if name.startswith(WITHOUT)
        },
        views=int(arrays.get("views", 1)),
    )
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
        **dict.fromkeys(("cos_position", "r2_position", "norm_ratio_position"), tokens),
        **dict.fromkeys(("component_ratio", "component_r2"), details.component_share.shape),
        "gallery_index": gallery,
        "error_map": gallery + tokens,
    }
    if details.spread_image is not None:
        expected["spread_image"] = images
    if details.views < 1 or tokens[0] % details.views:
        raise ReportError(
            f"{path}: {tokens[0]} positions are not those of {details.views} views; evaluate again"
        )
    for name, shape in expected.items():
        if getattr(details, name).shape != shape:
            found = getattr(details, name).shape
            raise ReportError(f"{path}: {name} has shape {found}, expected {shape}; evaluate the run again")
    counts = {"neighbours": len(details.gallery_index), "query": len(details.query_index)}
    for name in ROWS_OF_IMAGES:
        rows, expected_rows = getattr(details, name), counts.get(name.partition("_")[0])
        if expected_rows is not None and len(rows) != expected_rows:
            raise ReportError(
                f"{path}: {name} has shape {rows.shape}, expected {expected_rows} rows; evaluate again"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= images[0]):
            raise ReportError(
                f"{path}: {name} reaches {rows.max()}, there are {images[0]} images; evaluate again"
            )
