"""The index of all experiments: `results/index.html`, one file with one row per report, links to the reports beside it.

What it says comes from `summary.json`, `verdicts.json` and `report/about.json` of each experiment, whoever wrote
them: a file that cannot be read is said in its row, and the other rows stand.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from flowkit.errors import ReportError
from flowkit.paths import FIRST_PAGE, MANIFEST, report_folders
from flowkit.progress import logger
from flowkit.provenance import write_whole
from flowkit.report.data import Results, read_json, read_results
from flowkit.report.measures import measure
from flowkit.report.rendering import TEMPLATES, Renderer
from flowkit.report.standings import HEADLINE, Entry, best, entries

ABOUT = "about.json"
"""Beside the first page of a report: experiment, title, source_encoder, target_encoder, is_demo."""
UNREADABLE = (ReportError, OSError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading the files of a stranger may raise."""
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class About:
    """What a report says of itself; an encoder that it does not name is empty."""

    title: str
    source_encoder: str = ""
    target_encoder: str = ""
    is_demo: bool = False


@dataclass(frozen=True)
class Score:
    """R2 of one entry as the index shows it."""

    name: str
    value: float
    text: str
    interval: str


@dataclass(frozen=True)
class Standing:
    """How an experiment ended, on its first data set."""

    flow: Score | None
    baseline: Score | None
    shown: int
    goals: int
    trained_runs: int
    images: int | None

    @property
    def is_baseline_ahead(self) -> bool:
        """Whether a closed form has a higher R2 than every flow."""
        return bool(self.flow and self.baseline and self.baseline.value > self.flow.value)


@dataclass(frozen=True)
class Row:
    """One experiment; `trouble` says why it has no standing."""

    name: str
    page: str
    about: About
    standing: Standing | None = None
    trouble: str = ""


def experiments_page(results: Path) -> bytes:
    """Return the page that lists every experiment below `results` that has a report; the same files, the same bytes."""
    style, script = (
        Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "site.js")
    )
    rows = [_row(report.parent) for report in report_folders(results)]
    return Renderer()("experiments.html.j2", rows=rows, style=style, script=script)


def write_experiments_index(results: Path) -> Path:
    """Bring `results/index.html` up to date and return its path.

    Of several processes that write at once, each looks again after it has written, so that the last one leaves what all
    of them wrote of. Where the folder belongs to somebody else the file stays as it is.
    """
    path = results / FIRST_PAGE
    try:
        while (page := experiments_page(results)) != (path.read_bytes() if path.is_file() else None):
            write_whole(path, page)
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        logger.warning("index=%s is not brought up to date: %s", path, error.strerror)
    return path


def _row(experiment: Path) -> Row:
    name = os.fsencode(experiment.name).decode(errors="replace")
    page = f"{quote(os.fsencode(experiment.name))}/report/{FIRST_PAGE}"
    about = About(name)
    try:
        about = _about(experiment / "report" / ABOUT, name)
        if not (experiment / "summary.json").exists():
            return Row(name, page, about, trouble="Not finished: its report says how far the runs are.")
        return Row(name, page, about, _standing(experiment, read_results(experiment)))
    except UNREADABLE as error:
        reason = (
            str(error).replace(f"{experiment}/", "") if isinstance(error, ReportError) else "damaged files"
        )
        return Row(name, page, about, trouble=f"Not readable: {reason}")


def _about(path: Path, name: str) -> About:
    """Return what a report says of itself; reports of earlier versions do not."""
    if not path.is_file():
        return About(name)
    found = read_json(path)
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    return About(
        texts.get("title") or name,
        texts.get("source_encoder", ""),
        texts.get("target_encoder", ""),
        is_demo=found.get("is_demo") is True,
    )


def _standing(experiment: Path, results: Results) -> Standing:
    found = entries(results)
    leading = [entry for entry in found if entry.data == found[0].data]
    runs = list(dict.fromkeys(entry.run for entry in leading))
    return Standing(
        flow=_score(best(leading, "flow")),
        baseline=_score(best(leading, "closed form")),
        shown=sum(verdict.is_shown for verdict in results.verdicts),
        goals=len(results.verdicts),
        trained_runs=len({entry.run for entry in leading if entry.trained}),
        images=_images(experiment, runs),
    )


def _score(entry: Entry | None) -> Score | None:
    if entry is None:
        return None
    row, shown = entry.measurements[HEADLINE], measure(HEADLINE)
    return Score(entry.name, entry.headline, shown.text(row.value), shown.interval(row.low, row.high))


def _images(experiment: Path, runs: Sequence[str]) -> int | None:
    """Return how many images the first run that says so was measured on."""
    for run in runs:
        manifest = experiment / "runs" / run / "evaluation" / MANIFEST
        counts: Any = read_json(manifest).get("counts") if manifest.is_file() else None
        if isinstance(counts, dict) and isinstance(images := counts.get("images"), int):
            return images
    return None
