"""Puts the report together from the pages of its runs: start page, gallery, and what stands beside them.

`render_site` returns the files that are not those of a run, as bytes by their path below the site. Templates only
print: all decisions are made here and in the modules that this one calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowkit.report.compare import compare_page
from flowkit.report.data import Results, RunFiles
from flowkit.report.data_page import data_page
from flowkit.report.figures import fidelity_against_distribution
from flowkit.report.gallery import Item, colour_scale, common_indices
from flowkit.report.made_page import MadePage
from flowkit.report.measures import KEY_METRICS, in_order, measure
from flowkit.report.rendering import TEMPLATES, Facts, Files, Renderer, figure_files
from flowkit.report.run_data import RunData
from flowkit.report.scene import Scene
from flowkit.report.standings import HEADLINE, Entry, best, best_per_run, comparisons, told_apart
from flowkit.report.states import RunState, unfinished
from flowkit.report.tables import AboutRun, Table, hint, light, measurements_csv, results_table
from flowkit.report.workflow import workflow_page
from flowkit.report.workflow_nodes import Node

SURVEY_COMMAND = "flowkit survey --config CONFIG"
COMMAND = "flowkit run -- --profile profiles/local --configfile CONFIG"
SUMMARY = "data/summary.csv"
COMPARED_RUNS, COMPARED_TRAINED = 8, 6
COMPARED_IMAGES = 12
STRIP_IMAGES = 6


@dataclass(frozen=True)
class Site:
    """Everything that `render_site` needs.

    The results, the pages of runs that were made, how each run stands, what else is `lacking` with the command that
    makes it, the data of runs for comparisons, the folder of the survey of the data if there is one; the nodes of the
    workflow with their times, the trained runs with their records, the values of the sections that a run overrides,
    what each stage does.
    """

    facts: Facts
    results: Results
    made: Mapping[str, MadePage] = field(default_factory=dict)
    states: Sequence[RunState] = ()
    lacking: Sequence[tuple[str, str]] = ()
    data: Sequence[RunData] = ()
    survey: Path | None = None
    nodes: Sequence[Node] = ()
    trained: Sequence[RunFiles] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> tuple[float, str]:
        """The error of the brightest colour and the run that set it: of a finished experiment the same on all pages."""
        limits = {(made.error_limit, made.scale_of) for made in self.made.values()}
        return limits.pop() if len(limits) == 1 else (max(limits)[0] if limits else 1.0, "")


def render_site(site: Site) -> Files:
    """Return every file of the report but those of its runs."""
    scene = Scene(site.results)
    render = Renderer(
        site.facts,
        pages={run: made.page for run, made in site.made.items()},
        legend=colour_scale(*site.scale),
    )
    files = _index_page(site, scene, render)
    files |= _gallery_page(site, scene, render)
    files |= compare_page(render, _ranked(scene, site.data))
    files |= data_page(render, site.survey, SURVEY_COMMAND)
    pages = {run: made.page for run, made in site.made.items()}
    files |= workflow_page(
        render, site.nodes, site.trained, site.defaults, COMMAND, pages=pages, meanings=site.meanings
    )
    return files | _data_files(site)


def _index_page(site: Site, scene: Scene, render: Renderer) -> Files:
    champion, flow = scene.best, scene.best_flow
    baseline = best(scene.leading, "closed form")
    plot = fidelity_against_distribution(scene.leading)
    files, figures = figure_files("figures", [plot] if plot else [])
    tables = []
    for number, data in enumerate(dict.fromkeys(entry.data for entry in scene.entries)):
        found, made = _results(site, scene, data, number)
        tables.append((data, *found))
        files |= made
    page = render(
        "index.html.j2",
        champion=champion,
        best_flow=flow,
        baseline=baseline,
        is_baseline_sure=bool(champion and baseline and told_apart(champion, baseline)),
        tied=scene.tied_with(champion),
        comparisons=comparisons(champion, scene.leading) if champion else [],
        flow_comparisons=comparisons(flow, scene.leading) if flow else [],
        ladder=[entry for entry in best_per_run(scene.leading) if entry.kind != "ceiling"],
        verdicts=site.results.verdicts,
        unfinished=unfinished(site.states),
        lacking=site.lacking,
        command=COMMAND,
        unmeasured=_unmeasured(scene),
        meanings=_meanings(scene),
        has_page=champion is not None and champion.run in site.made,
        states=site.states,
        strip=_strip(site, champion),
        tables=tables,
        figures=figures,
    )
    return files | {"index.html": page}


def _unmeasured(scene: Scene) -> list[str]:
    """Return the trained runs of which nothing could be measured."""
    best_of = best_per_run(scene.leading)
    return [entry.run for entry in best_of if entry.trained and entry.value(HEADLINE) is None]


def _meanings(scene: Scene) -> list[tuple[str, str]]:
    """Return the name of each metric that was asked for, and what it means."""
    known = in_order({name for entry in scene.entries for name in entry.measurements})
    return [(measure(name).label, hint(name)) for name in known if hint(name)]


def _ranked(scene: Scene, data: Sequence[RunData]) -> list[RunData]:
    """Return the data of runs, best first."""
    places = {entry.run: place for place, entry in enumerate(best_per_run(scene.leading))}
    return sorted(data, key=lambda run: places.get(run.run, len(places)))


def _strip(site: Site, champion: Entry | None) -> Sequence[Item]:
    """Return a few random images of the best run."""
    made = site.made.get(champion.run) if champion else None
    return made.groups[-1].items[:STRIP_IMAGES] if made and made.groups else []


def _results(site: Site, scene: Scene, data: str, number: int) -> tuple[list[Table], Files]:
    """Return the tables of one data set, the key metrics and all metrics, and the files of their further lines."""
    mine = [entry for entry in scene.entries if entry.data == data]
    known = {name for entry in mine for name in entry.measurements}
    lost = _unmeasured(scene)
    about = {run: _about_run(site, run, lost) for run in {entry.run for entry in mine}}
    caption = (
        f"Held-out images of data set “{data}”. Small print: 95 % interval. ▲ marks the best trained run."
    )
    key = [name for name in KEY_METRICS if name in known]
    tables: list[Table] = []
    files: Files = {}
    for name, metrics in (("results", key), ("all-metrics", in_order(known))):
        whole = results_table(mine, metrics, about, caption, with_training=name == "results")
        table, made = light(whole, f"{name}-{number}", csv=SUMMARY)
        tables.append(table)
        files |= made
    return tables, files


def _about_run(site: Site, run: str, unmeasured: Sequence[str]) -> AboutRun:
    """Return what the table of results says of a run beside its figures."""
    made, state = site.made.get(run), next((one for one in site.states if one.run == run), None)
    words = state.words if state else ""
    return AboutRun(
        page=made.page if made else "",
        state=f"{words}, nothing could be measured" if run in unmeasured else words,
        curve=made.sparkline if made else (),
        curve_of=made.sparkline_of if made else "",
        trained_seconds=made.seconds.get("train") if made else None,
    )


def _gallery_page(site: Site, scene: Scene, render: Renderer) -> Files:
    ranked = [entry for entry in best_per_run(scene.leading) if entry.kind != "ceiling"]
    shown = {
        entry: site.made[entry.run].groups for entry in ranked if entry.run in site.made if _has(site, entry)
    }
    trained = [entry for entry in shown if entry.trained][:COMPARED_TRAINED]
    closed = [entry for entry in shown if not entry.trained][: COMPARED_RUNS - len(trained)]
    compared = [entry for entry in shown if entry in trained or entry in closed]
    by_index = {
        entry: {item.index: item for group in shown[entry] for item in group.items} for entry in shown
    }
    rows = [
        _row([by_index[entry].get(index) for entry in compared])
        for index in common_indices([shown[entry] for entry in compared], COMPARED_IMAGES)
    ]
    leaders = [entry for entry in dict.fromkeys((scene.best, scene.best_flow)) if entry in shown]
    titles = {scene.best: "the best run", scene.best_flow: "the best flow"}
    sections = [(f"{entry.name}, {titles[entry]}", shown[entry]) for entry in leaders if entry]
    return {"gallery.html": render("gallery.html.j2", compared=compared, rows=rows, sections=sections)}


def _has(site: Site, entry: Entry) -> bool:
    return bool(site.made[entry.run].groups)


def _row(items: Sequence[Item | None]) -> tuple[Any, str, Sequence[Item | None]]:
    """Return picture, caption and one item per run of an image that several galleries show."""
    first = next(item for item in items if item)
    return first.picture, first.caption, items


def _data_files(site: Site) -> Files:
    verdicts = [asdict(verdict) for verdict in site.results.verdicts]
    facts = asdict(site.facts)
    return {
        SUMMARY: measurements_csv(site.results.measurements).encode(),
        "data/verdicts.json": _json(verdicts),
        "about.json": _json(facts),
        "style.css": (TEMPLATES / "style.css").read_bytes(),
        "site.js": (TEMPLATES / "site.js").read_bytes(),
    }


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
