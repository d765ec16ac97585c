"""The page of one run: what it asks, how it stands, its figures and images, and how it was made.

`render_run` returns the files of one page as bytes by their path below the site: the page itself, its figures with
their data, thumbnails, error maps, and `about.json` for the pages that show several runs. It is given the run, and the
few others that stand beside it on the page; no other run changes a byte of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowkit.report.curves import sparkline, training_curves
from flowkit.report.data import Pictures, Results, RunFiles
from flowkit.report.details import Details
from flowkit.report.figures import cosine_histogram, position_maps
from flowkit.report.gallery import Album, Group, colour_scale, groups
from flowkit.report.made_page import ABOUT, MadePage
from flowkit.report.measures import measure, plain
from flowkit.report.neighbours import indices as strip_images
from flowkit.report.neighbours import neighbour_strips, query_strips
from flowkit.report.records import pretty, settings, stage_seconds
from flowkit.report.rendering import Facts, Files, Renderer, figure_files
from flowkit.report.run_data import run_data
from flowkit.report.run_tables import (
    changed_settings,
    notes_table,
    retrieval_table,
    seeds_table,
    stage_costs,
)
from flowkit.report.scene import Scene, data_of, details_of, page_of, slug
from flowkit.report.standings import HEADLINE, Entry, best_per_run, comparisons, label
from flowkit.report.studies import components, error_over_time, evaluations_study
from flowkit.report.tables import Table, differences_table, metrics_table, thresholds_table
from flowkit.seeds import BY_VIEW

BESIDE = ("constant", "ridge", "regression", f"flow{BY_VIEW}", f"regression{BY_VIEW}", "true")
"""Runs that stand beside every other in the table of its key numbers."""
IMAGES = 12
"""Best, worst and random images on the page; all of a gallery are on the gallery's page."""
TILES = ("r2", "skill_r2", "tok_cos", "fd_img", "t2i_r1", "nfe")


