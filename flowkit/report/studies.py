"""Figures that ask one thing of a run: when in time it errs, which directions it misses, what an evaluation is worth.

Like those of figures.py they take numbers and return a `Plot`, or None where the numbers are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flowkit.report.curves import Lines
from flowkit.report.details import Details
from flowkit.report.drawing import DASHES, MARKERS, MUTED, SERIES, Canvas, Plot, log_scale
from flowkit.report.measures import measure, plain, short
from flowkit.report.standings import Entry
from flowkit.report.tables import numbers

STUDIED = ("r2", "fd_img", "t2i_r1")
REFERENCES = ("ridge", "regression")
FEWEST_SAMPLERS = 3
LEAST_RATIO = 1e-3
LOG_BELOW = 0.1
"""Ratios of variances are drawn on a logarithmic axis where one of them is below this."""


def error_over_time(run: str, lines: Lines) -> Plot | None:
    """Draw the error of the clean estimate against time t, at a quarter, the half and the end of training."""
    keys = sorted({key for line in lines for key in line if key.startswith("error_t_")}, key=_middle)
    known = [line for line in lines if any(line.get(key) is not None for key in keys)]
    if len(keys) < 2 or not known:
        return None
    window = max(1, len(known) // 10)
    ends = {"a quarter": len(known) // 4, "half": len(known) // 2, "the end": len(known)}
    spans = {name: known[max(0, end - window) : max(end, 1)] for name, end in ends.items()}
    means = {name: [_mean([line.get(key) for line in span]) for key in keys] for name, span in spans.items()}
    times = [_middle(key) for key in keys]
    with Canvas() as canvas:
        axes = canvas.axes[0]
        for number, (name, values) in enumerate(means.items()):
            points = [(t, value) for t, value in zip(times, values, strict=True) if value is not None]
            axes.plot(
                [t for t, _ in points],
                [value for _, value in points],
                color=SERIES[number],
                linestyle=DASHES[number],
                marker=MARKERS[number],
                markersize=5,
                label=name,
            )
        axes.set_xlim(-0.04, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time t: 0 is noise, 1 is data")
        axes.set_ylabel("squared error")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3)
        canvas.margins(56, 14, 30, 44)
        svg = canvas.svg()
    last = [(t, value) for t, value in zip(times, means["the end"], strict=True) if value is not None]
    summary = " and ".join(f"{short(value)} at t = {t:g}" for t, value in (last[0], last[-1]))
    summary = f"At the end of training {summary}."
    rows = [[time, *(_rounded(values[at]) for values in means.values())] for at, time in enumerate(times)]
    return Plot(
        name="error-over-time",
        title="Error over time t",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Squared error of the clean estimate of {run} against time t. {summary}",
        caption=(
            f"{summary} Means over a tenth of the steps; 1 is as bad as the constant prediction. What is "
            "low near t = 0 already leaves a sampler little to do."
        ),
        data=numbers(("t", *(f"after {name} of training" for name in means)), rows),
    )


def _middle(key: str) -> float:
    """The time that a column stands for: 0 itself, or the middle of a quarter."""
    bound = re.fullmatch(r"error_t_below_([0-9.]+)", key)
    return float(bound[1]) - 0.125 if bound else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def components(name: str, details: Details) -> Plot | None:
    """Draw R2 and the ratio of variances along the principal components of the true tokens."""
    r2, ratio, share = details.component_r2, details.component_ratio, details.component_share
    judged = np.isfinite(r2) & np.isfinite(ratio)
    if not judged.any():
        return None
    number = np.arange(1, len(r2) + 1)[judged]
    with Canvas(rows=2) as canvas:
        above, below = canvas.axes
        above.plot(number, np.clip(r2[judged], -1, 1), color=SERIES[0], linewidth=1.4)
        above.axhline(0, color=MUTED, linewidth=0.8)
        above.set_title("R²")
        above.set_ylim(min(0.0, max(-1.0, float(r2[judged].min()))) - 0.03, 1.03)
        below.plot(number, np.clip(ratio[judged], LEAST_RATIO, None), color=SERIES[1], linewidth=1.4)
        below.axhline(1, color=MUTED, linewidth=0.8)
        below.set_title("variance, predicted over true")
        if float(ratio[judged].min()) < LOG_BELOW:
            log_scale(below)
        else:
            below.set_ylim(bottom=0)
        for axes in canvas.axes:
            _count_axis(axes, len(r2))
        above.tick_params(labelbottom=False)
        below.set_xlabel("principal component of the true tokens")
        canvas.margins(56, 14, 26, 44, gap=0.42)
        svg = canvas.svg()
    half = int(np.searchsorted(np.cumsum(share), 0.9)) + 1
    lost = int(np.sum(r2[judged] < 0.5))
    last_r2, last_ratio = (plain(float(values[judged][-1])) for values in (r2, ratio))
    summary = (
        f"The first {half} of {len(r2)} components hold 90 % of the variance. R² lies below .5 on {lost} of "
        f"{judged.sum()}; the last has {last_r2}, with {last_ratio} of the true variance."
    )
    rows = [
        [int(at + 1), _rounded(share[at]), _rounded(r2[at]), _rounded(ratio[at])] for at in range(len(r2))
    ]
    return Plot(
        name="components",
        title="Per principal component",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"R² and variance ratio of {name} along the principal components of the true tokens. {summary}",
        caption=(
            f"{summary} R² below −1 is drawn at −1. Squared errors hardly see the last components, "
            "a two-sample test does."
        ),
        data=numbers(("component", "share of variance", "r2", "variance ratio"), rows),
    )


def evaluations_study(run: str, candidates: Sequence[Entry]) -> Plot | None:
    """Draw three metrics of a run's samplers against network evaluations, with ridge and regression as lines."""
    mine = [entry for entry in candidates if entry.run == run and (entry.value("nfe") or 0) > 0]
    shown = [name for name in STUDIED if any(entry.value(name) is not None for entry in mine)]
    if len(mine) < FEWEST_SAMPLERS or not shown:
        return None
    families: dict[str, list[Entry]] = {}
    for entry in sorted(mine, key=lambda entry: entry.value("nfe") or 0):
        families.setdefault(_family(entry.sampler), []).append(entry)
    others = {name: _best_of(candidates, name) for name in REFERENCES if name != run}
    references = {name: entry for name, entry in others.items() if entry}
    with Canvas(120 + 270 * len(shown), 300, columns=len(shown)) as canvas:
        for axes, metric in zip(canvas.axes, shown, strict=True):
            _study(axes, metric, families, references)
            axes.set_xlabel("network evaluations per image")
        per_line = 2 * len(shown)
        canvas.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.12), ncols=per_line, borderaxespad=0)
        lines_of_legend = -(-(len(families) + len(references)) // per_line)
        canvas.margins(56, 14, 34 + 18 * lines_of_legend, 44, gap=0.26)
        svg = canvas.svg()
    best = max(mine, key=lambda entry: entry.headline)
    dearest = max(mine, key=lambda entry: entry.value("nfe") or 0)
    summary = (
        f"Highest R² {plain(best.headline)} with {best.sampler} ({_evaluations(best)}); "
        f"the most evaluations, {dearest.sampler} ({_evaluations(dearest)}), give {plain(dearest.headline)}."
    )
    rows = [
        [entry.sampler, entry.value("nfe"), *(entry.value(metric) for metric in shown)]
        for entry in sorted(mine, key=lambda entry: (entry.value("nfe") or 0, entry.sampler))
    ]
    return Plot(
        name="evaluations",
        title="What an evaluation is worth",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Metrics of {run} against network evaluations, {len(mine)} samplers. {summary}",
        caption=f"{summary} Lines across are other runs at their best.",
        data=numbers(("sampler", "evaluations", *shown), rows),
    )


def _study(
    axes: Axes, metric: str, families: Mapping[str, Sequence[Entry]], references: Mapping[str, Entry]
) -> None:
    for number, (family, members) in enumerate(families.items()):
        points = [
            (nfe, value)
            for entry in members
            if (value := entry.value(metric)) is not None and (nfe := entry.value("nfe"))
        ]
        axes.plot(
            [nfe for nfe, _ in points],
            [value for _, value in points],
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            label=family,
        )
    for number, (name, entry) in enumerate(references.items()):
        if (value := entry.value(metric)) is not None:
            axes.axhline(value, color=MUTED, linestyle=DASHES[1 + number], linewidth=1.2, label=name)
    axes.set_title(measure(metric).label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _family(sampler: str) -> str:
    """The solver of a sampler with what it does beside taking steps: "euler-8-shift3" is of "euler shift3"."""
    solver, _, rest = sampler.partition("-")
    return " ".join([solver, *rest.split("-")[1:]])


def _best_of(candidates: Sequence[Entry], run: str) -> Entry | None:
    return max((e for e in candidates if e.run == run), key=lambda entry: entry.headline, default=None)


def _evaluations(entry: Entry) -> str:
    count = entry.value("nfe") or 0
    return f"{count:g} evaluation{'' if count == 1 else 's'}"


def _count_axis(axes: Axes, count: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.9, count * 1.1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 6)
