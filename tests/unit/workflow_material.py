"""Nodes and run records of small workflows for tests of the workflow page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowkit.report.workflow_nodes import Node


def node(
    name: str, *after: str, folders: Sequence[object] = (), stage: str = "", label: str = ""
) -> dict[str, Any]:
    """A node as the stage graph hands it over."""
    folders = folders or [f"results:small/{name}"]
    return {
        "name": name,
        "stage": stage or name,
        "label": label or "x",
        "after": list(after),
        "folders": folders,
    }


def known(name: str, *after: str, seconds: float | None = 1.0, **more: Any) -> Node:
    """A node of which everything is done, as `read_nodes` gives it."""
    values = {"stage": name, "label": "x", "results": 1, "done": 1, "processes": 1, "longest": seconds} | more
    return Node(name=name, after=after, folder=f"results/{name}", seconds=seconds, **values)


def record(
    seconds: float, *, process: int | None = None, before: float = 0.0, cpu: float = 0.0, **more: Any
) -> dict[str, Any]:
    """A run record; without `process` one as earlier versions wrote it."""
    found = {
        "stage": "train",
        "started": "2026-01-02T03:00:00Z",
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_memory_mb": 100.0,
        "host": {"name": "node7", "cpus": 2},
        "rates": {},
        "versions": {"torch": "2.15"},
        "code": ["flowkit.model@aaaa"],
    }
    if process is not None:
        found["process"] = {"id": process, "began": "2026-01-02T02:59:00Z", "seconds_before": before}
    return found | more


def write_result(folder: Path, found: Mapping[str, Any] | None) -> None:
    """Write a result folder with a manifest, and with a run record unless there is to be none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    if found is not None:
        (folder / "run.json").write_text(json.dumps(found), encoding="utf-8")
