"""Bars of the report: how soon its start page is there, how quick long tables are, how heavy and slow to make it is.

Two made-up experiments. `many` has 200 runs with 10 samplers each and every metric, so that the tables of the start
page have 2,000 rows. `large` has 5,000 evaluated images of 257 tokens, galleries of 24 and 10,000 lines of training for
each of its trained runs. Pages are opened from disk in headless Chromium; a click is timed inside the page, to the end
of the frame that follows it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rows import Row, row

from flowkit.report.data import Picture, RunFiles, read_results, read_run
from flowkit.report.made_page import ABOUT, MadePage, read_made_page
from flowkit.report.measures import MEASURES
from flowkit.report.pages import Site, render_site
from flowkit.report.rendering import Facts, Files
from flowkit.report.run_data import read_run_data
from flowkit.report.run_page import RunPage, render_run
from flowkit.report.site import read_files, write_files

RUNS, SAMPLERS = 200, 10
IMAGES, TOKENS, CHANNELS, GALLERY, LINES = 5000, 257, 1024, 24, 10_000
TRAINED = {f"flow-{number}": ("heun-50", "midpoint-2", "euler-1") for number in range(5)} | {
    "regression": ("direct-1",)
}
CLOSED = {name: ("closed-form",) for name in ("constant", "nearest", "ridge", "ridge_ot", "true")}
FIRST_PAINT_MS, REACTION_MS = 1000, 200
PAGE_BYTES, REPORT_BYTES, BUILD_SECONDS = 1.5e6, 50e6, 300
REPEATS = 9
FACTS = Facts("bench", "Benchmark", "demo-eva", "demo-vit", is_demo=True)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]

CLICK = """async ([table, column]) => {
  const head = document.querySelectorAll("table.sortable")[table].tHead.rows[0];
  const button = head.cells[column].querySelector("button");
  const begin = performance.now();
  button.click();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begin;
}"""
FILTER = """async ([at, words]) => {
  const field = document.querySelectorAll(".filter input")[at];
  const status = field.closest(".tools").querySelector("output");
  const told = new Promise((done) => new MutationObserver(done).observe(status, { childList: true }));
  const begin = performance.now();
  field.value = words;
  field.dispatchEvent(new Event("input"));
  await told;
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begin;
}"""


def rows(folder: Path) -> list[Row]:
    """Measure everything; both experiments are written below `folder`."""
    if CHROMIUM is None:
        raise RuntimeError("no Chromium on this machine, install the package chromium")
    many, _ = build(write_summary(folder / "many", many_runs()), folder / "many-report")
    large, seconds = build(write_large(folder / "large"), folder / "large-report")
    return [
        *_in_browser(folder / "many-report" / "index.html"),
        *(_heaviest(name, files) for name, files in (("2,000 rows", many), ("5,000 images", large))),
        row(
            "whole report of 5,000 images / 50 MB",
            [_bytes(large) / REPORT_BYTES],
            1.0,
            at_most=True,
            files=len(large),
        ),
        row(
            "building the report of 5,000 images / 5 minutes",
            [seconds / BUILD_SECONDS],
            1.0,
            at_most=True,
            seconds=round(seconds, 1),
        ),
    ]


def _heaviest(what: str, files: Files) -> Row:
    pages = {name: len(content) for name, content in files.items() if name.endswith(".html")}
    name = max(pages, key=lambda page: pages[page])
    share = pages[name] / PAGE_BYTES
    return row(
        f"heaviest page of the report of {what} / 1.5 MB",
        [share],
        1.0,
        at_most=True,
        page=name,
        bytes=pages[name],
    )


def _bytes(files: Files) -> int:
    return sum(map(len, files.values()))


# ---- in the browser


def _in_browser(start_page: Path) -> list[Row]:
    with _opened(start_page) as page:
        painted = [_first_paint(page, start_page) for _ in range(REPEATS)]
        page.wait_for_selector(".filter")
        times = {"sorting key metrics": _sorting(page, 0), "filtering key metrics": _filtering(page, 0)}
        page.locator("details", has=page.locator("table.sortable")).first.locator("summary").first.click()
        page.wait_for_function("document.querySelectorAll('.filter').length > 1")
        times |= {"sorting all metrics": _sorting(page, 1), "filtering all metrics": _filtering(page, 1)}
    what = f"of {RUNS} runs x {SAMPLERS} samplers"
    bars = [("first paint of the start page", painted, FIRST_PAINT_MS, "1 s")]
    bars += [(f"{name} {what}", found, REACTION_MS, "200 ms") for name, found in times.items()]
    return [
        row(f"{name} / {demand}", [value / limit for value in found], 1.0, at_most=True)
        for name, found, limit, demand in bars
    ]


@contextmanager
def _opened(path: Path) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(path.as_uri())
        yield page
        browser.close()


def _first_paint(page: Page, path: Path) -> float:
    page.goto("about:blank")
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")


def _sorting(page: Page, table: int) -> list[float]:
    return [page.evaluate(CLICK, [table, column]) for column in (0, 2, 3) for _ in range(REPEATS // 3)]


def _filtering(page: Page, table: int) -> list[float]:
    words = ("run-1", "heun-3", "run-12 heun", "flow", "run-7", "heun-10", "run", "heun-1", "run-19")
    return [page.evaluate(FILTER, [table, word]) for word in words]


# ---- two experiments


def build(experiment: Path, to: Path) -> tuple[Files, float]:
    """Make the report of an experiment folder as the stages do, write it, and return its files and the seconds it took.

    Only runs with a folder of their own have a page.
    """
    begin = time.monotonic()
    results = read_results(experiment)
    made: dict[str, MadePage] = {}
    files: Files = {}
    for name in sorted({one.run for one in results.measurements}):
        folder = experiment / "runs" / name
        if folder.is_dir():
            run: RunFiles = read_run(folder)
            write_files(
                render_run(RunPage(FACTS, run, results, error_limit=0.4, pictures=pictures)),
                to / "pages" / name,
            )
            made[name] = read_made_page(to / "pages" / name)
            files |= read_files(to / "pages" / name, without=ABOUT)
    data = [read_run_data(content) for name, content in files.items() if name.startswith("data/runs/")]
    files |= render_site(Site(FACTS, results, made, data=data))
    write_files(files, to)
    return files, time.monotonic() - begin


def pictures(indices: Sequence[int]) -> list[Picture]:
    """Images with as much detail as photographs: their thumbnails are as heavy as they may be."""
    found = []
    for index in indices:
        coarse = np.random.default_rng(index).integers(0, 255, (60, 60, 3), np.uint8)
        image = Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)
        found.append(Picture(image, f"a photograph of something, number {index}"))
    return found


def many_runs() -> Mapping[str, Sequence[str]]:
    """Samplers of each of the 200 runs."""
    return {f"run-{run}": [f"heun-{sampler + 1}" for sampler in range(SAMPLERS)] for run in range(RUNS)}


def write_summary(folder: Path, runs: Mapping[str, Sequence[str]]) -> Path:
    """Write a summary with every metric of every sampler, and no verdicts; returns the folder."""
    generator = np.random.default_rng(0)
    columns = ("run", "sampler", "data", "metric", "value", "low", "high", "seed_spread")
    found = [
        dict(
            zip(columns, (run, sampler, "coco", metric, value, value - 0.01, value + 0.01, None), strict=True)
        )
        for run, samplers in runs.items()
        for sampler in samplers
        for metric, value in zip(MEASURES, generator.uniform(0.1, 0.9, len(MEASURES)), strict=True)
    ]
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "rows": found}))
    (folder / "verdicts.json").write_text(json.dumps({"schema": 1, "rows": []}))
    return folder


def write_large(folder: Path) -> Path:
    """Write an experiment of full size; returns its folder."""
    write_summary(folder, TRAINED | CLOSED)
    for number, (run, samplers) in enumerate((TRAINED | CLOSED).items()):
        evaluation, train = folder / "runs" / run / "evaluation" / "abc", folder / "runs" / run / "train"
        evaluation.mkdir(parents=True)
        (evaluation / "scores.json").write_text("{}")
        for place, sampler in enumerate(samplers):
            np.savez(evaluation / f"details-{sampler}.npz", **_details(seed=10 * number + place))
        if run in TRAINED:
            (train / "abc").mkdir(parents=True)
            (train / "abc" / "metrics.jsonl").write_text("\n".join(map(json.dumps, _lines())))
            values = {"train": {f"setting_{at}": at for at in range(60)}}
            (train / "run.json").write_text(
                json.dumps({"stage": "train", "spec": {"values": values}, "seconds": 1.0})
            )
    return folder


def _lines() -> Iterator[dict[str, float]]:
    for step in range(1, LINES + 1):
        line = {"step": step, "loss": 1 / step**0.5, "grad_norm": 1.0, "learning_rate": 1e-3}
        yield line | ({"validation_r2": 0.9 - 1 / step, "validation_tok_cos": 0.9} if step % 50 == 0 else {})


def _details(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    error = generator.gamma(4, 0.05, IMAGES)
    gallery = generator.choice(IMAGES, GALLERY, replace=False)
    near = generator.integers(0, IMAGES, (GALLERY, 5))
    shapes = {
        **dict.fromkeys(("cos_image", "cos_token_mean", "cos_constant", "cos_shuffled"), IMAGES),
        **dict.fromkeys(("cos_position", "r2_position", "norm_ratio_position"), TOKENS),
        **dict.fromkeys(("component_share", "component_ratio", "component_r2"), CHANNELS),
        "error_map": (GALLERY, TOKENS),
        "without_fd_img": 10,
    }
    return {name: generator.uniform(0.1, 0.9, shape) for name, shape in shapes.items()} | {
        "error_image": error,
        "spread_image": np.random.default_rng(0).gamma(8, 0.125, IMAGES),
        "self_rank": generator.integers(1, 100, IMAGES),
        "t2i_rank": generator.integers(1, 100, IMAGES),
        "gallery_index": gallery,
        "neighbours_true": near,
        "neighbours_predicted": near[::-1],
        "query_index": gallery[:6],
        "query_true": near[:6],
        "query_predicted": near[6:12],
    }
