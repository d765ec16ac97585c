"""The data page: what the survey of the data found, in words, tables, figures and pictures.

`data_page` returns the page and the files beside it. What is said of near-duplicates is decided here, from the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowkit.report.data_tables import (
    channels_table,
    cosine_text,
    counts_table,
    lost_table,
    norms_table,
    refused_table,
    thresholds_table,
    top_table,
)
from flowkit.report.gallery import Shown
from flowkit.report.measures import plain
from flowkit.report.rendering import Files, Renderer, figure_files
from flowkit.report.survey import Above, Found, Matches, Refused, SimilarPair, Survey, Thumbnail, read_survey
from flowkit.report.survey_figures import NEAR_DUPLICATE, channel_spreads, match_histogram, norm_histogram

PICTURES = "images/survey"
DATA_FIGURES = "_data"
"""Their folder; no run can be called so."""
FIGURES = f"figures/{DATA_FIGURES}"
MATCHES = "data/matches.csv"
MEANS_LITTLE = 0.1
"""Share of evaluated images with a near-duplicate among themselves from which on that mark tells nothing."""


@dataclass(frozen=True)
class RefusedItem:
    """One refused image as the page shows it; `words` stand where it cannot be drawn."""

    picture: Shown | None
    words: str
    key: str
    place: str
    reasons: Sequence[str]


@dataclass(frozen=True)
class Half:
    """One image of a similar pair as the page shows it."""

    use: str
    picture: Shown | None
    words: str
    caption: str
    place: str


@dataclass(frozen=True)
class PairItem:
    """Two similar images as the page shows them."""

    head: str
    facts: Sequence[str]
    halves: Sequence[Half]


def data_page(render: Renderer, survey_folder: Path | None, missing: str) -> Files:
    """Return the data page and its files; `survey_folder` is what stage `survey` committed (it holds survey.json).

    Without it the page says so and shows `missing`, the command that makes it. Raises `ReportError` if the survey is
    damaged.
    """
    if survey_folder is None:
        return {"data.html": render("data.html.j2", survey=None, missing=missing)}
    survey = read_survey(survey_folder)
    found = survey.found
    counts, counted = figure_files(FIGURES, [channel_spreads(survey)])
    norms, normed = figure_files(FIGURES, [norm_histogram(survey, role) for role in ("source", "target")])
    is_compared = not found.matches.reason
    matched, matches = figure_files(FIGURES, [match_histogram(survey)] if is_compared else [])
    page = render(
        "data.html.j2",
        survey=found,
        missing=missing,
        lede=lede(survey),
        counts=counts_table(found.datasets),
        lost=lost_table(found.datasets),
        refused=refused_table(survey),
        examples=[_refused_item(one) for one in found.examples],
        sampled=sampled(survey),
        channels=channels_table(found.channels),
        top_channels=[(one, top_table(one)) for one in found.channels if one.use == "training"],
        channel_figures=counted,
        norms=norms_table(survey),
        norm_figures=normed,
        matches_words=matches_words(found.matches),
        thresholds=thresholds_table(found.matches) if is_compared else None,
        match_figures=matches,
        similar=[_pair_item(pair) for pair in found.matches.pairs],
        matches_csv=MATCHES,
    )
    return {"data.html": page, MATCHES: survey.matches_csv} | counts | norms | matched | _pictures(survey)


def lede(survey: Survey) -> str:
    """Return the first sentences: how many pairs there are, and how many images were refused."""
    training, evaluation = (survey.found.dataset(use) for use in ("training", "evaluation"))
    trained = training.pairs - training.held_out_pairs
    held_out = f" ({training.held_out_pairs:,} more are held out)" if training.held_out_pairs else ""
    images = sum(one.encoders[0].encoded + one.encoders[0].refused for one in survey.found.datasets)
    refused = sum(one.refused for one in survey.found.datasets)
    fate = (
        f"{refused:,} of {images:,} images were refused"
        if refused
        else f"None of the {images:,} images was refused"
    )
    evaluated = f"the first {evaluation.evaluated:,} of {evaluation.pairs:,} pairs"
    if evaluation.evaluated == evaluation.pairs:
        evaluated = f"all {evaluation.pairs:,} pairs"
    return (
        f"{trained:,} pairs of “{training.name}” are trained on{held_out}, {evaluated} of “{evaluation.name}” are "
        f"evaluated. {fate}."
    )


def sampled(survey: Survey) -> str:
    """Return on how many images channels and norms were measured."""
    parts = [
        f"{one.images:,} of {one.of_images:,} {one.use} images" if one.images < one.of_images
        else f"all {one.images:,} {one.use} images"
        for one in survey.found.channels if one.role == "source"
    ]  # fmt: skip
    layout = {"cls_patches": "class token and patches", "patches": "patches", "pooled": "pooled vectors"}
    spaced = ", evenly spaced" if any(one.images < one.of_images for one in survey.found.channels) else ""
    lost = sum(one.not_finite for one in survey.found.channels)
    finite = f"{lost:,} values are not finite; their tokens are left out" if lost else "Every value is finite"
    tokens = f"{layout[survey.found.layout]}, as training reads them"
    return f"Measured on {' and '.join(parts)}{spaced}: {tokens}. {finite}."


def matches_words(matches: Matches) -> list[str]:
    """Return what the numbers say of evaluation images that training has seen, a paragraph each."""
    words = [_of_files(matches)]
    if matches.reason:
        return [*words, f"Near-duplicates were not measured: {matches.reason}."]
    near = next(one for one in matches.above if one.cosine == NEAR_DUPLICATE)
    mark, evaluated = cosine_text(near.cosine), f"{matches.evaluated:,} evaluated images"
    words.append(
        f"{_count(near.training)} of {evaluated} {_have(near.training)} a training image with a cosine above {mark} "
        "by the target encoder’s pooled vectors, the usual mark of a near-duplicate."
    )
    if matches.evaluated > 1:
        words.append(
            f"What that mark means for this encoder: {_count(near.within).lower()} of {evaluated} "
            f"{_have(near.within)} another evaluated image above it. Each looks among {matches.evaluated - 1:,} of "
            f"them; among {matches.as_many:,} evenly spaced training images, {_count(near.as_many).lower()} "
            f"{_have(near.as_many)} one. {_meaning(near, matches.evaluated)}"
        )
    return words


def _of_files(matches: Matches) -> str:
    if matches.same_file is None:
        return "Whether evaluated images are, byte by byte, training images is not known: no digests of files are kept."
    if matches.same_file == 0:
        return f"None of the {matches.evaluated:,} evaluated images is, byte by byte, a training image."
    if matches.same_file == 1:
        return f"One of {matches.evaluated:,} evaluated images is, byte by byte, a training image."
    return (
        f"{matches.same_file:,} of {matches.evaluated:,} evaluated images are, byte by byte, training images."
    )


def _meaning(near: Above, evaluated: int) -> str:
    share = near.within / evaluated
    if share > MEANS_LITTLE:
        return (
            "Where so many images of one set are that near to each other, the mark does not tell a duplicate from a "
            "picture of the same sort: judge by the pairs below."
        )
    if near.within:
        return "The evaluation set has near-duplicates of its own, or pictures that this encoder cannot tell apart."
    return "Nothing in the evaluation set is that near to anything else in it, so what is above it deserves a look."


def _count(number: int) -> str:
    return {0: "None", 1: "One"}.get(number, f"{number:,}")


def _have(number: int) -> str:
    return "has" if number < 2 else "have"


def _refused_item(one: Refused) -> RefusedItem:
    alt = f"Refused image {one.key}, as far as it can be decoded"
    reasons = list(dict.fromkeys(one.reasons.values()))
    if len(reasons) > 1:
        reasons = [f"{role}: {reason}" for role, reason in one.reasons.items()]
    else:
        reasons = [f"{reasons[0]} ({' and '.join(one.reasons)})"]
    words = one.thumbnail.words
    said = "" if words in one.reasons.values() else words  # the reason stands below the picture anyway
    return RefusedItem(_shown(one.thumbnail, alt), said, one.key, f"{one.dataset}, {one.tar}", reasons)


def _pair_item(pair: SimilarPair) -> PairItem:
    facts = []
    if pair.within is not None:
        facts.append(f"{plain(pair.within)} to the nearest other evaluated image")
    if pair.is_same_file:
        facts.append("the same file")
    return PairItem(
        f"cosine {plain(pair.cosine)}",
        facts,
        [_half("evaluation", pair.evaluation), _half("training", pair.training)],
    )


def _half(use: str, one: Found) -> Half:
    alt = f"{use.capitalize()} image {one.key}: {one.caption}"
    return Half(use, _shown(one.thumbnail, alt), one.thumbnail.words, one.caption, f"{one.tar}, {one.key}")


def _shown(thumbnail: Thumbnail, alt: str) -> Shown | None:
    return (
        Shown(f"{PICTURES}/{thumbnail.file}", alt, thumbnail.width, thumbnail.height)
        if thumbnail.file
        else None
    )


def _pictures(survey: Survey) -> Files:
    thumbnails = [one.thumbnail for one in survey.found.examples]
    thumbnails += [
        half.thumbnail for pair in survey.found.matches.pairs for half in (pair.evaluation, pair.training)
    ]
    return {f"{PICTURES}/{one.file}": survey.picture(one) for one in thumbnails if one.file}