@dataclass(frozen=True)
class RunPage:
    """Everything that `render_run` needs.

    `results` hold the rows of the run, of those that stand beside it, and of `seeds`, the runs that are the same
    training with other seeds; `error_limit` is the error of the brightest colour of an error map,
    `scale_of` the run that set it; `evaluation` names what was measured, so that an outdated page is known.
    """

    facts: Facts
    run: RunFiles
    results: Results
    error_limit: float = 1.0
    scale_of: str = ""
    evaluation: str = ""
    pictures: Pictures | None = None
    gallery_images: int = 24
    question: str = ""
    seeds: Sequence[str] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def render_run(asked: RunPage) -> Files:
    """Return every file of the page of one run by its path."""
    run, scene = asked.run, Scene(asked.results)
    champion = scene.champion_of(run.name)
    details = details_of(champion, dict(run.details)) if champion else None
    is_trained = champion is not None and champion.trained
    album = Album(asked.pictures, sorted(_images(details, is_trained=is_trained)), asked.error_limit)
    found = groups(album, slug(run.name), details, asked.gallery_images) if details else []
    folder = f"figures/{slug(run.name)}"
    files, curves = figure_files(folder, training_curves(run.name, run.metrics))
    drawn = error_over_time(run.name, run.metrics), evaluations_study(run.name, scene.leading)
    made, studies = figure_files(folder, [plot for plot in drawn if plot])
    files |= made
    figures, samplers = {"": [*curves, *studies]}, []
    for sampler, arrays in sorted(run.details.items(), key=lambda item: item[1] is not details):
        made, shown = _evaluated(run.name, sampler, arrays)
        files |= made
        samplers.append(shown)
        figures[sampler] = shown["figures"]
    render = Renderer(asked.facts, legend=colour_scale(album.limit, asked.scale_of))
    files[page_of(run.name)] = render(
        "run.html.j2",
        "../",
        run=run,
        question=asked.question,
        champion=champion,
        verdict=verdict(champion) if champion else "",
        comparisons=comparisons(champion, scene.leading) if champion else [],
        tiles=_tiles(champion) if champion else [],
        **_tables(asked, scene, champion),
        curves=curves,
        studies=studies,
        samplers=samplers,
        groups=[Group(group.title, group.items[: IMAGES // 3]) for group in found],
        neighbours=neighbour_strips(album, details) if details and is_trained else [],
        queries=query_strips(album, details) if details and is_trained else [],
        settings=settings(run),
        records=[(record.name, pretty(record)) for record in run.records],
    )
    mine = [entry for entry in scene.leading if entry.run == run.name]
    if mine:
        files[data_of(run.name)] = run_data(
            run.name,
            slug(run.name),
            mine,
            run.details,
            settings=settings(run),
            figures=figures,
            items=[item for group in found for item in group.items],
            question=asked.question,
        )
    line, words = sparkline(run.metrics)
    about = MadePage(
        run=run.name,
        page=page_of(run.name),
        sampler=champion.sampler if champion else "",
        question=asked.question,
        groups=found,
        sparkline=line,
        sparkline_of=words,
        seconds=stage_seconds(run),
        error_limit=album.limit,
        scale_of=asked.scale_of,
        evaluation=asked.evaluation,
    )
    return files | album.files | {ABOUT: about.as_bytes()}


CEILINGS = {
    "true": "The target encoder's own tokens: no translation needs to be better.",
    "true_fp16": "The target encoder's own tokens before they were rounded: no translation needs to be better.",
    "true_jpeg75": "The target encoder's tokens of JPEGs of quality 75 of the images: what that change alone does.",
    "true_crop": "The target encoder's tokens of slightly cropped images: what that change alone does.",
}


def verdict(champion: Entry) -> str:
    """Return in one sentence what the figures say of a run at its best."""
    if champion.value(HEADLINE) is None:
        return "Nothing could be measured; the notes below say why."
    if champion.kind == "ceiling":
        return CEILINGS.get(champion.run, CEILINGS["true"])
    kind = {"flow": "A flow", "regression": "A regression"}.get(champion.kind, "A closed-form baseline")
    sampler = f" with {champion.sampler}" if champion.trained else ""
    closed = champion.value("skill_r2")
    if not champion.trained or closed is None:
        return f"{kind}{sampler}."
    if closed < 0:
        return f"{kind}{sampler} that stays below ridge, a closed-form linear map."
    share = plain(closed * 100, 0)
    return f"{kind}{sampler} that closes {share} % of the R² gap between ridge and a perfect prediction."


def _images(details: Details | None, *, is_trained: bool) -> set[int]:
    """Return the evaluation images that the page shows."""
    if details is None:
        return set()
    return {int(index) for index in details.gallery_index} | (strip_images(details) if is_trained else set())


def _evaluated(run: str, sampler: str, details: Details) -> tuple[Files, Mapping[str, Any]]:
    """Return the figures of one sampler and what the page shows of it."""
    name = label(run, sampler)
    drawn = [cosine_histogram(name, details), position_maps(name, details), components(name, details)]
    files, figures = figure_files(f"figures/{slug(run)}/{slug(sampler)}", [plot for plot in drawn if plot])
    return files, {"title": name, "figures": figures, "thresholds": thresholds_table(details)}


def _tiles(champion: Entry) -> list[tuple[str, str, str]]:
    """Return (label, value, interval) of the key numbers that were measured."""
    tiles = []
    for name in TILES:
        row = champion.measurements.get(name)
        if row is not None and row.value is not None:
            shown = measure(name)
            tiles.append((shown.label, shown.text(row.value), shown.interval(row.low, row.high)))
    return tiles


def _tables(asked: RunPage, scene: Scene, champion: Entry | None) -> dict[str, Table | None]:
    """Return the tables of the page by what the template calls them."""
    run = asked.run.name
    leading = {entry.run: entry for entry in reversed(best_per_run(scene.leading))}
    columns = [entry for entry in scene.leading if entry.run == run]
    columns += [leading[name] for name in BESIDE if name in leading and name != run]
    notes = [note for note in asked.results.notes if note.run == run]
    true = leading.get("true")
    return {
        "numbers": metrics_table(
            columns, f"{run} beside the references. Small print: 95 % bootstrap interval."
        ),
        "differences_to_others": differences_table(champion) if champion else None,
        "retrieval": retrieval_table(champion, true if run != "true" else None) if champion else None,
        "seeds": seeds_table(champion, _family(champion, scene.leading, asked.seeds)) if champion else None,
        "notes": notes_table(notes),
        "changed": changed_settings(asked.run, asked.defaults),
        "costs": stage_costs(asked.run.records),
    }


def _family(champion: Entry, candidates: Sequence[Entry], seeds: Sequence[str]) -> list[Entry]:
    """Return the entries of all seeds of a training, with the champion's sampler."""
    runs = {champion.run, *seeds}
    return [entry for entry in candidates if entry.sampler == champion.sampler and entry.run in runs]
