"""Puts the pages together: what each page shows, in which order, and the files that stand beside it.

`render_site` returns every file of the report as bytes by its path below the site. Templates only print: all
decisions are made here and in the modules that this one calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flowkit.report.curves import training_curves
from flowkit.report.data import ReportInputs, Results, RunFiles
from flowkit.report.figures import cosine_histogram, fidelity_against_distribution, position_maps
from flowkit.report.gallery import Item, common_indices, groups, palette_steps
from flowkit.report.measures import KEY_METRICS, in_order, plain
from flowkit.report.neighbours import neighbour_strips, query_strips
from flowkit.report.records import differences, pretty, settings, stages_table, versions_table
from flowkit.report.rendering import TEMPLATES, Facts, Files, Renderer, figure_files
from flowkit.report.scene import Scene, slug
from flowkit.report.standings import Entry, best, best_per_run, comparisons, label
from flowkit.report.studies import components, error_over_time, evaluations_study
from flowkit.report.tables import (
    Table,
    differences_table,
    measurements_csv,
    metrics_table,
    notes_table,
    results_table,
    thresholds_table,
)

BESIDE = ("constant", "ridge", "regression", "true")
COMPARED_RUNS = 6
COMPARED_IMAGES = 12
RUN_PAGE_IMAGES = 12
STRIP_IMAGES = 6


def render_site(inputs: ReportInputs, results: Results) -> Files:
    """Return every file of the report by its path."""
    scene = Scene(inputs, results)
    render = Renderer(
        Facts(
            results.name, inputs.title, inputs.source_encoder, inputs.target_encoder, is_demo=inputs.demo
        ),
        pages=scene.pages,
        legend={"colours": palette_steps(), "limit": plain(scene.album.limit, 2)},
    )
    files = _index_page(scene, render)
    for run in results.runs.values():
        files |= _run_page(scene, render, run)
    files |= _gallery_page(scene, render)
    files |= _provenance_page(scene, render)
    return files | _data_files(results) | scene.album.files


def _index_page(scene: Scene, render: Renderer) -> Files:
    champion, flow = scene.best, scene.best_flow
    plot = fidelity_against_distribution(scene.leading)
    files, figures = figure_files("figures", [plot] if plot else [])
    page = render(
        "index.html.j2",
        champion=champion,
        best_flow=flow,
        baseline=best(scene.leading, "closed form"),
        tied=scene.tied_with(champion),
        comparisons=comparisons(champion, scene.leading) if champion else [],
        flow_comparisons=comparisons(flow, scene.leading) if flow else [],
        ladder=[entry for entry in best_per_run(scene.leading) if entry.kind != "ceiling"],
        verdicts=scene.results.verdicts,
        strip=_strip(scene),
        tables=[_results(scene, data) for data in dict.fromkeys(entry.data for entry in scene.entries)],
        figures=figures,
    )
    return files | {"index.html": page}


def _strip(scene: Scene) -> Sequence[Item]:
    """Return a few random images of the best run."""
    if scene.best is None or scene.best not in scene.detailed:
        return []
    found = groups(scene.album, slug(scene.best.run), scene.detailed[scene.best], 3 * STRIP_IMAGES)
    return found[-1].items if found else []


def _results(scene: Scene, data: str) -> tuple[str, Table, Table]:
    """Return the tables of one data set: the key metrics and all metrics."""
    mine = [entry for entry in scene.entries if entry.data == data]
    known = {name for entry in mine for name in entry.measurements}
    caption = (
        f"Held-out images of data set “{data}”. Small print: 95 % interval. ▲ marks the best trained run."
    )
    key = [name for name in KEY_METRICS if name in known]
    return (
        data,
        results_table(mine, key, scene.pages, caption),
        results_table(mine, in_order(known), scene.pages, caption),
    )


def _run_page(scene: Scene, render: Renderer, run: RunFiles) -> Files:
    champion = scene.champion_of(run.name)
    best_details = scene.details(champion) if champion else None
    columns = [entry for entry in scene.leading if entry.run == run.name]
    columns += [
        entry for entry in best_per_run(scene.leading) if entry.run in BESIDE and entry.run != run.name
    ]
    folder = f"figures/{slug(run.name)}"
    plots = [*training_curves(run.name, run.metrics), error_over_time(run.name, run.metrics)]
    files, curves = figure_files(folder, [plot for plot in plots if plot])
    study = evaluations_study(run.name, scene.leading)
    made, studies = figure_files(folder, [study] if study else [])
    files |= made
    samplers = []
    for sampler, details in sorted(run.details.items(), key=lambda item: item[1] is not best_details):
        name = label(run.name, sampler)
        drawn = [cosine_histogram(name, details), position_maps(name, details), components(name, details)]
        made, figures = figure_files(f"{folder}/{slug(sampler)}", [plot for plot in drawn if plot])
        files |= made
        samplers.append({"title": name, "figures": figures, "thresholds": thresholds_table(details)})
    is_trained = champion is not None and champion.trained
    page = render(
        "run.html.j2",
        "../",
        run=run,
        question=scene.inputs.questions.get(run.name, ""),
        champion=champion,
        comparisons=comparisons(champion, scene.leading) if champion else [],
        numbers=metrics_table(
            columns, f"{run.name} beside the references. Small print: 95 % bootstrap interval."
        ),
        differences_to_others=differences_table(champion) if champion else None,
        notes=notes_table([note for note in scene.results.notes if note.run == run.name]),
        curves=curves,
        studies=studies,
        samplers=samplers,
        groups=groups(scene.album, slug(run.name), best_details, RUN_PAGE_IMAGES) if best_details else [],
        neighbours=neighbour_strips(scene.album, best_details) if best_details and is_trained else [],
        queries=query_strips(scene.album, best_details) if best_details and is_trained else [],
        differences=differences(run, list(scene.results.runs.values()), scene.inputs.defaults),
        settings=settings(run),
        records=[(record.name, pretty(record)) for record in run.records],
    )
    return files | {scene.pages[run.name]: page}


def _gallery_page(scene: Scene, render: Renderer) -> Files:
    compared = list(scene.detailed)[:COMPARED_RUNS]
    indices = common_indices([scene.detailed[entry] for entry in compared], COMPARED_IMAGES)
    rows = [
        (*scene.album.picture(index), [_map_of(scene, entry, index) for entry in compared])
        for index in indices
    ]
    leaders = [entry for entry in dict.fromkeys((scene.best, scene.best_flow)) if entry in scene.detailed]
    count = scene.inputs.gallery_images
    sections = [
        (entry, groups(scene.album, slug(entry.run), scene.detailed[entry], count))
        for entry in leaders
        if entry
    ]
    return {"gallery.html": render("gallery.html.j2", compared=compared, rows=rows, sections=sections)}


def _map_of(scene: Scene, entry: Entry, index: int) -> Item | None:
    """Return one image as an entry's gallery has it, None when its gallery does not hold the image."""
    details = scene.detailed[entry]
    places = np.flatnonzero(details.gallery_index == index)
    return scene.album.item(slug(entry.run), details, int(places[0])) if places.size else None


def _provenance_page(scene: Scene, render: Renderer) -> Files:
    runs = list(scene.results.runs.values())
    page = render("workflow.html.j2", stages=stages_table(runs, scene.pages), versions=versions_table(runs))
    return {"workflow.html": page}


def _data_files(results: Results) -> Files:
    verdicts = [asdict(verdict) for verdict in results.verdicts]
    return {
        "data/summary.csv": measurements_csv(results.measurements).encode(),
        "data/verdicts.json": json.dumps(verdicts, indent=1, ensure_ascii=False).encode(),
        "style.css": (TEMPLATES / "style.css").read_bytes(),
        "site.js": (TEMPLATES / "site.js").read_bytes(),
    }
