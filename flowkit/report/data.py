"""What the report reads, as plain records: the rows of the summary, the verdicts, and the files of each run.

Rows, notes and differences have the form of `summary.json`; the files of a run lie in its folder
(`train/<artifact>/metrics.jsonl`, `evaluation/<artifact>/details-<sampler>.npz`, `run.json` of each stage). A
number that is not finite arrives as None and stays None. Nothing is computed here, nothing is invented: a
missing file is an empty field where the report can do without it, and a `ReportError` that names the remedy
where it cannot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flowkit.errors import ReportError
from flowkit.report.details import Details, read_details

SCHEMA = 1


@dataclass(frozen=True)
class Picture:
    """One evaluation image and its first caption."""

    image: Image.Image
    caption: str


Pictures = Callable[[Sequence[int]], Sequence[Picture]]
"""Gives the pictures of evaluation images by their index, in the order asked for."""


@dataclass(frozen=True)
class Measurement:
    """One row of `summary.json`: a metric of a run, with its bootstrap interval."""

    run: str
    sampler: str
    data: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    seed_spread: float | None


@dataclass(frozen=True)
class Note:
    """One entry of `notes` in `summary.json`: why some metrics were not measured, or on what."""

    run: str
    sampler: str
    metrics: Sequence[str]
    note: str


@dataclass(frozen=True)
class Difference:
    """One entry of `differences` in `summary.json`: a metric of a run less that of another, image by image."""

    run: str
    sampler: str
    data: str
    against: str
    metric: str
    value: float
    low: float | None
    high: float | None

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves no doubt about the sign."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


VERDICTS = ("shown", "not shown", "not measured")


@dataclass(frozen=True)
class Verdict:
    """One row of `verdicts.json`: a goal, what was measured and what was asked for."""

    goal: str
    verdict: str
    value: float | str | None
    demand: float | str | None

    @property
    def is_shown(self) -> bool:
        """Whether the numbers bear the goal."""
        return self.verdict == "shown"


@dataclass(frozen=True)
class StageRecord:
    """One `run.json`: how a stage of a run came about. `name` is the folder below the run."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run: training lines, details per sampler, and the records of its stages."""

    name: str
    metrics: Sequence[Mapping[str, float | None]]
    details: Mapping[str, Details]
    records: Sequence[StageRecord]


@dataclass(frozen=True)
class Results:
    """All that is known of an experiment."""

    name: str
    measurements: Sequence[Measurement]
    verdicts: Sequence[Verdict]
    runs: Mapping[str, RunFiles]
    notes: Sequence[Note] = ()
    differences: Sequence[Difference] = ()


def read_results(experiment: Path) -> Results:
    """Return what `summary.json` and `verdicts.json` of an experiment folder say, without the files of its runs.

    Raises `ReportError` naming the file when one of them is missing or damaged.
    """
    summary, verdicts = experiment / "summary.json", experiment / "verdicts.json"
    content = read_json(summary)
    _check_rows(content, summary)
    judged = read_json(verdicts)
    _check_rows(judged, verdicts)
    return parse_results(experiment.name, content, judged["rows"], summary, judged_in=verdicts)


def parse_results(
    name: str,
    summary: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]],
    origin: Path,
    *,
    judged_in: Path | None = None,
) -> Results:
    """Return the results in a document of the form of `summary.json` and in rows of `verdicts.json`.

    `origin` is the file that errors name, `judged_in` that of the verdicts where it is another one.
    """
    return Results(
        name,
        [_measurement(row, origin) for row in summary["rows"]],
        [_verdict(row, judged_in or origin) for row in verdicts],
        {},
        _notes(summary, origin),
        _differences(summary, origin),
    )


def _notes(summary: Mapping[str, Any], origin: Path) -> list[Note]:
    try:
        return [
            Note(one["run"], one["sampler"], one["metrics"], one["note"]) for one in summary.get("notes", [])
        ]
    except (KeyError, TypeError):
        raise ReportError(f"{origin}: 'notes' are not those of the summary, write it again") from None


def _differences(summary: Mapping[str, Any], origin: Path) -> list[Difference]:
    names = ("run", "sampler", "data", "against", "metric")
    found = []
    for one in summary.get("differences", []):
        try:
            run, sampler, data, against, metric = (str(one[name]) for name in names)
            value, low, high = (finite(one[name]) for name in ("value", "low", "high"))
        except (KeyError, TypeError):
            raise ReportError(
                f"{origin}: 'differences' are not those of the summary, write it again"
            ) from None
        if value is not None:
            found.append(Difference(run, sampler, data, against, metric, value, low, high))
    return found


