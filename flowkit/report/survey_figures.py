"""Figures of the data page: spread of channels, norms of tokens, and how near evaluation images are to training ones.

Each function takes a survey and returns a `Plot` with alt text made from the numbers. No files are read or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from flowkit.report.drawing import DASHES, MUTED, SERIES, Canvas, Plot, log_scale
from flowkit.report.measures import plain, short
from flowkit.report.survey import (
    ROLES,
    USES,
    Array,
    ChannelSummary,
    NormSummary,
    Survey,
    channel_array,
    match_array,
    norm_array,
)
from flowkit.report.tables import Scalar, numbers

DRAWN_CHANNELS = 200
"""Points of a line: 4,096 of them would look the same and weigh twenty times as much."""
NEAR_DUPLICATE = 0.97
FEWEST_BINS, MOST_BINS = 12, 60
COLOURS = dict(zip(ROLES, SERIES, strict=False))
DASH_OF_USE = dict(zip(USES, DASHES, strict=False))


def channel_spreads(survey: Survey) -> Plot:
    """Draw the spread of the channels, largest first, and how far their means lie from zero."""
    with Canvas(640, 320, columns=2) as canvas:
        left, right = canvas.axes
        for one in survey.found.channels:
            label = f"{one.role}, {one.use}"
            _sorted_line(left, _channels(survey, one, "spread"), one, label)
            _sorted_line(right, _offsets(survey, one), one, label)
        for axes, title in ((left, "spread"), (right, "|mean| / spread")):
            axes.set_title(title)
            axes.set_xlabel("rank of the channel")
            log_scale(axes)
            _plain_log_ticks(axes, 1, max(one.channels for one in survey.found.channels))
        handles, labels = left.get_legend_handles_labels()
        canvas.figure.legend(
            handles, labels, loc="upper center", ncols=4, handlelength=2.2, columnspacing=1.4
        )
        canvas.margins(52, 14, 56, 44, gap=0.24)
        svg = canvas.svg()
    parts = []
    for one in survey.found.channels:
        spread = _channels(survey, one, "spread")
        parts.append(
            f"{one.role}, {one.use}: from {short(float(spread.max()))} to {short(float(spread.min()))}, "
            f"median {short(one.median_spread)}"
        )
    return Plot(
        name="channels",
        title="Channels by size",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Spread and offset of all channels, largest first. Spread of {'; '.join(parts)}.",
        caption=(
            "A flat line on the left: all channels count alike. A steep start: a few of them decide plain cosines and "
            "unscaled losses. A mean many spreads from zero (right) is what all tokens have in common."
        ),
        data=numbers(("role", "data", "channel", "mean", "spread", "kurtosis"), _channel_rows(survey)),
    )


def norm_histogram(survey: Survey, role: str) -> Plot:
    """Draw the norms of one encoder's tokens, the training images filled, the evaluated ones as a line."""
    mine = [one for one in survey.found.norms if one.role == role]
    kinds = list(dict.fromkeys(one.kind for one in mine))
    rows: list[list[Scalar]] = []
    with Canvas(640 if len(kinds) > 1 else 420, 290, columns=len(kinds)) as canvas:
        for axes, kind in zip(canvas.axes, kinds, strict=True):
            edges = survey.arrays[norm_array(role, kind, "edges")]
            shares = {use: _shares(survey.arrays[norm_array(role, kind, use)]) for use in USES}
            _stairs(axes, edges, shares, filled=USES[0])
            axes.set_title(kind)
            axes.set_xlabel("norm")
            if edges[0] > 0 and edges[-1] > 10 * edges[0]:
                _plain_log_ticks(axes, float(edges[0]), float(edges[-1]))
            rows += [
                [kind, float(edges[at]), float(edges[at + 1]), *(float(shares[use][at]) for use in USES)]
                for at in range(len(edges) - 1)
            ]
        canvas.axes[0].set_ylabel("share of tokens")
        handles, labels = canvas.axes[0].get_legend_handles_labels()
        canvas.figure.legend(handles, labels, loc="upper center", ncols=2, handlelength=2.2)
        canvas.margins(56, 14, 56, 44, gap=0.24)
        svg = canvas.svg()
    medians = "; ".join(_median(one) for one in mine)
    return Plot(
        name=f"norms-{role}",
        title=f"Norms of {role} tokens",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Histogram of the norms of {role} tokens. Medians: {medians}.",
        caption=f"Medians: {medians}. Both sets of one encoder should lie over each other.",
        data=numbers(("kind", "from", "to", *USES), rows),
    )


