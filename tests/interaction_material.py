"""A small report in which the tables are long, runs can be compared, and every name comes from an enemy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from flowkit.report.compare import compare_page
from flowkit.report.data import Difference, Measurement, Picture
from flowkit.report.details import Details
from flowkit.report.figures import cosine_histogram, position_maps
from flowkit.report.gallery import Album, colour_scale, groups
from flowkit.report.rendering import TEMPLATES, Facts, Files, Renderer, figure_files
from flowkit.report.run_data import read_run_data, run_data
from flowkit.report.scene import slug
from flowkit.report.standings import Entry, kind_of
from flowkit.report.tables import light, results_table

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(1)</script>"
QUOTED = 'it\'s "quoted" & \u2028 ünï 译 `${alert(1)}`'
HOSTILE = (IMAGE, SCRIPT, QUOTED)
IMAGES, TOKENS = 400, 17
GALLERY = 12


def entry(run: str, sampler: str, r2: float, more: dict[str, float] | None = None) -> Entry:
    """An entry whose intervals are 0.02 wide; `more` are further metrics."""
    values = {"r2": r2, "fd_img": 1.01 - r2, "nfe": 49.0, "images_per_s": 2.5, IMAGE: 1 / 32} | (more or {})
    rows = {
        name: Measurement(run, sampler, "evaluation", name, value, value - 0.01, value + 0.01, None)
        for name, value in values.items()
    }
    return Entry(run, sampler, "evaluation", kind_of(run, [sampler]), rows)


def details(r2: float, seed: int, *, images: int = IMAGES) -> Details:
    """Details of predictions with about this R2 on images that are the same for every seed."""
    common, own = np.random.default_rng(0), np.random.default_rng([1, seed])
    hard, spread = common.gamma(4, 0.25, images), common.gamma(8, 0.125, images)
    error = (1 - r2) * hard * own.gamma(16, 1 / 16, images)
    error *= (1 - r2) * images / error.sum()
    gallery = np.sort(own.choice(40, GALLERY, replace=False))
    tokens = np.linspace(0.8, 1.2, TOKENS)
    return Details(
        cos_image=np.clip(1 - error / 2, -1, 1),
        cos_token_mean=np.clip(1 - error / 3, -1, 1),
        cos_constant=np.full(images, 0.5),
        cos_shuffled=np.full(images, 0.3),
        error_image=error,
        self_rank=np.ones(images),
        t2i_rank=np.ones(images),
        cos_position=0.8 * tokens,
        r2_position=r2 * tokens,
        norm_ratio_position=tokens,
        error_map=error[gallery][:, None] * tokens,
        component_share=np.array([0.7, 0.3]),
        component_ratio=np.array([1.0, 0.5]),
        component_r2=np.array([0.9, 0.1]),
        gallery_index=gallery,
        neighbours_true=np.tile(np.arange(5), (GALLERY, 1)),
        neighbours_predicted=np.tile(np.arange(5), (GALLERY, 1)),
        query_index=np.array([0]),
        query_true=np.arange(5)[None],
        query_predicted=np.arange(5)[None],
        spread_image=spread / spread.mean(),
        without={"fd_img": 1.01 - r2 + own.normal(0, 1e-3, 10)},
    )


RUNS = {
    "flow": {"heun-50": 0.92, "euler-1": 0.90},
    "regression": {"direct-1": 0.9195},
    IMAGE: {"heun-50": 0.70, QUOTED: 0.66},
    SCRIPT: {"heun-50": 0.60},
    QUOTED: {"heun-50": 0.50},
    "ridge": {"closed-form": 0.88},
}
"""R2 by run and sampler; the first two are too near to each other to be told apart by their own intervals."""


def settings_of(run: str) -> dict[str, str]:
    """Settings that differ between runs; the closed form has none."""
    shared = {"train.steps": "4000", "__proto__": run}
    return {} if run == "ridge" else {**shared, f"train.{IMAGE}": f"{SCRIPT} of {run}"}


SUMMARY = {
    "flow": (SCRIPT, {"r2": (0.3, 0.28123, 0.34567), "fd_img": (-0.3, -0.61234, 0.01234)}),
    QUOTED: ("flow", {"r2": (-0.4, -0.81234, 0.01234), "fd_img": (0.4, 0.38123, 0.42345)}),
}
"""What the summary says of a run against another at its best; far from what the errors would say."""


def compared_entry(run: str, sampler: str, r2: float) -> Entry:
    """An entry with its gap closed to ridge, in an interval that overlaps with others, and what the summary has."""
    skill = (r2 - RUNS["ridge"]["closed-form"]) / (1 - RUNS["ridge"]["closed-form"])
    plain = entry(run, sampler, r2)
    of_skill = Measurement(run, sampler, plain.data, "skill_r2", skill, skill - 0.2, skill + 0.2, None)
    against, rows = SUMMARY.get(run, ("", {}))
    found = {
        (against, metric): Difference(run, sampler, plain.data, against, metric, *row)
        for metric, row in rows.items()
    }
    return replace(plain, measurements={**plain.measurements, "skill_r2": of_skill}, differences=found)


def one_run(run: str) -> Files:
    """The files that the comparison needs of one run."""
    samplers, number = RUNS[run], list(RUNS).index(run)
    entries = [compared_entry(run, sampler, r2) for sampler, r2 in samplers.items()]
    known = {
        sampler: details(r2, 10 * number + place) for place, (sampler, r2) in enumerate(samplers.items())
    }
    files: Files = {}
    figures = {}
    for sampler, one in known.items():
        plots = [cosine_histogram(f"{run} · {sampler}", one), position_maps(f"{run} · {sampler}", one)]
        made, figures[sampler] = figure_files(
            f"figures/{slug(run)}/{slug(sampler)}", [plot for plot in plots if plot]
        )
        files |= made
    best = known[entries[0].sampler]
    album = Album(pictures, sorted(map(int, best.gallery_index)), 0.4)
    items = [item for group in groups(album, slug(run), best, GALLERY) for item in group.items]
    question = f"Does {run} help?"
    data = run_data(
        run,
        slug(run),
        entries,
        known,
        settings=settings_of(run),
        figures=figures,
        items=items,
        question=question,
    )
    return (
        files | album.files | {f"data/runs/{slug(run)}.js": data, f"runs/{slug(run)}.html": b"<h1>run</h1>"}
    )


def pictures(indices: list[int]) -> list[Picture]:
    """Plain images with captions that try to be more."""
    return [
        Picture(
            Image.new("RGB", (32, 32), (index * 5 % 256, 90, 160)), f"{HOSTILE[index % 3]} number {index}"
        )
        for index in indices
    ]


def renderer() -> Renderer:
    """Fills the templates with harmless facts."""
    return Renderer(
        Facts("small", "A small report", "demo-eva", "demo-vit", is_demo=True),
        pages={},
        legend=colour_scale(0.4, "ridge"),
    )


def comparison_site(runs: list[str]) -> Files:
    """The compare page of these runs with everything that it shows."""
    files: Files = {name: (TEMPLATES / name).read_bytes() for name in ("style.css", "site.js")}
    for run in runs:
        files |= one_run(run)
    data = [read_run_data(files[f"data/runs/{slug(run)}.js"]) for run in runs]
    return files | compare_page(renderer(), data)


def many_entries(runs: int, samplers: int, metrics: list[str]) -> list[Entry]:
    """Entries of many runs, best first, some values missing; the first three runs have hostile names."""
    found = []
    for number in range(runs):
        name = HOSTILE[number] if number < len(HOSTILE) else f"run-{number}"
        for place in range(samplers):
            r2 = 0.99 - (number * samplers + place) / (2 * runs * samplers)
            values = {
                metric: ((number * 7919 + place * 104729 + column * 31) % 1009) / 1009
                for column, metric in enumerate(metrics)
                if (number + place + column) % 11
            }
            found.append(entry(name, f"heun-{place + 1}", r2, values))
    found[0].differences[("ridge", "r2")] = Difference(  # type: ignore[index]
        found[0].run, "heun-1", "evaluation", "ridge", "r2", 0.01, 0.005, 0.015
    )
    return found


TABLES_PAGE = """{% extends "base.html.j2" %}
{% block here %}index.html{% endblock %}
{% block title %}Tables{% endblock %}
{% block content %}
<h1>Tables</h1>
<section aria-label="Key">{{ parts.table(main, root, "Results") }}</section>
<details><summary>All metrics</summary>{{ parts.table(all, root, "All metrics") }}</details>
{% endblock %}"""


def tables_site(runs: int, samplers: int, metrics: list[str]) -> Files:
    """A page with a table of the key metrics and one of all metrics in a closed part, as the start page has them."""
    entries = many_entries(runs, samplers, metrics)
    key = ["r2", "fd_img", "nfe", *metrics[:5]]
    tables = {}
    files: Files = {name: (TEMPLATES / name).read_bytes() for name in ("style.css", "site.js")}
    for name, chosen in (("main", key), ("all", ["r2", "fd_img", "nfe", IMAGE, *metrics])):
        table = results_table(entries, chosen, {}, f"Held-out images of {QUOTED}.")
        tables[name], made = light(table, f"results-{name}", csv="data/summary.csv")
        files |= made
    page = renderer()._environment.from_string(TABLES_PAGE).render(root="", **tables).encode()
    return files | {"index.html": page, "data/summary.csv": b"run\n"}


def write(files: Files, folder: Path) -> Path:
    """Write files below a folder and return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
