"""The data page: what it says of the numbers, what strangers may have written into it, and damaged files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from survey_material import EVALUATED, HOSTILE, arrays, findings, write_survey

from flowkit.errors import ReportError
from flowkit.report.data_page import data_page, lede, matches_words, sampled
from flowkit.report.data_tables import (
    channels_table,
    counts_table,
    lost_table,
    refused_table,
    thresholds_table,
)
from flowkit.report.rendering import Facts, Files, Renderer
from flowkit.report.site import check_budgets
from flowkit.report.survey import (
    ARRAYS_FILE,
    SURVEY_FILE,
    THRESHOLDS,
    Above,
    Findings,
    Matches,
    Survey,
    Thumbnail,
    read_survey,
)
from flowkit.report.survey_figures import channel_spreads, match_histogram, norm_histogram

COMMAND = "flowkit survey --config <own>.yaml"


def page_of(folder: Path | None) -> Files:
    facts = Facts("small", "a report", "eva", "clip", is_demo=False)
    return data_page(Renderer(facts, pages={}, legend={}), folder, COMMAND)


class Page(HTMLParser):
    """Collects tags and text of a page."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey that no test changes."""
    return write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def survey(folder: Path) -> Survey:
    return read_survey(folder)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(page_of(folder)["data.html"])


def test_every_file_that_the_page_shows_is_there_and_light_enough(folder: Path, page: Page) -> None:
    files = page_of(folder)
    shown = {str(image["src"]) for image in page.all("img")}
    linked = {str(link["href"]) for link in page.all("a") if "download" in link}
    assert shown | linked <= files.keys()
    assert {name for name in files if name.startswith("images/survey/")} <= shown
    assert {name.partition("/")[0] for name in files} == {"data.html", "data", "figures", "images"}
    check_budgets(files)


def test_images_have_words_and_do_not_load_before_they_are_seen(page: Page) -> None:
    assert all(image["alt"] and image["loading"] == "lazy" for image in page.all("img"))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_what_strangers_wrote_is_text(folder: Path, page: Page) -> None:
    assert [script.get("src") for script in page.all("script")] == ["site.js"]
    assert page.words.count("<script>alert(1)</script>") >= 8
    assert "猫" in page.words
    files = page_of(folder)
    drawn = b"".join(content for name, content in files.items() if name.endswith(".svg"))
    assert b"<script" not in drawn


def test_the_same_survey_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_survey(tmp_path / "elsewhere")
    assert page_of(folder) == page_of(again)


def test_without_a_survey_the_page_says_how_to_make_one() -> None:
    files = page_of(None)
    assert list(files) == ["data.html"]
    page = Page(files["data.html"])
    assert COMMAND in page.words
    assert not page.all("img")


def test_first_sentences_count_pairs_and_refused_images(survey: Survey) -> None:
    assert lede(survey) == (
        "1,696 pairs of “train” are trained on (800 more are held out), the first 40 of 50 pairs of “test” are "
        "evaluated. 4 of 2,550 images were refused."
    )
    assert sampled(survey) == (
        "Measured on 2,000 of 5,000,000 training images and 2,000 of 5,000,000 evaluation images, evenly spaced: "
        "class token and patches, as training reads them. Every value is finite."
    )


def test_tables_hold_the_counts(survey: Survey) -> None:
    found = survey.found
    lines = [[(cell.text, cell.note) for cell in line.cells] for line in counts_table(found.datasets).lines]
    assert lines[0] == [
        ("train", "folder, training"),
        ("eva", "source, kept as int8"),
        ("3", "1 held out"),
        ("2,500", ""),
        ("2,497", ""),
        ("3", "0.12 %"),
        ("2,496", "800 held out"),
    ]
    assert lines[3][3:] == [("50", "the first 50 of each tar"), ("50", ""), ("0", ""), ("50", "40 evaluated")]
    lost, refused = lost_table(found.datasets), refused_table(survey)
    assert lost is not None
    assert [line.cells[2].number for line in lost.lines] == [2, 1]
    assert refused is not None
    assert [[cell.text for cell in line.cells[2:]] for line in refused.lines] == [["3", "3"], ["0", "1"]]
    channels = channels_table(found.channels)
    assert [header.text for header in channels.headers[-3:]] == [
        "variance in the largest channel",
        "variance in the largest 1 %",
        "variance in the largest 10 %",
    ]
    assert [cell.note for cell in channels.lines[0].cells[-3:]] == ["1 of 300", "3 of 300", "30 of 300"]
    near = thresholds_table(found.matches).lines[2]
    assert [cell.text for cell in near.cells] == [".97", "7", "2", "0"]


def matches(within: int, *, same_file: int | None = 0, **changes: object) -> Matches:
    above = [Above(cosine, 3, 1, within) for cosine in THRESHOLDS]
    made = Matches(evaluated=EVALUATED, training=500, as_many=EVALUATED - 1, same_file=same_file, above=above)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("within", "says"),
    [
        (
            0,
            "Nothing in the evaluation set is that near to anything else in it, so what is above it deserves a look.",
        ),
        (3, "The evaluation set has near-duplicates of its own"),
        (30, "the mark does not tell a duplicate from a picture of the same sort"),
    ],
)
def test_what_near_duplicates_mean_depends_on_the_evaluation_set_itself(within: int, says: str) -> None:
    words = " ".join(matches_words(matches(within)))
    assert "3 of 40 evaluated images have a training image with a cosine above .97" in words
    assert says in words