def _check_rows(content: Mapping[str, Any], path: Path) -> None:
    if content.get("schema") != SCHEMA:
        raise ReportError(f"{path} has schema {content.get('schema')!r}, expected {SCHEMA}; write it again")
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ReportError(f"{path} has no list 'rows' of objects, write it again with the evaluation stage")


def _measurement(row: Mapping[str, Any], path: Path) -> Measurement:
    try:
        return Measurement(
            run=str(row["run"]),
            sampler=str(row["sampler"] or ""),
            data=str(row["data"] or ""),
            metric=str(row["metric"]),
            value=finite(row["value"]),
            low=finite(row.get("low")),
            high=finite(row.get("high")),
            seed_spread=finite(row.get("seed_spread")),
        )
    except KeyError as missing:
        raise ReportError(
            f"{path}: a row lacks {missing}, write the file again; the row is {dict(row)}"
        ) from None


def _verdict(row: Mapping[str, Any], path: Path) -> Verdict:
    verdict = row.get("verdict")
    if verdict not in VERDICTS:
        raise ReportError(f"{path}: verdict {verdict!r} of {row.get('goal')!r}, expected one of {VERDICTS}")
    value, demand = (
        item if isinstance(item, str) else finite(item) for item in (row.get("value"), row.get("demand"))
    )
    return Verdict(str(row.get("goal")), verdict, value, demand)


def read_run(
    folder: Path, *, train: str | None = None, evaluation: str | None = None, dataset: str = "*"
) -> RunFiles:
    """Return the files of a run from its folder; `train` and `evaluation` name the artifact where there are several.

    `dataset` is the one that was translated, of which the record is read; without it, of every one.
    """
    trained = artifact(folder / "train", "metrics.jsonl", train)
    evaluated = artifact(folder / "evaluation", "scores.json", evaluation)
    metrics = read_lines(trained / "metrics.jsonl") if trained else []
    details = read_all_details(evaluated) if evaluated else {}
    return RunFiles(folder.name, metrics, details, _records(folder, (trained, evaluated), dataset))


def read_records_of(folder: Path, dataset: str) -> RunFiles:
    """Return a run with the records of its stages alone, which is all that a page on many runs can take in."""
    return RunFiles(folder.name, [], {}, _records(folder, (), dataset))


def read_all_details(evaluation: Path) -> dict[str, Details]:
    """Return the arrays of every sampler in the artifact of an evaluation."""
    paths = sorted(evaluation.glob("details-*.npz"))
    return {path.stem.removeprefix("details-"): read_details(path) for path in paths}


def artifact(folder: Path, pattern: str, chosen: str | None) -> Path | None:
    """Return the folder below `folder` that holds `pattern`: the chosen one, or the only one, None if there is none."""
    if chosen is not None:
        if not any((folder / chosen).glob(pattern)):
            raise ReportError(f"{folder / chosen} holds no {pattern}, run that stage again")
        return folder / chosen
    found = sorted({path.parent for path in folder.glob(f"*/{pattern}")})
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ReportError(f"{folder} holds several results ({names}), name the one to show")
    return found[0] if found else None


def _records(folder: Path, artifacts: Sequence[Path | None], dataset: str) -> list[StageRecord]:
    """Return the records of what a run's page shows: training, samples of a data set, evaluation.

    Not that of the page itself: it tells of the time before, and no two makings would be alike.
    """
    paths = {*folder.glob("train/run.json"), *folder.glob("evaluation/run.json")}
    paths |= {*folder.glob(f"samples/{dataset}/run.json")}
    paths |= {path / "run.json" for path in artifacts if path and (path / "run.json").is_file()}
    return [StageRecord(str(path.parent.relative_to(folder)), read_json(path)) for path in sorted(paths)]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(
            f"{path} cannot be read ({error.strerror}), run the stage that writes it"
        ) from error
    except ValueError as error:
        raise ReportError(f"{path} is not valid JSON ({error}), write it again") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def read_lines(path: Path) -> list[dict[str, float | None]]:
    """Return the numbers on each line of a JSON-lines file.

    A line that is no object is an error that names it.
    """
    lines: list[dict[str, float | None]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ReportError(
                f"{path} line {number} is not valid JSON ({error}), train the run again"
            ) from error
        if not isinstance(content, dict):
            raise ReportError(f"{path} line {number} is no object, train the run again")
        lines.append({key: finite(value) for key, value in content.items()})
    return lines


def finite(value: object) -> float | None:
    """Return a finite number as float and anything else as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