def match_histogram(survey: Survey) -> Plot:
    """Draw the cosines of best matches, and beside them those within the evaluation set."""
    as_many = survey.found.matches.as_many
    named = {
        "training images": survey.arrays[match_array("training")],
        f"{as_many:,} training images": survey.arrays[match_array("as-many")],
        "other evaluated images": survey.arrays[match_array("within")],
    }
    if as_many == survey.found.matches.training:
        del named[f"{as_many:,} training images"]
    groups = {label: values[np.isfinite(values)] for label, values in named.items()}
    groups = {label: values for label, values in groups.items() if values.size}
    lowest = min(float(values.min()) for values in groups.values())
    bins = int(np.clip(2 * np.sqrt(survey.found.matches.evaluated), FEWEST_BINS, MOST_BINS))
    edges = np.linspace(min(np.floor(lowest * 20) / 20, 0.95), 1.0, bins + 1)
    shares = {
        label: _shares(np.histogram(np.minimum(values, 1.0), edges)[0]) for label, values in groups.items()
    }
    with Canvas(560, 320) as canvas:
        axes = canvas.axes[0]
        _stairs(axes, edges, shares, filled="training images")
        axes.axvline(NEAR_DUPLICATE, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xlabel("cosine of the best match")
        axes.set_ylabel("share of evaluated images")
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, handlelength=2.2, columnspacing=1.4
        )
        canvas.margins(60, 16, 34, 44)
        svg = canvas.svg()
    medians = "; ".join(
        f"among {label} {plain(float(np.median(values)))}" for label, values in groups.items()
    )
    rows: list[list[Scalar]] = [
        [float(edges[at]), float(edges[at + 1]), *(float(one[at]) for one in shares.values())]
        for at in range(bins)
    ]
    return Plot(
        name="matches",
        title="How near the nearest image is",
        svg=svg,
        width=canvas.width,
        height=canvas.height,
        alt=f"Histogram of the cosine of each evaluated image's best match. Medians: {medians}.",
        caption=(
            f"Medians: {medians}. The broken line is {plain(NEAR_DUPLICATE, 2)}. Whoever looks among more images finds "
            "nearer ones, so compare the evaluated images with as many training images."
        ),
        data=numbers(("from", "to", *shares), rows),
    )


def _channels(survey: Survey, one: ChannelSummary, name: str) -> Array:
    return survey.arrays[channel_array(one.role, one.use, name)]


def _offsets(survey: Survey, one: ChannelSummary) -> Array:
    mean, spread = (_channels(survey, one, name) for name in ("mean", "spread"))
    return np.abs(mean[spread > 0]) / spread[spread > 0]


def _sorted_line(axes: Axes, values: Array, one: ChannelSummary, label: str) -> None:
    """Draw values from the largest on, over their rank; logarithmic axes have no place for zeros."""
    ordered = np.sort(values[values > 0])[::-1]
    ranks = np.unique(np.geomspace(1, max(len(ordered), 1), DRAWN_CHANNELS).round().astype(int))[
        : len(ordered)
    ]
    dash = DASH_OF_USE[one.use]
    axes.plot(ranks, ordered[ranks - 1], color=COLOURS[one.role], linestyle=dash, label=label)


def _channel_rows(survey: Survey) -> list[list[Scalar]]:
    rows: list[list[Scalar]] = []
    for one in survey.found.channels:
        columns = [_channels(survey, one, name) for name in ("mean", "spread", "kurtosis")]
        for number, values in enumerate(zip(*columns, strict=True)):
            rows.append([one.role, one.use, number, *(float(v) if np.isfinite(v) else None for v in values)])
    return rows


def _stairs(axes: Axes, edges: Array, shares: Mapping[str, Array], *, filled: str) -> None:
    for number, (label, share) in enumerate(shares.items()):
        colour = SERIES[number]
        if label == filled:
            axes.stairs(share, edges, fill=True, alpha=0.25, color=colour)
        axes.stairs(share, edges, linewidth=1.6, linestyle=DASHES[number], color=colour, label=label)


def _plain_log_ticks(axes: Axes, low: float, high: float) -> None:
    """Make the horizontal axis logarithmic: plain numbers at 1, 2 and 5 of each power of ten, or as there is room."""
    axes.set_xscale("log")
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps: Sequence[int] = (1, 2, 5) if high / low < 150 else (1,)
    ticks = [step * 10**power for power in powers for step in steps]
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _shares(counts: Array) -> Array:
    return np.asarray(counts, np.float64) / max(float(np.sum(counts)), 1.0)


def _median(one: NormSummary) -> str:
    return f"{one.kind}, {one.use} {short(one.median)}"
