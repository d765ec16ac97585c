"""A fabricated experiment on disk and its report, for tests of pages; names and captions are hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from flowkit.report.data import Picture, Pictures, RunFiles, read_results, read_run
from flowkit.report.made_page import ABOUT, MadePage, read_made_page
from flowkit.report.pages import Site, render_site
from flowkit.report.rendering import Facts
from flowkit.report.run_data import read_run_data
from flowkit.report.run_page import RunPage, render_run
from flowkit.report.scene import data_of
from flowkit.report.site import check_budgets, copy_report, read_files, write_files
from flowkit.report.states import RunState

HOSTILE = '<script>alert("x")</script> & "quotes" \' $\\frac{1}{0}$'
IMAGES, TOKENS = 40, 17
RUNS = {("flow", "euler-1"): 0.90, ("flow", "heun-50"): 0.88, ("regression", "direct-1"): 0.94}
CLOSED = {"constant": 0.0, "ridge": 0.8, "true": 1.0}


@dataclass(frozen=True)
class Experiment:
    """An experiment folder and what its report is told of it."""

    folder: Path
    facts: Facts
    pictures: Pictures | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    states: Sequence[RunState] = ()
    gallery_images: int = 9


def build(experiment: Experiment, to: Path) -> list[Path]:
    """Make the pages of all runs and the report around them, as the stages do; returns its files, sorted."""
    results = read_results(experiment.folder)
    files: dict[str, bytes] = {}
    made: dict[str, MadePage] = {}
    for name in sorted({row.run for row in results.measurements}):
        folder = experiment.folder / "runs" / name
        run = read_run(folder) if folder.is_dir() else RunFiles(name, [], {}, [])
        page = RunPage(
            experiment.facts,
            run,
            results,
            pictures=experiment.pictures,
            gallery_images=experiment.gallery_images,
            question=experiment.questions.get(name, ""),
        )
        kept = to.parent / f"{to.name}-pages" / str(len(made))
        write_files(render_run(page), kept)
        made[name] = read_made_page(kept)
        files |= read_files(kept, without=ABOUT)
    data = [read_run_data(files[data_of(name)]) for name in made if data_of(name) in files]
    files |= render_site(Site(experiment.facts, results, made, experiment.states, data=data))
    check_budgets(files)
    write_files(files, to.parent / f"{to.name}-content")
    copy_report(to.parent / f"{to.name}-content", to)
    return sorted(to / name for name in files)


def write_details(folder: Path, sampler: str, r2: float) -> None:
    """Write one details file whose errors have mean 1 - r2."""
    generator = np.random.default_rng(int(r2 * 1000))
    error = (1 - r2) * generator.gamma(4, 0.25, IMAGES)
    gallery = np.arange(0, 18)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text("{}")
    np.savez(
        folder / f"details-{sampler}.npz",
        cos_image=1 - error / 2,
        cos_token_mean=1 - error / 3,
        cos_constant=generator.normal(0.5, 0.05, IMAGES),
        cos_shuffled=generator.normal(0.3, 0.05, IMAGES),
        cos_position=np.full(TOKENS, (1 + r2) / 2),
        r2_position=np.full(TOKENS, r2),
        norm_ratio_position=np.full(TOKENS, 0.98),
        error_image=error,
        error_map=error[gallery][:, None] * generator.gamma(4, 0.25, (gallery.size, TOKENS)),
        gallery_index=gallery,
        component_share=np.array([0.6, 0.3, 0.1]),
        component_ratio=np.array([1.0, 0.9, np.nan]),
        component_r2=np.array([1.0, r2, np.nan]),
        neighbours_true=np.tile(np.arange(20, 25), (gallery.size, 1)),
        neighbours_predicted=np.tile(np.arange(21, 26), (gallery.size, 1)),
        query_index=np.array([30, 31]),
        query_true=np.tile(np.arange(30, 35), (2, 1)),
        query_predicted=np.tile(np.arange(31, 36), (2, 1)),
        self_rank=np.ones(IMAGES, np.int64),
        t2i_rank=np.zeros(IMAGES, np.int64),
    )


def write_summary(folder: Path, values: dict[tuple[str, str], float]) -> None:
    """Write a summary with R2, Fréchet distance and one metric that was not measured."""
    rows = []
    for (run, sampler), r2 in values.items():
        where = {"run": run, "sampler": sampler, "data": "evaluation", "seed_spread": None}
        rows.append({**where, "metric": "r2", "value": r2, "low": r2 - 0.01, "high": r2 + 0.01})
        rows.append({**where, "metric": "fd_img", "value": 1.01 - r2, "low": None, "high": None})
        rows.append({**where, "metric": "mmd", "value": None, "low": None, "high": None})
    notes = [
        {
            "run": run,
            "sampler": sampler,
            "data": "evaluation",
            "metrics": ["mmd"],
            "note": f"too few {HOSTILE}",
        }
        for run, sampler in values
    ]
    content = {"schema": 1, "experiment": folder.name, "rows": rows, "notes": notes}
    (folder / "summary.json").write_text(json.dumps(content), encoding="utf-8")


def write_experiment(tmp_path: Path) -> Experiment:
    """Write a small experiment with two trained runs, three closed forms and a hostile run name."""
    folder = tmp_path / "small"
    for (run, sampler), r2 in RUNS.items():
        write_details(folder / "runs" / run / "evaluation" / "abc", sampler, r2)
        train = folder / "runs" / run / "train"
        (train / "abc").mkdir(parents=True, exist_ok=True)
        lines = [
            {"step": step, "loss": 1 / step, "grad_norm": 1.0, "learning_rate": 1e-3} for step in (1, 2, 3)
        ]
        lines[2] |= {"validation_r2": r2, "validation_tok_cos": 0.9}
        (train / "abc" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        record = {
            "stage": "train",
            "spec": {"train": {"note": HOSTILE, "seed": 0}},
            "versions": {"torch": "2.15"},
        }
        (train / "run.json").write_text(json.dumps(record), encoding="utf-8")
    values = RUNS | {(run, "-"): r2 for run, r2 in CLOSED.items()} | {(HOSTILE, "euler-1"): 0.5}
    write_summary(folder, values)
    verdicts = [
        {"goal": "flow reaches R2", "verdict": "shown", "value": 0.9, "demand": 0.85},
        {"goal": HOSTILE, "verdict": "not shown", "value": None, "demand": 0.5},
    ]
    (folder / "verdicts.json").write_text(json.dumps({"schema": 1, "rows": verdicts}), encoding="utf-8")
    facts = Facts("small", HOSTILE, "demo-eva", "demo-vit", is_demo=True)
    return Experiment(folder, facts, pictures, questions={"flow": HOSTILE})


def pictures(indices: Sequence[int]) -> list[Picture]:
    return [
        Picture(Image.new("RGB", (32, 32), (index * 5 % 256, 90, 160)), f"{HOSTILE} {index}")
        for index in indices
    ]
