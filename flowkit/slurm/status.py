"""How the trainings of an experiment stand: job, state, step, rate, time to go, last figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowkit.paths import MANIFEST, Places
from flowkit.slurm.follow import is_over, state_of
from flowkit.slurm.handle import Handle, JobFolder

COLUMNS = ("run", "job", "state", "step", "steps/s", "remaining", "loss", "validation R2")
TAIL_BYTES = 2**20
"""Enough for the last lines of a metrics file, whose length grows with the training."""


def status_lines(places: Places, steps: Mapping[str, int | None]) -> Iterator[str]:
    """Yield a table with one line per run; `steps` are how many each one trains for, None where nobody knows yet."""
    yield f"experiment {places.experiment} in {places.experiment_folder}"
    rows = [COLUMNS, *(_row(places, run, total) for run, total in steps.items())]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(COLUMNS))]
    for row in rows:
        yield "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(places: Places, run: str, total: int | None) -> tuple[str, ...]:
    folder = places.train(run)
    handle = JobFolder(folder / "state").handle()
    is_done = (folder / MANIFEST).exists()
    lines = _last_lines(folder, handle.key if handle is not None and not is_done else None)
    last = lines[-1] if lines else {}
    measured: dict[str, Any] = next((line for line in reversed(lines) if "validation_r2" in line), {})
    step = last.get("step", total or 0 if is_done else 0)
    rate = step / last["seconds"] if last.get("seconds") else 0.0
    return (
        run,
        handle.job_id if handle else "-",
        "done" if is_done else _state(handle),
        f"{step} of {total or '?'}",
        f"{rate:.2f}" if rate else "-",
        _duration((total - step) / rate) if rate and total and not is_done else "-",
        _number(last.get("loss")),
        _number(measured.get("validation_r2")),
    )


def _state(handle: Handle | None) -> str:
    if handle is None:
        return "not started"
    state = state_of(handle)
    if state is None:
        return "no answer"
    if is_over(state):
        return f"ended ({state.name.lower()})"
    reason = f" ({state.reason})" if state.reason not in ("", "None") else ""
    return f"{state.name.lower()}{reason}"


def _last_lines(folder: Path, key: str | None) -> list[dict[str, Any]]:
    """The end of the metrics of a job's work, or without its key of the newest work or result."""
    files = [folder / f"state/work-{key}/metrics.jsonl"]
    if key is None:
        files = [*folder.glob("state/work-*/metrics.jsonl"), *folder.glob("*/metrics.jsonl")]
    there = [file for file in files if file.is_file()]
    return last_lines(max(there, key=lambda file: file.stat().st_mtime)) if there else []


def last_lines(metrics: Path) -> list[dict[str, Any]]:
    """Return the last whole lines of a metrics file, oldest first."""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut at the front, or half written
            continue
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
