"""Stage `summary`: the metrics of all runs in one table, and the verdicts on the goals.

Writes `results/<experiment>/summary.json` and `verdicts.json`, whose form is stable. Rates depend on the machine and
the hour, so they are added to the copy that people read and are no part of the tracked result.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from flowkit.evaluation.bootstrap import Array, draw_counts
from flowkit.evaluation.differences import ERROR, SPREAD, WITHOUT, differences
from flowkit.evaluation.goals import experiment_goals
from flowkit.evaluation.score import finite_or_none
from flowkit.evaluation.summary import RunScore, SummaryRow, summary_rows
from flowkit.evaluation.verdicts import verdicts
from flowkit.paths import NOTES, RUN_RECORD, SCORES
from flowkit.progress import logger
from flowkit.provenance import read_json, write_json
from flowkit.stages.session import Spec, committed, open_session

SUMMARY, VERDICTS = "summary.json", "verdicts.json"
AGAINST = ("ridge", "ridge_ot", "ridge_ot_flat", "regression")
"""Runs that all others are held against, image by image, each with its best sampler."""
DRAWS = 1000


def run(spec: Spec) -> None:
    """Commit the summary and put copies where people and programs look for them."""
    places, dataset, runs = spec.places, spec.target["dataset"], spec.target["runs"].split(",")
    with open_session(spec, places.summary, [places.evaluation(run) for run in runs]) as session:
        if not session.is_done:
            rows = summary_rows(_scores(spec, runs, dataset))
            judged = verdicts(rows, experiment_goals(rows, spec.values["goals"]), data=dataset)
            more = {"notes": list(_notes(spec, runs, dataset)), "differences": list(_differences(spec, rows))}
            write_json(session.work / SUMMARY, {**_document(spec, rows), **more})
            write_json(session.work / VERDICTS, _document(spec, judged))
            session.commit({"rows": len(rows), "goals": len(judged)})
        content, _ = committed(places.summary)
        summary, judged = read_json(content / SUMMARY), read_json(content / VERDICTS)["rows"]
        rates = [row for run in runs for row in _rates(spec, run, dataset)]
        write_json(places.experiment_folder / SUMMARY, {**summary, "rows": summary["rows"] + rates})
        write_json(places.experiment_folder / VERDICTS, _document(spec, judged))
        for row in judged:
            logger.info(
                "verdict=%r goal=%r value=%s demand=%s",
                *(row[key] for key in ("verdict", "goal", "value", "demand")),
            )


def _scores(spec: Spec, runs: list[str], dataset: str) -> Iterator[RunScore]:
    for run in runs:
        content, manifest = committed(spec.places.evaluation(run))
        scores = read_json(content / SCORES)
        for sampler in manifest["counts"]["samplers"]:
            yield RunScore(run, sampler, dataset, scores[sampler])


def _notes(spec: Spec, runs: list[str], dataset: str) -> Iterator[dict[str, Any]]:
    """Yield why figures are missing, or on what they were measured."""
    for run in runs:
        content, _ = committed(spec.places.evaluation(run))
        for sampler, notes in read_json(content / NOTES).items():
            yield from ({"run": run, "sampler": sampler, "data": dataset, **note} for note in notes)


def _differences(spec: Spec, rows: Sequence[SummaryRow]) -> Iterator[dict[str, Any]]:
    """Yield how each sampler of each run differs from the runs that it is held against."""
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in rows:
        values.setdefault((row["run"], row["sampler"]), {})[row["metric"]] = row["value"]
    arrays = {one: kept for one in values if (kept := _arrays(spec, *one)) is not None}
    against = [best for run in AGAINST if (best := _best(run, values, arrays)) is not None]
    if not arrays:
        return
    counts = draw_counts(len(next(iter(arrays.values()))[ERROR]), draws=DRAWS, seed=0)
    for one, other in product(arrays, against):
        if one[0] == other[0]:
            continue
        found = differences(values[one], arrays[one], values[other], arrays[other], counts)
        for metric, estimate in found.items():
            yield {
                "run": one[0],
                "sampler": one[1],
                "data": spec.target["dataset"],
                "against": other[0],
                "metric": metric,
                **{part: finite_or_none(getattr(estimate, part)) for part in ("value", "low", "high")},
            }


def _best(
    run: str, values: Mapping[tuple[str, str], Mapping[str, float | None]], arrays: Container[tuple[str, str]]
) -> tuple[str, str] | None:
    """The sampler with the highest R2 of a run."""
    mine = [
        (value, one)
        for one in values
        if one[0] == run and one in arrays and (value := values[one]["r2"]) is not None
    ]
    return max(mine)[1] if mine else None


def _arrays(spec: Spec, run: str, sampler: str) -> dict[str, Array] | None:
    """Errors per image and figures without each tenth of the images; None where nothing could be measured."""
    content, _ = committed(spec.places.evaluation(run))
    path = content / f"details-{sampler}.npz"
    if not path.is_file():
        return None
    with np.load(path) as archive:
        wanted = [name for name in archive.files if name in (ERROR, SPREAD) or name.startswith(WITHOUT)]
        return {name: archive[name].astype(np.float64) for name in wanted}


def _rates(spec: Spec, run: str, dataset: str) -> Iterator[SummaryRow]:
    """Yield images per second of each sampler, as the run record of its samples has it."""
    rates: dict[str, float] = read_json(spec.places.samples(run, dataset) / RUN_RECORD)["rates"]
    for name, value in rates.items():
        metric, _, sampler = name.partition(" ")
        if sampler:
            yield SummaryRow(
                run=run,
                sampler=sampler,
                data=dataset,
                metric=metric,
                value=value,
                low=None,
                high=None,
                seed_spread=None,
            )


def _document(spec: Spec, rows: list[Any]) -> dict[str, Any]:
    return {"schema": 1, "experiment": spec.places.experiment, "rows": rows}
