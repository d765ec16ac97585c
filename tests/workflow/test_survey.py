"""The survey of a finished workflow: what it counts, and that it is the same when it is run alone."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

from support import Project

from flowkit.report.survey import Survey, read_survey


def content_of(project: Project, experiment: str) -> Path:
    folder = project.folder / "results" / experiment / "survey"
    return folder / json.loads((folder / "manifest.json").read_text())["content"]


def survey_of(project: Project) -> Survey:
    return read_survey(content_of(project, "tiny"))


def test_it_counts_what_the_configuration_asks_for(finished: Project) -> None:
    train, test = survey_of(finished).found.datasets
    assert (train.name, train.pairs, train.held_out_pairs, train.tars) == ("train", 120, 40, 3)
    assert (test.name, test.pairs, test.evaluated, test.tars) == ("test", 64, 32, 2)
    assert [(one.encoded, one.refused) for data in (train, test) for one in data.encoders] == [
        (120, 0),
        (120, 0),
        (64, 0),
        (64, 0),
    ]


def test_matches_are_among_the_tars_that_training_reads(finished: Project) -> None:
    survey = survey_of(finished)
    matches = list(csv.DictReader(io.StringIO(survey.matches_csv.decode())))
    assert len(matches) == survey.found.matches.evaluated == 32
    assert {match["training_tar"] for match in matches} <= {"00000.tar", "00001.tar"}, "the third is held out"
    assert survey.found.matches.training == 80
    assert survey.found.matches.same_file == 0


def test_run_alone_it_gives_the_same_content(finished: Project) -> None:
    try:
        finished.flowkit("survey", "--config", "tiny.yaml", "--set", "experiment=alone")
        assert content_of(finished, "alone").name == content_of(finished, "tiny").name
    finally:
        shutil.rmtree(finished.folder / "results/alone", ignore_errors=True)
