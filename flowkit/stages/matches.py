"""Evaluation images that training has seen, or nearly: found by the target's pooled vectors and by digests of files.

The training images are read once, tar by tar; what is kept grows with the evaluated images alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowkit.evaluation.survey import BestMatches, best_within
from flowkit.evaluation.tokens import Array, Integers, evenly_spaced
from flowkit.features.loader import PairedTokens
from flowkit.features.metadata import POOLED
from flowkit.features.records import HalfArray
from flowkit.features.store import TokenStore
from flowkit.progress import Progress
from flowkit.stages.paired import Stores

ROWS = 4096
"""Pooled vectors in memory at once."""
CAPTION_LETTERS = 300


@dataclass(frozen=True)
class Place:
    """An image: where it is in the tars, its first caption, and the digest of its file where that is kept."""

    tar: str
    index: int
    key: str
    caption: str
    digest: str | None


@dataclass(frozen=True)
class Side:
    """The first `images` samples of a data set, and the target's stores and the tars of all of it.

    An object with several views is looked at by its first one: its other views would be the most similar images.
    """

    dataset: str
    pairs: PairedTokens
    images: int
    stores: Stores
    tars: Sequence[str]

    def parts(self) -> Iterator[Part]:
        """Yield the images tar by tar, with one store open at a time."""
        rows = self.pairs.rows
        tar_N, row_N = rows.tar_NV[: self.images, 0], rows.target_row_NV[: self.images, 0]
        tars, starts = np.unique(tar_N, return_index=True)  # pairs are in tar order
        for tar, start, end in zip(tars.tolist(), starts, [*starts[1:], self.images], strict=True):
            numbers, rows_of_tar = np.arange(start, end), row_N[start:end].astype(np.int64)
            yield Part(tar, self.tars[tar], numbers, rows_of_tar, self.stores.open(tar))

    def place(self, tar: int, rows: Integers) -> list[Place]:
        """Return where the images are whose records are `rows` of the target's store of a tar."""
        lines = self.stores.open(tar).samples.iloc[rows]
        columns = (lines[name] for name in ("index", "key", "captions", "image_sha256"))
        return [
            Place(self.tars[tar], int(index), str(key), _shown(captions), _digest(digest))
            for index, key, captions, digest in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class Part:
    """The images of one tar: its number and name, their numbers among those of the side, and their records."""

    number: int
    tar: str
    numbers: Integers
    rows: Integers
    store: TokenStore

    def digests(self) -> pa.Array:
        """Return the digest of each image's file, null where there is none."""
        return self.store.column("image_sha256").take(pa.array(self.rows))

    def vectors(self) -> Iterator[tuple[int, HalfArray]]:
        """Yield (number of the first image, pooled vectors [n, P]) in chunks."""
        for start in range(0, len(self.rows), ROWS):
            yield start, self.store.read_pooled(self.rows[start : start + ROWS])


@dataclass(frozen=True)
class Cosines:
    """Cosine of the best match of each evaluated image [Q], by where it was looked for, and the places in training.

    `as_many`: among evenly spaced training images, one fewer than there are evaluated ones, which is how many `within`
    looks among; that is NaN where there is only one image.
    """

    training: Array
    as_many: Array
    within: Array
    places: Sequence[Place]


@dataclass(frozen=True)
class Search:
    """What was found. `reason` says why there are no cosines; `same_file` is None where no digests are kept."""

    evaluated: Sequence[Place]
    training: int
    as_many: int
    reason: str
    cosines: Cosines | None
    same_file: int | None


def search(training: Side, evaluation: Side) -> Search:
    """Look for every evaluated image among the training images."""
    parts = list(evaluation.parts())
    evaluated = [place for part in parts for place in evaluation.place(part.number, part.rows)]
    reason = _why_not(training, evaluation)
    files = _SameFiles(evaluated)
    spaced = evenly_spaced(training.images, len(evaluated) - 1)
    vectors = None
    if not reason:
        vectors = _Vectors(np.concatenate([chunk for part in parts for _, chunk in part.vectors()]), spaced)
    progress = Progress("look for evaluation images among those of training", training.images, "image")
    for part in training.parts():
        files.add(part)
        if vectors is not None:
            vectors.add(part)
        progress.advance(len(part.rows))
    progress.close()
    cosines = None if vectors is None else vectors.cosines(training)
    return Search(evaluated, training.images, len(spaced), reason, cosines, files.count)


def _shown(captions: Sequence[object]) -> str:
    caption = str(captions[0]) if len(captions) else ""
    return caption if len(caption) <= CAPTION_LETTERS else f"{caption[:CAPTION_LETTERS]}…"


def _digest(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _why_not(*sides: Side) -> str:
    """Why vectors cannot be compared; "" if they can."""
    for side in sides:
        store = side.stores.open(0)
        if POOLED not in store.attributes["arrays"]:
            return f"the stores of {store.attributes['encoder']} hold no pooled vectors"
    return ""


class _SameFiles:
    """Which evaluated images are, byte by byte, training images."""

    def __init__(self, evaluated: Sequence[Place]) -> None:
        self._numbers: dict[str, list[int]] = {}
        for number, place in enumerate(evaluated):
            if place.digest is not None:
                self._numbers.setdefault(place.digest, []).append(number)
        self._wanted = pa.array(list(self._numbers), pa.string())
        self._found: set[int] = set()
        self._has_digests = False

    @property
    def count(self) -> int | None:
        return len(self._found) if self._numbers and self._has_digests else None

    def add(self, part: Part) -> None:
        digests = part.digests()
        self._has_digests |= digests.null_count < len(digests)
        for digest in digests.filter(pc.is_in(digests, value_set=self._wanted)).to_pylist():
            self._found.update(self._numbers[digest])


class _Vectors:
    """The best matches of the evaluated images' pooled vectors [Q, P], filled tar by tar."""

    def __init__(self, vectors_QP: HalfArray, spaced: Integers) -> None:
        self._all, self._as_many = BestMatches(vectors_QP), BestMatches(vectors_QP)
        self._within = best_within(vectors_QP)
        self._spaced = spaced
        self._tar_Q, self._row_Q = (np.full(len(vectors_QP), -1, np.int64) for _ in range(2))

    def add(self, part: Part) -> None:
        is_spaced = np.isin(part.numbers, self._spaced, assume_unique=True)
        for start, vectors_nP in part.vectors():
            found, rows = self._all.add(vectors_nP)
            self._tar_Q[found], self._row_Q[found] = part.number, part.rows[start + rows]
            self._as_many.add(vectors_nP[is_spaced[start : start + len(vectors_nP)]])

    def cosines(self, training: Side) -> Cosines:
        places: dict[int, Place] = {}
        for tar in np.unique(self._tar_Q[self._tar_Q >= 0]).tolist():
            numbers = np.flatnonzero(self._tar_Q == tar)
            places |= zip(numbers.tolist(), training.place(tar, self._row_Q[numbers]), strict=True)
        found = [places[number] for number in range(len(self._within))]
        return Cosines(self._all.cosine_Q, self._as_many.cosine_Q, self._within, found)
