"""The workflow as a picture: a box for each piece of work with its time, and arrows to what waits for it.

The bar in a box is its share of all the time. What is not done says so and has a dashed frame; the longest chain has
thick frames and arrows, and is named in the caption. Letters are measured in a wide typeface, with room to spare,
because the reader's own is used.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline

from flowkit.report.drawing import GRID, MUTED, PAPER, SERIES, Canvas, Plot
from flowkit.report.measures import duration, plain
from flowkit.report.tables import numbers
from flowkit.report.workflow_layout import Layout, Spot, folded, lay_out, longest_chain
from flowkit.report.workflow_nodes import Node

BOX_WIDTH, COLUMN_WIDTH = 128.0, 164.0
MARGIN = 8.0
PADDING = 10.0
HEAD_SIZE, LINE_SIZE, LINE_STEP = 12.5, 11.0, 15.0
BAR_HEIGHT = 5.0
ARROW_LENGTH = 6.0
THIN, THICK = 1.0, 2.6
DEAREST = 3
PART = " · "


def total_seconds(nodes: Sequence[Node]) -> float:
    """Return the time of all nodes together."""
    return sum(node.seconds for node in nodes if node.seconds is not None)


def workflow_figure(nodes: Sequence[Node]) -> Plot:
    """Return the picture of at least one node."""
    shown, shown_by = folded(nodes)
    chain = longest_chain(nodes)
    total = total_seconds(nodes)
    boxes = {node.name: _box_height(node) for node in shown}
    layout = lay_out(shown, boxes)
    columns = 1 + max(layout.column.values())
    width = round(2 * MARGIN + (columns - 1) * COLUMN_WIDTH + BOX_WIDTH)
    height = round(2 * MARGIN + layout.lower_edge)
    thick = [shown_by[node.name] for node in chain]
    with Canvas(width, height) as canvas, warnings.catch_warnings():
        # signs that the measuring typeface lacks are drawn by the reader's own
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        axes = _blank(canvas)
        _draw_ways(axes, layout, thick)
        for node in shown:
            spot = (node.name, layout.column[node.name])
            left, middle = MARGIN + spot[1] * COLUMN_WIDTH, MARGIN + layout.height[spot]
            _draw_box(axes, node, left, middle - boxes[node.name] / 2, total, is_thick=node.name in thick)
        svg = canvas.svg()
    return Plot(
        name="workflow",
        title="The workflow, with the time of each piece of work",
        svg=svg,
        width=width,
        height=height,
        alt=_alt(nodes, chain, total),
        caption=_caption(nodes, chain, total, is_folded=len(shown) < len(nodes)),
        data=_data(nodes, total),
    )


def _blank(canvas: Canvas) -> Axes:
    """Return axes whose units are CSS pixels, downwards from the upper left corner, without anything drawn."""
    canvas.margins(0, 0, 0, 0)
    axes = canvas.axes[0]
    axes.set_axis_off()
    axes.set_xlim(0, canvas.width)
    axes.set_ylim(canvas.height, 0)
    return axes


def _lines(node: Node) -> list[str]:
    """Return what stands below the head of a box: what it works on, and how much of it is done if not all."""
    part_done = [f"{node.done:,} of {node.results:,}"] if 0 < node.done < node.results else []
    return [*node.label.split(PART), *part_done]


def _time(node: Node) -> str:
    if node.seconds is not None:
        return duration(node.seconds)
    return "time unknown" if node.done else node.state


def _box_height(node: Node) -> float:
    return 2 * PADDING + HEAD_SIZE + LINE_STEP * (len(_lines(node)) + 1) + BAR_HEIGHT + 2


def _draw_box(axes: Axes, node: Node, left: float, top: float, total: float, *, is_thick: bool) -> None:
    height, inner = _box_height(node), BOX_WIDTH - 2 * PADDING
    frame = FancyBboxPatch(
        (left, top),
        BOX_WIDTH,
        height,
        boxstyle="round,pad=0,rounding_size=4",
        facecolor=PAPER,
        edgecolor=SERIES[0] if is_thick else MUTED,
        linewidth=THICK if is_thick else THIN,
        linestyle="-" if node.state == "done" else (0, (5, 3)),
        zorder=3,
    )
    axes.add_patch(frame)
    x, y = left + PADDING, top + PADDING + HEAD_SIZE - 2
    axes.text(x, y, cut(node.stage, inner, HEAD_SIZE, is_bold=True), size=HEAD_SIZE, weight="bold", zorder=4)
    for line in _lines(node):
        y += LINE_STEP
        axes.text(x, y, cut(line, inner, LINE_SIZE), size=LINE_SIZE, color=MUTED, zorder=4)
    y += LINE_STEP + 1
    axes.text(x, y, cut(_time(node), inner, HEAD_SIZE), size=HEAD_SIZE, zorder=4)
    filled = (node.seconds or 0.0) / total if total else 0.0
    for colour, part in ((GRID, 1.0), (SERIES[0], filled)):
        axes.add_patch(Rectangle((x, y + 7), inner * part, BAR_HEIGHT, color=colour, linewidth=0, zorder=4))


def _draw_ways(axes: Axes, layout: Layout, chain: Sequence[str]) -> None:
    thick = {step for source, target in pairwise(chain) for step in layout.way(source, target)}
    for step in sorted(layout.steps, key=lambda one: one in thick):
        colour, width = (SERIES[0], THICK) if step in thick else (MUTED, THIN)
        _draw_step(axes, layout, step, colour, width)


def _draw_step(axes: Axes, layout: Layout, step: tuple[Spot, Spot], colour: str, width: float) -> None:
    """Draw a curve through the gap between two columns, then a lane on through the column, or an arrow head."""
    (source, column), (target, next_column) = step
    is_head = layout.column[target] == next_column
    x1, x2 = MARGIN + column * COLUMN_WIDTH + BOX_WIDTH, MARGIN + next_column * COLUMN_WIDTH
    y1, y2 = MARGIN + layout.height[source, column], MARGIN + layout.height[target, next_column]
    end = x2 - (ARROW_LENGTH if is_head else 0)
    half = (end - x1) / 2
    points = [(x1, y1), (x1 + half, y1), (end - half, y2), (end, y2)]
    codes = [Outline.MOVETO, *[Outline.CURVE4] * 3]
    if not is_head:
        points.append((x2 + BOX_WIDTH, y2))
        codes.append(Outline.LINETO)
    curve = PathPatch(Outline(points, codes), facecolor="none", edgecolor=colour, linewidth=width, zorder=2)
    axes.add_patch(curve)
    if is_head:
        wing = 3.0 + width / 2
        axes.add_patch(
            Polygon([(x2, y2), (end, y2 - wing), (end, y2 + wing)], color=colour, linewidth=0, zorder=2)
        )


@cache
def _font(is_bold: bool) -> FT2Font:
    return get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if is_bold else "normal")))


def text_width(text: str, size: float, *, is_bold: bool = False) -> float:
    """Return the width of a text in CSS pixels in a typeface wider than most; signs it lacks take a square."""
    font = _font(is_bold)
    font.set_size(size, 72)

    def advance(sign: str) -> float:
        if unicodedata.combining(sign):
            return 0.0
        glyph = font.get_char_index(ord(sign))
        if not glyph or unicodedata.east_asian_width(sign) in "WF":
            return size
        return font.load_glyph(glyph).linearHoriAdvance / 65536

    return sum(map(advance, text))


def cut(text: str, width: float, size: float, *, is_bold: bool = False) -> str:
    """Return a text that fits into a width, with an ellipsis where something was cut; signs nobody can see are `?`."""
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    if text_width(text, size, is_bold=is_bold) <= width:
        return text
    while text and text_width(text + "…", size, is_bold=is_bold) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def share(seconds: float, total: float) -> str:
    """Return the share of a time span in percent, as text."""
    percent = 100 * seconds / total if total else 0.0
    return f"{plain(percent, 0 if percent >= 9.95 else 1)} %"


def _alt(nodes: Sequence[Node], chain: Sequence[Node], total: float) -> str:
    done = sum(node.state == "done" for node in nodes)
    dearest = sorted((node for node in nodes if node.seconds), key=lambda node: -(node.seconds or 0.0))[
        :DEAREST
    ]
    text = f"Graph of the workflow from left to right: {len(nodes)} pieces of work, {done} of them done, "
    text += f"{duration(total)} in all."
    if dearest:
        named = [
            f"{node.title} ({duration(node.seconds or 0.0)}, {share(node.seconds or 0.0, total)})"
            for node in dearest
        ]
        text += f" Most time went into {', '.join(named)}."
    if chain:
        text += f" The longest chain has {len(chain)} of them and ends with {chain[-1].title}."
    return text


def _caption(nodes: Sequence[Node], chain: Sequence[Node], total: float, *, is_folded: bool) -> str:
    text = f"An arrow leads to what waits for a result. A bar is the share of all {duration(total)}."
    if chain:
        seconds = sum(node.longest or 0.0 for node in chain)
        text += f" Thick: the longest chain, {duration(seconds)}: {' → '.join(node.title for node in chain)}."
        text += " With a machine for each process, it would still take that long."
    if is_folded:
        text += " Many runs of one stage share a box; the table has each of them."
    if any(node.state != "done" for node in nodes):
        text += " Dashed: not done, or not all of it."
    return text


def _data(nodes: Sequence[Node], total: float) -> pd.DataFrame:
    columns = ("stage", "what", "after", "results", "done", "seconds", "share", "longest_process_seconds",
               "cpu_seconds", "peak_memory_mb", "started", "ended", "hosts")  # fmt: skip
    title = {node.name: node.title for node in nodes}
    rows = []
    for node in nodes:
        of_all = node.seconds / total if node.seconds is not None and total else None
        started, ended = (at.isoformat() if at else None for at in (node.started, node.ended))
        after = "; ".join(title.get(one, one) for one in node.after)
        rows.append(
            (node.stage, node.label, after, node.results, node.done, node.seconds, of_all, node.longest,
             node.cpu_seconds, node.peak_memory_mb, started, ended, " ".join(node.hosts))
        )  # fmt: skip
    return numbers(columns, rows)
