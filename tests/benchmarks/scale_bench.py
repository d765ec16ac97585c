"""Bars of the bookkeeping at 2,000 tars and five million pairs: what runs before and beside all computing.

Stores are those of scale_material.py: true metadata, tables and records, most of them links. The start of a training -
index of the stores, pairs, order of an epoch, first batch of a step in its middle - is measured in a process of its
own each time, without loading torch and the package. Snakemake plans the workflow when nothing is there, and when all
tars are extracted and paired. The data page is drawn from what stage `survey` leaves for as many tars; beside it stand
all run records, which the workflow page reads. The survey's own search is reported for a part of the tars.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rows import Row, row
from scale_material import TARS, existing_plan, stub_plan, write_stub_stores

from flowkit.report.data_page import data_page
from flowkit.report.rendering import Facts, Renderer
from flowkit.report.workflow_nodes import read_nodes
from flowkit.stages import pairs, survey
from flowkit.stages.graph import nodes_of
from flowkit.stages.session import committed

ROOT = Path(__file__).parents[2]
START_SECONDS, START_MB, DRY_RUN_SECONDS, PAGE_SECONDS = 2.0, 300.0, 20.0, 60.0
REPEATS, DRY_RUNS, STEP = 5, 3, 30_000
SURVEYED_TARS = 40


def rows(folder: Path, *, tars: int = TARS, surveyed: int = SURVEYED_TARS) -> list[Row]:
    """Measure everything; the data set is written below `folder`."""
    plan = stub_plan(folder / "large", tars=tars)
    bare = dry_runs(folder / "large")
    write_stub_stores(plan, folder / "variants")
    joining = [joined(folder / "large", dataset) for dataset in ("test", "train")]
    starts = [training_start(folder / "large") for _ in range(REPEATS)]
    count = starts[0]["pairs"]
    found = [
        row(
            f"training's start on {tars:,} tars, {count:,} pairs / 2 s",
            [one["seconds"] / START_SECONDS for one in starts],
            1.0,
            at_most=True,
            open_seconds=round(starts[0]["open_seconds"], 2),
            cpu_seconds=[round(one["cpu_seconds"], 2) for one in starts],
        ),
        row(
            f"memory of a training's start on {tars:,} tars / 300 MB",
            [one["memory_mb"] / START_MB for one in starts],
            1.0,
            at_most=True,
        ),
    ]
    for what, taken in (("nothing there", bare), ("all tars paired", dry_runs(folder / "large"))):
        name, seconds = (
            f"snakemake -n for {tars:,} tars, {what} / 20 s",
            [one / DRY_RUN_SECONDS for one in taken],
        )
        found.append(row(name, seconds, 1.0, at_most=True))
    found.append(row(f"joining the stores of {tars:,} tars, tars per second", [tars / joining[1]], None))
    return [*found, *survey_rows(folder, tars, surveyed)]


def joined(folder: Path, dataset: str) -> float:
    """Seconds in which the pairs of a data set are made."""
    (job,) = existing_plan(folder).select("pairs", dataset=dataset)
    begin = time.perf_counter()
    pairs.run(job.spec)
    return time.perf_counter() - begin


def training_start(folder: Path) -> dict[str, Any]:
    """What one training's start takes, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale_process.py")), str(folder), str(STEP)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def dry_runs(folder: Path) -> list[float]:
    """Seconds of Snakemake's dry run, each in a process of its own."""
    for part in ("workflow", "rules", "envs", "profiles", "flowkit"):
        if not (folder / part).exists():
            (folder / part).symlink_to(ROOT / part)
    profile = ["--profile", "profiles/local", "--configfile", "stub.yaml"]
    command = [sys.executable, "-m", "snakemake", *profile, "-n", "--quiet"]
    found = []
    for _ in range(DRY_RUNS):
        begin = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
        found.append(time.perf_counter() - begin)
    return found


def environment() -> dict[str, str]:
    """With the package beside these files, whichever is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def survey_rows(folder: Path, tars: int, surveyed: int) -> list[Row]:
    """The survey of some tars, and the page of a survey with the reading of the run records of all."""
    plan = stub_plan(folder / "part", tars=surveyed)
    write_stub_stores(plan, folder / "variants")
    for dataset in ("test", "train"):
        joined(folder / "part", dataset)
    (job,) = plan.select("survey")
    begin, cpu = time.perf_counter(), _cpu_seconds()
    survey.run(job.spec)
    taken, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu
    large, pages = existing_plan(folder / "large"), []
    content, _ = committed(plan.places.survey)
    for _ in range(REPEATS):
        begin = time.perf_counter()
        files = data_page(Renderer(Facts("stub", "Stub", "demo-eva", "demo-vit", is_demo=True)), content, "")
        nodes = read_nodes(nodes_of(large.jobs, large.places), large.places.results, large.places.data_root)
        pages.append((time.perf_counter() - begin) / PAGE_SECONDS)
    results = sum(node.done for node in nodes)
    shutil.rmtree(folder / "part")
    return [
        row(
            f"data page, with the records of {results:,} results / 60 s",
            pages,
            1.0,
            at_most=True,
            bytes=len(files["data.html"]),
        ),
        row(
            f"survey of {surveyed} tars, tars per second", [surveyed / taken], None, cpu_seconds=round(cpu, 1)
        ),
    ]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
