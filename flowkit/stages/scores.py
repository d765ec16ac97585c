"""What the evaluations of several runs say together: rows, notes, differences to the runs they are held against.

Stage `summary` joins all runs of an experiment, stage `page` a run and those that stand beside it. Rates depend on the
machine and the hour, so they are read from run records and are no part of a tracked result.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from flowkit.evaluation.bootstrap import Array, draw_counts
from flowkit.evaluation.differences import ERROR, SPREAD, WITHOUT, differences
from flowkit.evaluation.score import finite_or_none
from flowkit.evaluation.summary import RunScore, SummaryRow, summary_rows
from flowkit.evaluation.verdicts import DifferenceRow
from flowkit.paths import NOTES, RUN_RECORD, SCORES
from flowkit.provenance import read_json
from flowkit.seeds import BY_VIEW, without_seed
from flowkit.stages.session import Spec, committed

AGAINST = ("ridge", "ridge_ot", "ridge_ot_flat", "regression")
"""Runs that all others are held against, image by image, each with its best sampler."""
AGAINST_ALL_SEEDS = (f"flow{BY_VIEW}", f"regression{BY_VIEW}")
"""Runs that the others are held against in each of their training seeds, so that a gain must outlast the worst."""
DRAWS = 1000


@dataclass(frozen=True)
class Joined:
    """Rows of the summary, why figures are missing, and paired differences."""

    rows: list[SummaryRow]
    notes: list[dict[str, Any]]
    differences: list[DifferenceRow]


def join(spec: Spec, runs: Sequence[str], *, of: str | None = None) -> Joined:
    """Join the evaluations of `runs` on the data set `target.dataset`.

    With `of`, notes and differences are those of that run alone.
    """
    dataset = spec.target["dataset"]
    rows = summary_rows(_scores(spec, runs, dataset))
    mine = list(runs) if of is None else [of]
    return Joined(rows, list(_notes(spec, mine, dataset)), list(_differences(spec, rows, mine)))


def _scores(spec: Spec, runs: Sequence[str], dataset: str) -> Iterator[RunScore]:
    for run in runs:
        content, manifest = committed(spec.places.evaluation(run))
        scores = read_json(content / SCORES)
        for sampler in manifest["counts"]["samplers"]:
            yield RunScore(run, sampler, dataset, scores[sampler])


def _notes(spec: Spec, runs: Sequence[str], dataset: str) -> Iterator[dict[str, Any]]:
    """Yield why figures are missing, or on what they were measured."""
    for run in runs:
        content, _ = committed(spec.places.evaluation(run))
        for sampler, notes in read_json(content / NOTES).items():
            yield from ({"run": run, "sampler": sampler, "data": dataset, **note} for note in notes)


def _differences(spec: Spec, rows: Sequence[SummaryRow], mine: Container[str]) -> Iterator[DifferenceRow]:
    """Yield how each sampler of some runs differs from the runs that they are held against."""
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in rows:
        values.setdefault((row["run"], row["sampler"]), {})[row["metric"]] = row["value"]
    arrays = {one: kept for one in values if (kept := _arrays(spec, *one)) is not None}
    more = dict.fromkeys(run for run, _ in values if without_seed(run) in AGAINST_ALL_SEEDS)
    against = [best for run in (*AGAINST, *more) if (best := _best(run, values, arrays)) is not None]
    if not arrays:
        return
    images = {one: len(kept[ERROR]) for one, kept in arrays.items()}
    counts_of = {count: draw_counts(count, draws=DRAWS, seed=0) for count in set(images.values())}
    for one, other in product(arrays, against):
        # one of them may have been measured on other images, where an experiment is half made anew
        if one[0] == other[0] or one[0] not in mine or images[one] != images[other]:
            continue
        found = differences(values[one], arrays[one], values[other], arrays[other], counts_of[images[one]])
        for metric, estimate in found.items():
            yield DifferenceRow(
                run=one[0],
                sampler=one[1],
                data=spec.target["dataset"],
                against=other[0],
                metric=metric,
                value=finite_or_none(estimate.value),
                low=finite_or_none(estimate.low),
                high=finite_or_none(estimate.high),
            )


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


def rates(spec: Spec, run: str, dataset: str) -> Iterator[SummaryRow]:
    """Yield images per second of each sampler, as the run record of its samples has it."""
    known: dict[str, float] = read_json(spec.places.samples(run, dataset) / RUN_RECORD)["rates"]
    for name, value in known.items():
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
