"""Figures of the evaluation: cosine histograms, maps over token positions, and fidelity against distribution.

Each function takes arrays or entries and returns a `Plot` with alt text made from the numbers, a caption
that says how to read it, and its data. No files are read or written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from flowkit.report.details import Array, Details, TokenLayout
from flowkit.report.drawing import DASHES, INK, MARKERS, MUTED, PAPER, SERIES, Canvas, Plot, log_scale
from flowkit.report.measures import plain, short
from flowkit.report.standings import Entry
from flowkit.report.tables import numbers

ANNOTATED_SIDE = 6
OTHER_MARKERS = "X<>dhH8"
LEAST_UNEXPLAINED, MOST_UNEXPLAINED = 1e-3, 3.0
NAMED_RUNS = 18
"""Runs with a colour of their own where many are drawn."""


def cosine_histogram(name: str, details: Details) -> Plot:
    """Draw the cosine of token means of all images, beside the constant prediction and shuffled pairs."""
    groups = {
        "prediction": _finite(details.cos_image),
        "constant": _finite(details.cos_constant),
        "shuffled pairs": _finite(details.cos_shuffled),
    }
    groups = {label: values for label, values in groups.items() if values.size}
    lowest = min((float(values.min()) for values in groups.values()), default=0.0)
    edges = np.linspace(np.floor(lowest * 20) / 20, 1.0, 61)
    counts = {label: np.histogram(values, edges)[0] / values.size for label, values in groups.items()}
    with Canvas() as canvas:
        axes = canvas.axes[0]
        for number, (label, shares) in enumerate(counts.items()):
            colour, dash = SERIES[number], DASHES[number]
            axes.stairs(shares, edges, fill=True, alpha=0.25, color=colour)
            axes.stairs(shares, edges, linewidth=1.6, linestyle=dash, color=colour, label=label)
        axes.set_xlabel("cosine of token means, per image")
        axes.set_ylabel("share of images")
        axes.legend(loc="upper left")
        canvas.margins(56, 14, 12, 44)
        svg = canvas.svg()
    medians = ", ".join(f"{label} {plain(float(np.median(values)))}" for label, values in groups.items())
    rows = [
        [*map(_rounded, edges[i : i + 2]), *(_rounded(c[i]) for c in counts.values())]
        for i in range(len(edges) - 1)
    ]
    return Plot(
        name="cosines",
        title="Cosine per image",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Histogram of the cosines of token means per image of {name}. Medians: {medians}.",
        caption=f"Medians: {medians}. A cosine means something only by its distance from the other two.",
        data=numbers(("from", "to", *groups), rows),
    )


def position_maps(name: str, details: Details) -> Plot:
    """Draw R2, cosine and norm ratio of each token position where it lies in the image."""
    layout = TokenLayout.of(details.r2_position.size, details.views)
    with Canvas(560, 280, columns=3) as canvas:
        left, middle, right = canvas.axes
        spread = max(0.05, float(np.nanmax(np.abs(details.norm_ratio_position - 1), initial=0.05)))
        _map(left, layout, details.r2_position, "R²", "cividis", (min(0.0, _least(details.r2_position)), 1.0))
        _map(middle, layout, details.cos_position, "cosine", "cividis", (_least(details.cos_position), 1.0))
        _map(right, layout, details.norm_ratio_position, "norm ratio", "PuOr", (1 - spread, 1 + spread))
        canvas.margins(10, 10, 30, 34, gap=0.12)
        svg = canvas.svg()
    worst = int(np.nanargmin(details.r2_position)) if np.isfinite(details.r2_position).any() else 0
    r2, cosine, ratio = details.r2_position, details.cos_position, details.norm_ratio_position
    summary = (
        f"R² lies between {plain(_least(r2))} ({layout.name(worst)}) and {plain(_most(r2))}; "
        f"the cosine between {plain(_least(cosine))} and {plain(_most(cosine))}; "
        f"the norm ratio between {plain(_least(ratio))} and {plain(_most(ratio))}."
    )
    rows = [
        [layout.name(at), _rounded(r2[at]), _rounded(cosine[at]), _rounded(ratio[at])]
        for at in range(r2.size)
    ]
    return Plot(
        name="positions",
        title="Per token position",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"R², cosine and norm ratio of {name} over the token positions. {summary}",
        caption=f"{summary} A norm ratio below 1 is shrinkage.{_views_caption(layout)}",
        data=numbers(("position", "r2", "cosine", "norm_ratio"), rows),
    )


def _views_caption(layout: TokenLayout) -> str:
    if layout.views == 1:
        return ""
    return (
        f" The {layout.views} views are tiles{', their class tokens stand below' if layout.has_cls else ''}."
    )


def _map(
    axes: Axes, layout: TokenLayout, values: Array, title: str, palette: str, limits: tuple[float, float]
) -> None:
    """Draw the patches as a grid, with the class token of each view as a cell of its own below."""
    tokens, patches = layout.split(values)
    rows, columns = layout.shape
    below = rows + max(0.25, rows * 0.06)
    size = min(max(1.0, rows / 6), columns / max(1, len(tokens)))
    image = axes.imshow(
        patches, palette, vmin=limits[0], vmax=limits[1], extent=(0, columns, rows, 0), interpolation="none"
    )
    cells = [(c + 0.5, r + 0.5, float(patches[r, c])) for r in range(rows) for c in range(columns)]
    if len(tokens):
        end = size * len(tokens)
        axes.imshow(
            tokens[None],
            palette,
            vmin=limits[0],
            vmax=limits[1],
            extent=(0, end, below + size, below),
            interpolation="none",
        )
        if len(tokens) == 1:
            words = f"CLS {_cell_text(float(tokens[0]))}"
            axes.text(end + 0.04 * columns, below + size / 2, words, va="center", fontsize=11)
    if max(rows, columns) <= ANNOTATED_SIDE:
        for x, y, value in cells:
            red, green, blue, _ = image.to_rgba(np.array([value]))[0]
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            axes.text(
                x, y, _cell_text(value), ha="center", va="center", color="#000000" if light else "#ffffff"
            )
    axes.set_xlim(0, columns)
    axes.set_ylim(below + size if len(tokens) else rows, 0)
    axes.set_title(f"{title}, {_cell_text(limits[0])} to {_cell_text(limits[1])}")
    axes.set_axis_off()


def fidelity_against_distribution(entries: Sequence[Entry]) -> Plot | None:
    """Draw R2 against the Fréchet distance, one marker per run and sampler; better is right and down."""
    shown = [
        (entry, entry.value("r2"), entry.value("fd_img")) for entry in entries if entry.kind != "ceiling"
    ]
    points = [(entry, r2, fd) for entry, r2, fd in shown if r2 is not None and fd is not None and fd > 0]
    if len(points) < 2:
        return None
    runs = _named([entry for entry, _, _ in points])
    styles = _styles([entry for entry, _, _ in points if entry.run in runs])
    with Canvas(560, 460) as canvas:
        axes = canvas.axes[0]
        rest = [(_unexplained(r2), fd) for entry, r2, fd in points if entry.run not in runs]
        if rest:
            x, y = zip(*rest, strict=True)
            axes.scatter(x, y, s=6, color=MUTED, alpha=0.5, linewidths=0)
        for run in runs:
            mine = sorted(
                ((_unexplained(r2), fd, entry) for entry, r2, fd in points if entry.run == run),
                key=lambda point: (point[2].value("nfe") or 0, point[2].sampler),
            )
            colour, marker = styles[run]
            axes.plot(
                [x for x, _, _ in mine],
                [y for _, y, _ in mine],
                color=colour,
                marker=marker,
                markersize=8,
                markeredgecolor=PAPER,
                linewidth=1,
                label=run,
            )
        _log_axes(axes, [_unexplained(r2) for _, r2, _ in points])
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, fontsize=11, handlelength=1.5)
        canvas.margins(62, 16, 24 + 18 * -(-len(runs) // 3), 46)
        svg = canvas.svg()
    top = max(points, key=lambda point: point[1])
    near = min(points, key=lambda point: point[2])
    summary = (
        f"Highest R² {plain(top[1])} by {top[0].name} (Fréchet {plain(top[2], 4)}); "
        f"lowest Fréchet distance {plain(near[2], 4)} by {near[0].name} (R² {plain(near[1])})."
    )
    others = len({entry.run for entry, _, _ in points}) - len(runs)
    rows: list[list[str | float | None]] = [
        [e.run, e.sampler, e.value("nfe"), r2, fd] for e, r2, fd in points
    ]
    return Plot(
        name="fidelity",
        title="Fidelity against distribution",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Scatter of {len(points)} results, R² against Fréchet distance. {summary}",
        caption=(
            f"Right is closer to each image's own tokens, down is closer to the distribution of true "
            f"tokens. Lines join the samplers of one run. {summary} R² below −2 is drawn at the left edge."
            + (f" Small dots: {others:,} other runs." if others else "")
        ),
        data=numbers(("run", "sampler", "evaluations", "r2", "fd_img"), rows),
    )


def _unexplained(r2: float) -> float:
    return min(max(1 - r2, LEAST_UNEXPLAINED), MOST_UNEXPLAINED)


def _log_axes(axes: Axes, unexplained: Sequence[float]) -> None:
    """Label the logarithmic axis of 1 - R2 with R2 itself, growing to the right."""
    axes.set_xscale("log")
    log_scale(axes)
    axes.set_xlim(max(unexplained) * 1.25, min(unexplained) / 1.25)
    ticks = [
        r2
        for r2 in (-2, -1, 0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
        if axes.get_xlim()[1] <= 1 - r2 <= axes.get_xlim()[0]
    ]
    axes.set_xticks([1 - r2 for r2 in ticks], [short(r2) for r2 in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("R² (better to the right)")
    axes.set_ylabel("Fréchet distance of images (better below)")


def _named(entries: Sequence[Entry]) -> list[str]:
    """Return the runs that are drawn with a colour of their own: all of a few, else baselines and the best others."""
    kinds = {entry.run: entry.kind for entry in sorted(entries, key=lambda entry: -entry.headline)}
    closed = [run for run, kind in kinds.items() if kind == "closed form"][: NAMED_RUNS // 2]
    others = [run for run, kind in kinds.items() if kind != "closed form"][: NAMED_RUNS - len(closed)]
    closed = [run for run, kind in kinds.items() if kind == "closed form"][: NAMED_RUNS - len(others)]
    return [run for run in dict.fromkeys(entry.run for entry in entries) if run in (*closed, *others)]


def _styles(entries: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """Return a colour and marker per run: closed forms in grey, a regression in ink, flows in the series colours.

    No two of 42 flows look the same: the counts of colours and markers have no common divisor.
    """
    kinds = {entry.run: entry.kind for entry in entries}
    flows = [run for run, kind in kinds.items() if kind == "flow"]
    others = [run for run, kind in kinds.items() if kind != "flow"]
    styles = {run: (SERIES[at % len(SERIES)], MARKERS[at % len(MARKERS)]) for at, run in enumerate(flows)}
    for at, run in enumerate(others):
        styles[run] = (INK if kinds[run] == "regression" else MUTED, OTHER_MARKERS[at % len(OTHER_MARKERS)])
    return styles


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _least(values: Array) -> float:
    finite = _finite(values)
    return float(finite.min()) if finite.size else 0.0


def _most(values: Array) -> float:
    finite = _finite(values)
    return float(finite.max()) if finite.size else 0.0


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _cell_text(value: float) -> str:
    return plain(value, 2) if np.isfinite(value) else "–"
