"""Real images in the report: which ones, as small files, each with the map of where its prediction is wrong.

Best, worst and random images are taken from the gallery that the evaluation chose; the rank printed with
each counts among all evaluated images. One colour scale serves all maps of a report, whose limit is set by
ridge, so they can be compared between runs.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from flowkit.errors import ReportError
from flowkit.report.data import Picture, Pictures
from flowkit.report.details import Array, Details, TokenLayout
from flowkit.report.measures import plain
from flowkit.report.thumbnails import SMALL_SIDE, THUMBNAIL_SIDE, encode_thumbnail

PALETTE = "magma"
SCALE_STEPS = 8


@dataclass(frozen=True)
class Shown:
    """A file that a page shows: its path below the site, the words for it, and its size in pixels."""

    path: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Item:
    """One image of a gallery with its error map and what was measured on it."""

    index: int
    picture: Shown | None
    caption: str
    error_map: Shown
    error: str
    facts: Sequence[str]


@dataclass(frozen=True)
class Group:
    """Images that belong together, such as the worst ones of a run."""

    title: str
    items: Sequence[Item]


class Album:
    """Makes each thumbnail and error map once and keeps the files until the site is written.

    `limit` is the error that gets the brightest colour; larger ones look the same.
    """

    def __init__(self, pictures: Pictures | None, indices: Sequence[int], limit: float) -> None:
        self.files: dict[str, bytes] = {}
        self.limit = limit
        self._made: dict[str, Shown] = {}
        wanted = sorted(set(indices))
        found = pictures(wanted) if pictures and wanted else []
        if pictures and len(found) != len(wanted):
            raise ReportError(
                f"asked for {len(wanted)} pictures and got {len(found)}, check the evaluation tars"
            )
        self._pictures: dict[int, Picture] = dict(zip(wanted, found, strict=False))

    def picture(self, index: int) -> tuple[Shown | None, str]:
        """Return an image and its caption; None and no words when the report was given no pictures."""
        picture = self._pictures.get(index)
        return self._shown(index, "images", THUMBNAIL_SIDE), picture.caption if picture else ""

    def small(self, index: int) -> Shown | None:
        """Return an image as it stands in a row of many; None when the report was given no pictures."""
        return self._shown(index, "images/small", SMALL_SIDE)

    def _shown(self, index: int, folder: str, side: int) -> Shown | None:
        picture, name = self._pictures.get(index), f"{folder}/{index:06d}"
        if picture is None:
            return None
        if name not in self._made:
            data, suffix, size = encode_thumbnail(picture.image, index, side)
            self.files[f"{name}.{suffix}"] = data
            self._made[name] = Shown(f"{name}.{suffix}", f"Image {index}: {picture.caption}", *size)
        return self._made[name]

    def item(self, run: str, details: Details, position: int) -> Item:
        """Return the gallery image at `position` of a run's gallery, with its error map."""
        index = int(details.gallery_index[position])
        values = details.error_map[position]
        layout = TokenLayout.of(values.size, details.views)
        path = f"maps/{run}/{index:06d}.png"
        self.files[path] = draw_map(layout.split(values)[1], self.limit)
        height, width = layout.shape
        shown = Shown(path, map_alt(index, layout, values), width, height)
        picture, caption = self.picture(index)
        error = plain(float(details.error_image[index]))
        return Item(index, picture, caption, shown, error, facts(details, index))


def groups(album: Album, run: str, details: Details, count: int) -> list[Group]:
    """Return best, worst and random images of a run, `count` in all, none of them twice."""
    best, worst, chosen = split(details, count)
    named = (("Best", best), ("Worst", worst), ("Random", chosen))
    return [
        Group(title, [album.item(run, details, at) for at in places]) for title, places in named if places
    ]


def split(details: Details, count: int) -> tuple[list[int], list[int], list[int]]:
    """Return gallery positions of the best, the worst and of others, a third of `count` each.

    The others are the remaining gallery images in index order: the evaluation chose them at random.
    """
    each = max(1, min(count, details.gallery_index.size) // 3)
    errors = np.nan_to_num(details.error_image[details.gallery_index], nan=np.inf)
    order = [int(position) for position in np.argsort(errors, kind="stable")]
    best, worst = order[:each], order[each:][::-1][:each]
    rest = sorted(set(order) - set(best) - set(worst), key=lambda at: int(details.gallery_index[at]))
    return best, worst, rest[:each]


def common_indices(galleries: Sequence[Sequence[Group]], count: int) -> list[int]:
    """Return up to `count` images that are in the gallery of several runs, those in most galleries first."""
    shared = Counter(item.index for found in galleries for group in found for item in group.items)
    least = min(2, len(galleries))
    found = [index for index, times in shared.items() if times >= least]
    return sorted(found, key=lambda index: (-shared[index], index))[:count]


def error_limit(details: Details | None) -> float:
    """Return the error of the brightest colour: 98 of 100 tokens of these galleries lie below it; 1 without any."""
    finite = details.error_map[np.isfinite(details.error_map)] if details else np.array([])
    return max(float(np.quantile(finite, 0.98)), 1e-9) if finite.size else 1.0


def facts(details: Details, index: int) -> list[str]:
    """Return the lines printed with an image."""
    error = float(details.error_image[index])
    rank = int(np.sum(details.error_image < error)) + 1
    count = details.error_image.size
    return [
        f"mean token cosine {plain(float(details.cos_token_mean[index]))}",
        f"error {plain(error)}, rank {rank:,} of {count:,}",
        f"own image at rank {_rank(details.self_rank[index])}, "
        f"caption at rank {_rank(details.t2i_rank[index])}",
    ]


def map_alt(index: int, layout: TokenLayout, values: Array) -> str:
    """Return the words for an error map."""
    if not np.isfinite(values).any():
        return f"Error map of image {index}: not measured."
    largest = int(np.nanargmax(values))
    finite = [plain(float(token)) for token in layout.split(values)[0] if np.isfinite(token)]
    extra = f", class token {', '.join(finite)}" if finite else ""
    return (
        f"Error map of image {index}: mean {plain(float(np.nanmean(values)))}, "
        f"largest {plain(float(values[largest]))} at {layout.name(largest)}{extra}."
    )


def draw_map(patches: Array, limit: float) -> bytes:
    """Return patch errors as a PNG with one pixel per patch; what was not measured is transparent.

    The scale is that of the square root, so that errors far below the limit are still told apart.
    """
    colours = colormaps[PALETTE](np.sqrt(np.clip(np.nan_to_num(patches) / limit, 0, 1)), bytes=True)
    colours[~np.isfinite(patches), 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(colours, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class ColourScale:
    """The legend of error maps: (colour, error) from zero to the limit, and the run whose errors set the limit."""

    steps: Sequence[tuple[str, str]]
    set_by: str


def colour_scale(limit: float, set_by: str) -> ColourScale:
    """Return the legend of maps whose brightest colour is an error of `limit`."""
    steps = [
        (to_hex(colormaps[PALETTE](step / SCALE_STEPS)), plain(limit * (step / SCALE_STEPS) ** 2, 3))
        for step in range(SCALE_STEPS + 1)
    ]
    return ColourScale(steps, set_by)


def _rank(value: float) -> str:
    return f"{int(value):,}" if np.isfinite(value) and value >= 1 else "–"
