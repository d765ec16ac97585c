"""What the survey of the data found: the records that stage `survey` writes and the data page reads.

    survey.json     the records below; a number that is not finite is null
    arrays.npz      channels [D]: <role>-<use>-{mean, spread, kurtosis}; histograms: norms-<role>-<kind>-{edges, <use>};
                    cosines of the best match of every evaluated image: match-{training, as-many, within}
    matches.csv     the best match of every evaluated image
    thumbnails/     pictures of refused images and of the most similar pairs

A role is "source" or "target", a use is "training" or "evaluation", a kind is a sort of token.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from flowkit.errors import ReportError

SURVEY_FILE, ARRAYS_FILE, MATCHES_FILE, THUMBNAILS = "survey.json", "arrays.npz", "matches.csv", "thumbnails"
SCHEMA = 1
ROLES = ("source", "target")
USES = ("training", "evaluation")
PER_CHANNEL = ("mean", "spread", "kurtosis")
SEARCHED = ("training", "as-many", "within")
"""Where best matches were looked for: among all training images, among fewer, among the evaluated ones themselves."""
THRESHOLDS = (0.90, 0.95, 0.97, 0.99)
"""Cosines; above .97 an image counts as a near-duplicate."""
LARGEST_PERCENT = (0, 1, 10)
"""How many of the largest channels have their share of the variance shown; 0 is a single one."""
REMEDY = "run stage survey again"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EncoderCount:
    """What one encoder made of a data set."""

    role: str
    encoder: str
    storage: str
    encoded: int
    refused: int


@dataclass(frozen=True)
class DatasetCount:
    """A data set from its tars to its pairs.

    `limit` is how many images were taken of each tar at most, `refused` how many images one encoder or both refused,
    `fell_out` why images are in no pair, `evaluated` how many of the first pairs the evaluation judges.
    """

    name: str
    kind: str
    use: str
    tars: int
    held_out_tars: int
    limit: int | None
    encoders: Sequence[EncoderCount]
    refused: int
    pairs: int
    held_out_pairs: int
    evaluated: int
    fell_out: Mapping[str, int]


@dataclass(frozen=True)
class RefusedCount:
    """How many images of a data set the encoders refused for one reason."""

    dataset: str
    reason: str
    source: int
    target: int


@dataclass(frozen=True)
class Thumbnail:
    """A picture: its file below the folder of thumbnails and its size in pixels; without one, the words say why."""

    file: str = ""
    width: int = 0
    height: int = 0
    words: str = ""


@dataclass(frozen=True)
class Refused:
    """One image that an encoder, or both, refused; `reasons` by role."""

    dataset: str
    tar: str
    key: str
    reasons: Mapping[str, str]
    thumbnail: Thumbnail


@dataclass(frozen=True)
class Channel:
    """One channel by its number."""

    number: int
    mean: float
    spread: float
    offset: float | None
    kurtosis: float | None
    share: float


@dataclass(frozen=True)
class ChannelSummary:
    """The channels of one role and use: over how many tokens, and what stands out.

    `top_share` is the share of the variance that so many channels hold together, `top` are those of the largest
    variance, `largest_offset` the one whose mean is the most spreads away from zero.
    """

    role: str
    use: str
    images: int
    of_images: int
    tokens: int
    channels: int
    not_finite: int
    constant: int
    massive: int
    median_spread: float
    median_kurtosis: float | None
    largest_kurtosis: float | None
    largest_offset: Channel | None
    top_share: Mapping[int, float]
    top: Sequence[Channel]


@dataclass(frozen=True)
class NormSummary:
    """Lengths of the tokens of one role, use and kind."""

    role: str
    use: str
    kind: str
    tokens: int
    low: float
    median: float
    high: float
    largest: float


@dataclass(frozen=True)
class Above:
    """How many evaluated images have a best match above a cosine, by where it was looked for."""

    cosine: float
    training: int
    as_many: int
    within: int


@dataclass(frozen=True)
class Found:
    """One image of a similar pair."""

    tar: str
    key: str
    caption: str
    thumbnail: Thumbnail


@dataclass(frozen=True)
class SimilarPair:
    """An evaluated image, its best match among the training images, and how similar the evaluation set is to it."""

    cosine: float
    within: float | None
    is_same_file: bool
    evaluation: Found
    training: Found


@dataclass(frozen=True)
class Matches:
    """Evaluated images that training has seen, or nearly; `reason` says why nothing was measured.

    `as_many` is the number of evenly spaced training images among which the comparison with the evaluation set is fair.
    `same_file` counts evaluated images whose very file is a training image; None where no digests are kept.
    """

    reason: str = ""
    evaluated: int = 0
    training: int = 0
    as_many: int = 0
    same_file: int | None = None
    above: Sequence[Above] = ()
    pairs: Sequence[SimilarPair] = ()


@dataclass(frozen=True)
class Findings:
    """Everything in `survey.json`."""

    schema: int
    layout: str
    datasets: Sequence[DatasetCount]
    refused: Sequence[RefusedCount]
    examples: Sequence[Refused]
    channels: Sequence[ChannelSummary]
    norms: Sequence[NormSummary]
    matches: Matches

    def dataset(self, use: str) -> DatasetCount:
        """The data set of a use."""
        return next(one for one in self.datasets if one.use == use)

    @property
    def array_names(self) -> set[str]:
        """What must be in `arrays.npz` beside these records."""
        names = {channel_array(one.role, one.use, name) for one in self.channels for name in PER_CHANNEL}
        names |= {norm_array(one.role, one.kind, name) for one in self.norms for name in ("edges", one.use)}
        return names if self.matches.reason else names | {match_array(name) for name in SEARCHED}


@dataclass(frozen=True)
class Survey:
    """A survey that was read: its records, its arrays, and where its pictures are."""

    found: Findings
    arrays: Mapping[str, Array]
    folder: Path

    def picture(self, thumbnail: Thumbnail) -> bytes:
        """Read a picture; raises `ReportError` if its file is missing or would lie elsewhere."""
        path = self.folder / THUMBNAILS / thumbnail.file
        if path.name != thumbnail.file:
            names = f"{self.folder / SURVEY_FILE} names the picture {thumbnail.file!r}"
            raise ReportError(f"{names}, expected the name of a file; {REMEDY}")
        return _read_bytes(path)

    @property
    def matches_csv(self) -> bytes:
        """The best match of every evaluated image, as CSV."""
        return _read_bytes(self.folder / MATCHES_FILE)


def channels_in(percent: int, channels: int) -> int:
    """Return how many of some channels are so many percent, at least one."""
    return max(1, channels * percent // 100)


def channel_array(role: str, use: str, name: str) -> str:
    """Name of an array of channels; `name` is one of `PER_CHANNEL`."""
    return f"{role}-{use}-{name}"


def norm_array(role: str, kind: str, name: str) -> str:
    """Name of an array of a histogram; `name` is "edges" or a use."""
    return f"norms-{role}-{kind}-{name}"


def match_array(name: str) -> str:
    """Name of an array of cosines; `name` is one of `SEARCHED`."""
    return f"match-{name}"


def read_survey(folder: Path) -> Survey:
    """Read what stage `survey` committed to `folder`; raises `ReportError` naming the file and the remedy."""
    path = folder / SURVEY_FILE
    try:
        found = TypeAdapter(Findings).validate_json(_read_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ReportError(f"{path} is no survey: {where}: {first['msg']}; {REMEDY}") from None
    if found.schema != SCHEMA:
        raise ReportError(f"{path} has schema {found.schema}, expected {SCHEMA}; {REMEDY}")
    arrays = _read_arrays(folder / ARRAYS_FILE)
    if missing := sorted(found.array_names - arrays.keys()):
        raise ReportError(f"{folder / ARRAYS_FILE} lacks the arrays {', '.join(missing)}; {REMEDY}")
    return Survey(found, arrays, folder)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path} cannot be read ({error.strerror}), {REMEDY}") from error


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name].astype(np.float64) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} cannot be read ({error}), {REMEDY}") from error
