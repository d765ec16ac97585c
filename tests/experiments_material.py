"""Small experiments on disk, as the stages leave them: what the index of experiments and `flowkit open` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ABOUT = {
    "title": "Shapes",
    "source_encoder": "demo-eva",
    "target_encoder": "demo-vit",
    "is_demo": True,
}


def write_experiment(
    results: Path,
    name: str,
    *,
    about: dict[str, Any] | None = None,
    flow: float | None = 0.9,
    ridge: float = 0.8,
    images: int = 1000,
) -> Path:
    """Write an experiment with a flow, a regression, two closed forms and a report of one page; returns its folder."""
    folder = results / name
    values = {
        ("flow", "euler-1"): flow,
        ("flow", "heun-50"): None if flow is None else flow - 0.1,
        ("regression", "direct-1"): 0.95,
        ("constant", "closed-form"): 0.0,
        ("ridge", "closed-form"): ridge,
        ("true", "closed-form"): 1.0,
    }
    rows = [
        {
            "run": run,
            "sampler": sampler,
            "data": "test",
            "metric": "r2",
            "value": r2,
            "low": None if r2 is None else r2 - 0.01,
            "high": None if r2 is None else r2 + 0.01,
            "seed_spread": None,
        }
        for (run, sampler), r2 in values.items()
    ]
    goals = [("a", "shown"), ("b", "shown"), ("c", "not shown")]
    verdicts = [{"goal": goal, "verdict": verdict, "value": 0.9, "demand": 0.5} for goal, verdict in goals]
    write(folder / "summary.json", {"schema": 1, "experiment": name, "rows": rows})
    write(folder / "verdicts.json", {"schema": 1, "experiment": name, "rows": verdicts})
    write(folder / "runs/flow/evaluation/manifest.json", {"counts": {"images": images}})
    (folder / "report").mkdir()
    (folder / "report/index.html").write_text(f"<!doctype html><title>{name}</title>", encoding="utf-8")
    if about is not None:
        write(folder / "report/about.json", {"experiment": name, **about})
    return folder


def write(path: Path, content: object) -> None:
    """Write JSON and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