@pytest.mark.parametrize(
    ("same_file", "says"),
    [
        (None, "is not known: no digests"),
        (0, "None of the 40 evaluated images is, byte by byte, a training image."),
        (1, "One of 40 evaluated images is, byte by byte, a training image."),
        (5, "5 of 40 evaluated images are, byte by byte, training images."),
    ],
)
def test_equal_files_are_named_for_what_they_are(same_file: int | None, says: str) -> None:
    assert says in matches_words(matches(0, same_file=same_file))[0]


def test_vectors_that_are_not_kept_are_said_to_be_missing(tmp_path: Path) -> None:
    found = findings(
        matches=Matches(reason="the stores of eva hold no pooled vectors", evaluated=9, training=50)
    )
    files = page_of(write_survey(tmp_path, found))
    text = Page(files["data.html"]).words
    assert "Near-duplicates were not measured: the stores of eva hold no pooled vectors." in text
    assert "figures/_data/matches.svg" not in files


def test_a_survey_without_faults_shows_no_empty_tables(tmp_path: Path) -> None:
    found = findings(refused=[], examples=[])
    found = replace(found, datasets=[replace(one, fell_out={}, refused=0) for one in found.datasets])
    text = Page(page_of(write_survey(tmp_path, found))["data.html"]).words
    assert "No encoder refused an image." in text
    assert "None of the 2,550 images was refused." in text
    assert "in no pair" not in text


def test_a_reason_stands_once_and_names_both_encoders(page: Page) -> None:
    assert page.words.count("image undecodable: torn (source and target)") == 1
    assert f"not finite: {HOSTILE} (target)" in page.words
    assert f"cannot be drawn: gone {HOSTILE}" in page.words


def test_figures_say_their_numbers(survey: Survey) -> None:
    spreads, norms, matched = (
        channel_spreads(survey),
        norm_histogram(survey, "target"),
        match_histogram(survey),
    )
    assert "source, training: from 80 to 0, median 1.25" in spreads.alt
    assert len(spreads.data) == 2 * (300 + 120)
    assert "class token, training 20.5" in norms.alt
    assert norms.data[norms.data["kind"] == "patches"]["training"].sum() == pytest.approx(1)
    searched = ["training images", "39 training images", "other evaluated images"]
    assert list(matched.data.columns) == ["from", "to", *searched]
    assert matched.data[searched].sum().tolist() == pytest.approx([1, 1, 1])


def test_layouts_without_a_class_token_have_one_histogram(tmp_path: Path) -> None:
    found = findings(layout="patches")
    found = replace(found, norms=[one for one in found.norms if one.kind == "patches"])
    survey = read_survey(write_survey(tmp_path, found))
    assert set(norm_histogram(survey, "source").data["kind"]) == {"patches"}
    assert "patches, as training reads them" in sampled(survey)


def without_array(folder: Path) -> None:
    np.savez(
        folder / ARRAYS_FILE, **{name: array for name, array in arrays().items() if name != "match-within"}
    )


def another_schema(folder: Path) -> None:
    content = json.loads((folder / SURVEY_FILE).read_text())
    (folder / SURVEY_FILE).write_text(json.dumps({**content, "schema": 7}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / SURVEY_FILE).unlink(), r"survey\.json cannot be read \(No such file"),
        (
            lambda folder: (folder / SURVEY_FILE).write_text("{"),
            r"survey\.json is no survey: the file: Invalid JSON",
        ),
        (
            lambda folder: (folder / SURVEY_FILE).write_text("{}"),
            r"survey\.json is no survey: schema: Field required",
        ),
        (another_schema, r"survey\.json has schema 7, expected 1"),
        (lambda folder: (folder / ARRAYS_FILE).write_bytes(b"PK"), r"arrays\.npz cannot be read"),
        (without_array, r"arrays\.npz lacks the arrays match-within"),
        (
            lambda folder: (folder / "thumbnails/pair-1-training.png").unlink(),
            r"pair-1-training\.png cannot be read",
        ),
    ],
)
def test_damaged_files_are_named_with_the_remedy(tmp_path: Path, damage, says: str) -> None:
    damage(write_survey(tmp_path))
    with pytest.raises(ReportError, match=says + ".*run stage survey again"):
        page_of(tmp_path)


def test_pictures_from_outside_the_survey_are_refused(tmp_path: Path) -> None:
    found = findings()
    found = replace(found, examples=[replace(found.examples[0], thumbnail=Thumbnail("../survey.json", 8, 8))])
    with pytest.raises(
        ReportError, match=r"names the picture '\.\./survey\.json', expected the name of a file"
    ):
        page_of(write_survey(tmp_path, found))


def test_records_survive_the_way_through_json(survey: Survey) -> None:
    assert isinstance(survey.found, Findings)
    assert survey.found == findings()
