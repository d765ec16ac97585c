"""Training curves of one run: loss and its parts, validation, gradient norm and learning rate.

Each function takes the lines of `metrics.jsonl` and returns a `Plot`, or None when the lines do not hold
its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import pandas as pd
from matplotlib.axes import Axes

from flowkit.report.drawing import DASHES, MARKERS, SERIES, Canvas, Plot, log_scale
from flowkit.report.measures import short
from flowkit.report.tables import numbers

Points = Sequence[tuple[float, float]]
Point = TypeVar("Point")
Lines = Sequence[Mapping[str, float | None]]
MAX_POINTS = 500
MAX_ROWS = 2000
SPARK_POINTS = 24


def training_curves(run: str, lines: Lines) -> list[Plot]:
    """Return the curves that the lines of one run can fill."""
    plots = (loss_curve(run, lines), validation_curve(run, lines), gradient_curve(run, lines))
    return [plot for plot in plots if plot]


def sparkline(lines: Lines) -> tuple[list[float], str]:
    """Return a curve of training in few points, and what it shows; no points where a run was not trained.

    R2 on held-out tars where it was measured at least twice, else the loss.
    """
    for key, words in (("validation_r2", "R²"), ("loss", "loss")):
        points = _column(lines, key)
        if len(points) > 1:
            stride = -(-len(points) // SPARK_POINTS)
            values = [value for _, value in (*points[:-1:stride], points[-1])]
            return [float(f"{value:.4g}") for value in values], words
    return [], ""


def loss_curve(run: str, lines: Lines) -> Plot | None:
    """Draw the loss and its parts against the step, on a logarithmic axis when all are positive."""
    parts = sorted({key for line in lines for key in line if key.startswith("loss_")})
    series = {key: _column(lines, key) for key in ("loss", *parts)}
    series = {key: points for key, points in series.items() if points}
    if "loss" not in series:
        return None
    if len(series) == 2 and _twins(*series.values()):
        series = {"loss": series["loss"]}
    with Canvas() as canvas:
        axes = canvas.axes[0]
        for number, (key, points) in enumerate(series.items()):
            _line(axes, points, number, key.removeprefix("loss_").replace("_", " "), faint=number > 0)
        values = [value for points in series.values() for _, value in points]
        if min(values) > 0 and max(values) > 3 * min(values):
            log_scale(axes)
        axes.set_xlabel("step")
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3)
        canvas.margins(56, 12, 12 + 18 * -(-len(series) // 3) * (len(series) > 1), 44)
        svg = canvas.svg()
    first, last = series["loss"][0], series["loss"][-1]
    lowest = min(series["loss"], key=lambda point: point[1])
    alt = (
        f"Training loss of {run}: {short(first[1])} at step {first[0]:.0f}, {short(last[1])} "
        f"at step {last[0]:.0f}, lowest {short(lowest[1])} at step {lowest[0]:.0f}."
    )
    caption = (
        f"Loss on training batches, from {short(first[1])} to {short(last[1])}.{_thinned(series['loss'])}"
    )
    return Plot("loss", "Loss", svg, canvas.width, canvas.height, alt, caption, _columns(lines, list(series)))


def validation_curve(run: str, lines: Lines) -> Plot | None:
    """Draw R2 and token cosine on held-out tars, as measured during training with a few-step sampler."""
    names = {"validation_r2": "R²", "validation_tok_cos": "token cosine"}
    series = {key: _column(lines, key) for key in names}
    series = {key: points for key, points in series.items() if points}
    if not series:
        return None
    with Canvas() as canvas:
        axes = canvas.axes[0]
        for number, (key, points) in enumerate(series.items()):
            _line(axes, points, number, names[key], marker=True)
        values = [value for points in series.values() for _, value in points]
        axes.set_ylim(max(-0.5, min(0.0, *values)), 1.02)
        axes.set_xlabel("step")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3)
        canvas.margins(48, 12, 30, 44)
        svg = canvas.svg()
    ends = [
        f"{names[key]} {short(points[-1][1])} at step {points[-1][0]:.0f}" for key, points in series.items()
    ]
    caption = "On tars held out from training, with a few-step sampler; the result tables use other images."
    alt = f"Validation of {run} during training, ending with {' and '.join(ends)}."
    data = _columns(lines, list(series))
    return Plot("validation", "Held-out fidelity", svg, canvas.width, canvas.height, alt, caption, data)


def gradient_curve(run: str, lines: Lines) -> Plot | None:
    """Draw the gradient norm above the learning rate."""
    keys = ("grad_norm", "learning_rate")
    series = {key: _column(lines, key) for key in keys}
    if not all(series.values()):
        return None
    with Canvas(rows=2) as canvas:
        for number, (axes, key) in enumerate(zip(canvas.axes, keys, strict=True)):
            _line(axes, series[key], number, key)
            axes.set_title(key.replace("grad", "gradient").replace("_", " "))
            axes.set_ylim(bottom=0)
        canvas.axes[0].tick_params(labelbottom=False)
        canvas.axes[1].set_xlabel("step")
        canvas.margins(60, 12, 26, 44, gap=0.42)
        svg = canvas.svg()
    norms = [value for _, value in series["grad_norm"]]
    peak = max(value for _, value in series["learning_rate"])
    caption = f"Norm before clipping: largest {short(max(norms))}, last {short(norms[-1])}. "
    caption += f"Learning rate: peak {short(peak)}."
    alt = f"Optimisation of {run}. {caption}"
    return Plot(
        "gradient", "Gradient", svg, canvas.width, canvas.height, alt, caption, _columns(lines, list(keys))
    )


def _column(lines: Lines, key: str) -> list[tuple[float, float]]:
    """Return (step, value) wherever a line holds both."""
    found = [(line.get("step"), line.get(key)) for line in lines]
    return [(step, value) for step, value in found if step is not None and value is not None]


def _columns(lines: Lines, keys: Sequence[str]) -> pd.DataFrame:
    filled = [line for line in lines if any(line.get(key) is not None for key in keys)]
    filled = list(_thin(filled, MAX_ROWS))
    return numbers(("step", *keys), [[line.get(key) for key in ("step", *keys)] for line in filled])


def _line(
    axes: Axes, points: Points, number: int, label: str, *, marker: bool = False, faint: bool = False
) -> None:
    shown = _thin(points)
    axes.plot(
        [step for step, _ in shown],
        [value for _, value in shown],
        color=SERIES[number % len(SERIES)],
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)] if marker and len(shown) < 60 else None,
        markersize=4,
        linewidth=1.2 if faint else 1.8,
        label=label,
    )


def _thin(points: Sequence[Point], most: int = MAX_POINTS) -> Sequence[Point]:
    """Return every k-th point and the last, at most about `most`."""
    stride = -(-len(points) // most)
    return [*points[:-1:stride], points[-1]] if points else points


def _thinned(points: Points) -> str:
    stride = -(-len(points) // MAX_POINTS)
    if stride == 1:
        return ""
    kept = "all" if len(points) <= MAX_ROWS else f"one in {-(-len(points) // MAX_ROWS)}, metrics.jsonl all"
    return f" One step in {stride} is drawn; the CSV has {kept}."


def _twins(one: Points, other: Points) -> bool:
    return [value for _, value in one] == [value for _, value in other]
