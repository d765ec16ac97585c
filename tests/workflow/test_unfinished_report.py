"""A report of an experiment that is not finished: what is there, what is not, and what makes it."""

from __future__ import annotations

import re
import shutil

from support import Project


def test_report_by_hand_shows_what_is_there_and_names_what_is_not(finished: Project, tmp_path) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(finished.folder, project.folder, symlinks=True)
    runs = project.folder / "results/tiny/runs"
    (runs / "flow/evaluation/manifest.json").unlink()
    (runs / "regression/page/manifest.json").unlink()
    whole = (project.folder / "results/tiny/report/index.html").read_text()
    assert "Not everything is there yet" not in whole
    project.flowkit("report", "--config", "tiny.yaml")
    page = (project.folder / "results/tiny/report/index.html").read_text()
    assert "Not everything is there yet" in page
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "flow : translated, not evaluated. flowkit evaluate --config CONFIG --run flow" in text
    assert "regression : evaluated, its page is missing" in text
    assert "The goals are not judged. flowkit summary --config CONFIG" in text
    assert "regression direct-1" in text, "what was evaluated stands in the table"
    assert "No goals were judged" in text, "goals are judged over all runs"
    assert not (project.folder / "results/tiny/report/runs/regression.html").exists()
    project.snakemake()
    assert (project.folder / "results/tiny/report/index.html").read_text() == whole
    assert project.planned() == {}
