"""What a translated image is near to, in pictures: its neighbours, and what captions find.

Each strip stands twice, with true vectors and with predicted ones; what both have in common is counted, so that
a reader sees at once where translation changes what is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowkit.report.details import Details, Rows
from flowkit.report.gallery import Album, Shown, split

EXAMPLES = 2
"""Images of each kind - best, worst, random - whose neighbours are shown."""
QUERIES = 6


@dataclass(frozen=True)
class Strip:
    """What was asked, and the images found with true and with predicted vectors, nearest first."""

    title: str
    asked: Shown | None
    words: str
    true: Sequence[Shown]
    predicted: Sequence[Shown]
    common: int
    """How many images are in both."""
    own: str
    """Where the image of the caption itself was found; empty for neighbours."""


def indices(details: Details) -> set[int]:
    """Return the images that the strips of one entry show."""
    chosen = [at for _, at in _examples(details)]
    rows = [
        *(
            details.gallery_index[chosen],
            details.neighbours_true[chosen],
            details.neighbours_predicted[chosen],
        ),
        *(part[:QUERIES] for part in (details.query_index, details.query_true, details.query_predicted)),
    ]
    return {int(row) for part in rows for row in part.ravel()}


def neighbour_strips(album: Album, details: Details) -> list[Strip]:
    """Return the nearest true images of some gallery images; none when the report was given no pictures."""
    strips = []
    for kind, at in _examples(details):
        picture, caption = album.picture(int(details.gallery_index[at]))
        found = details.neighbours_true[at], details.neighbours_predicted[at]
        strips.append(_strip(album, kind, picture, caption, found, ""))
    return [strip for strip in strips if strip.asked]


def query_strips(album: Album, details: Details) -> list[Strip]:
    """Return what some captions find; none without captions or pictures."""
    strips = []
    for number, row in enumerate(details.query_index[:QUERIES]):
        picture, caption = album.picture(int(row))
        found = details.query_true[number], details.query_predicted[number]
        places = [_place(rows, int(row)) for rows in found]
        own = f"{places[0]} with true and {places[1]} with predicted tokens"
        own = f"{places[0]} with both" if places[0] == places[1] else own
        strips.append(_strip(album, "", picture, caption, found, f"its own image {own}"))
    return [strip for strip in strips if strip.asked]


def _strip(
    album: Album, title: str, asked: Shown | None, words: str, found: tuple[Rows, Rows], own: str
) -> Strip:
    true, predicted = ([shown for row in rows if (shown := album.small(int(row)))] for rows in found)
    return Strip(title, asked, words, true, predicted, int(np.isin(*found).sum()), own)


def _place(rows: Rows, row: int) -> str:
    at = np.flatnonzero(rows == row)
    return f"at place {at[0] + 1}" if at.size else f"not among {len(rows)}"


def _examples(details: Details) -> list[tuple[str, int]]:
    """Positions in the gallery of some best, worst and random images, each with its kind."""
    kinds = ("best", "worst", "random")
    found = split(details, len(details.gallery_index))
    return [(kind, at) for kind, places in zip(kinds, found, strict=True) for at in places[:EXAMPLES]]
