"""Stage `report`: the pages of all runs put together, with the start page and what shows several runs at once.

The result is copied to `results/<experiment>/report/`, which is what people open; the key figures and the table of all
results are copied beside it for Snakemake's own report. Copies are declared outputs and may be emptied any time, so
nothing works inside them. It can be run before every run is done: the start page says what is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowkit.paths import MANIFEST
from flowkit.progress import logger
from flowkit.provenance import digest_of, read_json
from flowkit.report.data import Results, parse_results, read_records_of
from flowkit.report.data_page import DATA_FIGURES
from flowkit.report.experiments import write_experiments_index
from flowkit.report.made_page import ABOUT, MadePage, read_made_page
from flowkit.report.pages import SURVEY_COMMAND, Site, render_site
from flowkit.report.rendering import Files
from flowkit.report.run_data import read_run_data
from flowkit.report.scene import data_of
from flowkit.report.site import check_budgets, copy_report, read_files, write_files
from flowkit.report.states import RunState, Step
from flowkit.report.workflow_nodes import read_nodes
from flowkit.stages.jobs import STAGES
from flowkit.stages.page import facts_of
from flowkit.stages.scores import join, rates
from flowkit.stages.session import Spec, committed, open_session
from flowkit.stages.summary import SUMMARY, VERDICTS

OF_ALL_RUNS, OF_DATA = "All-runs", "Data"
"""What no run can be called: names of runs have no capitals."""


def run(spec: Spec) -> None:
    """Commit the pages of the experiment and put the copies in place."""
    places, runs = spec.places, spec.target["runs"].split(",")
    states = [_state(spec, name) for name in runs]
    wanted = [places.summary, places.survey, *map(places.page, runs)]
    inputs = [folder for folder in wanted if (folder / MANIFEST).is_file()]
    with open_session(spec, places.site, inputs, [digest_of([state.words for state in states])]) as session:
        if not session.is_done:
            files = _files(spec, runs, states)
            check_budgets(files)
            write_files(files, session.work / "pages")
            session.commit({"files": len(files)}, folder=session.work / "pages")
        content, _ = committed(places.site)
    copy_report(content, places.report)
    _copy_key_figures(content, places.key_figures)
    write_experiments_index(places.results)
    logger.info("report=%s", places.report / "index.html")


def _files(spec: Spec, runs: Sequence[str], states: Sequence[RunState]) -> Files:
    """Return every file of the report; those of runs are taken from their pages."""
    files: Files = {}
    made: dict[str, MadePage] = {}
    for name in (state.run for state in states if state.is_complete):
        content, _ = committed(spec.places.page(name))
        made[name] = read_made_page(content)
        files |= read_files(content, without=ABOUT)
    places, dataset = spec.places, spec.target["dataset"]
    results, has_summary = _results(spec, runs, states)
    has_survey = (places.survey / MANIFEST).is_file()
    lacking = [] if has_summary else [("The goals are not judged", "flowkit summary --config CONFIG")]
    lacking += [] if has_survey else [("The data were not looked at", SURVEY_COMMAND)]
    trained = spec.target["trained"].split(",")
    site = Site(
        facts=facts_of(spec),
        results=results,
        made=made,
        states=states,
        lacking=lacking,
        data=[read_run_data(files[data_of(name)]) for name in made if data_of(name) in files],
        survey=committed(places.survey)[0] if has_survey else None,
        nodes=read_nodes(json.loads(spec.target["workflow"]), places.results, places.data_root),
        trained=[read_records_of(places.train(name).parent, dataset) for name in trained],
        defaults=spec.values["defaults"],
        meanings=STAGES,
    )
    return files | render_site(site)


def _results(spec: Spec, runs: Sequence[str], states: Sequence[RunState]) -> tuple[Results, bool]:
    """Return the summary of all runs, or where it is not there, of those that were evaluated; and whether it is.

    A summary that is there may be one of earlier evaluations, where a person has evaluated anew by hand.
    """
    places, dataset = spec.places, spec.target["dataset"]
    evaluated = [state.run for state in states if not state.lacks_evaluation]
    measured: list[Any] = [row for run in evaluated for row in rates(spec, run, dataset)]
    if len(evaluated) == len(runs) and (places.summary / MANIFEST).is_file():
        content, _ = committed(places.summary)
        summary, judged = read_json(content / SUMMARY), read_json(content / VERDICTS)["rows"]
        document = {**summary, "rows": summary["rows"] + measured}
        return parse_results(
            places.experiment, document, judged, content / SUMMARY, judged_in=content / VERDICTS
        ), True
    joined = join(spec, evaluated)
    document = {**asdict(joined), "rows": [*joined.rows, *measured]}
    return parse_results(places.experiment, document, [], places.experiment_folder), False


def _state(spec: Spec, name: str) -> RunState:
    """Return how far a run has come, by the manifests that are there."""
    places, made_by = spec.places, spec.values["made_by"].get(name, "sample")
    encoders = spec.target["source"], spec.target["target"]
    chain: list[tuple[Step, Path]] = [("data", places.pairs(spec.target["dataset"], *encoders))]
    if made_by == "sample":
        chain += [("data", places.pairs(spec.target["train"], *encoders)), ("train", places.train(name))]
    chain += [(made_by, places.samples(name, spec.target["dataset"])), ("evaluate", places.evaluation(name))]
    chain += [("page", places.page(name))]
    for step, folder in chain:
        if not (folder / MANIFEST).is_file():
            return RunState(name, step, _progress(folder) if step == "train" else "")
    is_current = (
        read_made_page(committed(places.page(name))[0]).evaluation
        == committed(places.evaluation(name))[0].name
    )
    return RunState(name, "" if is_current else "page")


def _progress(train: Path) -> str:
    """Return how many steps a training has taken that was begun and not finished."""
    newest = max(
        train.glob("state/work-*/metrics.jsonl"), key=lambda path: path.stat().st_mtime, default=None
    )
    if newest is None:
        return ""
    with newest.open("rb") as file:
        return f"{sum(1 for _ in file):,} steps taken"


def _copy_key_figures(content: Path, to: Path) -> None:
    """Copy what Snakemake's own report shows as items of their own: figures by run, and the table of all results."""
    shutil.rmtree(to, ignore_errors=True)
    for path in sorted((content / "figures").rglob("*.svg")):
        run, *rest = path.relative_to(content / "figures").parts
        label = {DATA_FIGURES: OF_DATA}.get(run, run) if rest else OF_ALL_RUNS
        copy = to / "figures" / label / "-".join(rest or (run,))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copy(content / "data/summary.csv", to / "summary.csv")
