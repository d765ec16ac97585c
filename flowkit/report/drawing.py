"""How every figure is drawn: one canvas, one palette, SVG that follows the reader's light or dark mode.

Figures use matplotlib's Figure class directly, so no state is shared. Colours are drawn as placeholders and
become CSS variables afterwards; metadata, dates and random ids are taken out, so the same numbers give the
same bytes. The palette is told apart by people with colour-blindness; lines also differ by dash or marker.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0101", "#0a0202", "#0a0303", "#0a0404", "#0a0505", "#0a0606")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vPp"

_COLOURS = {
    INK: ("ink", "#1b1f24", "#e6e8eb"),
    MUTED: ("muted", "#59626d", "#a3acb8"),
    GRID: ("grid", "#dfe3e8", "#343b45"),
    PAPER: ("paper", "#ffffff", "#171b21"),
    SERIES[0]: ("series-1", "#0067a5", "#58b4f0"),
    SERIES[1]: ("series-2", "#c04f00", "#f59a55"),
    SERIES[2]: ("series-3", "#00795a", "#3ecba2"),
    SERIES[3]: ("series-4", "#96427f", "#e3a0cc"),
    SERIES[4]: ("series-5", "#7d6000", "#e9d14a"),
    SERIES[5]: ("series-6", "#4d5a6b", "#b4c0cf"),
}
_SETTINGS = {
    "svg.hashsalt": "flowkit",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Plot:
    """A finished figure: file name, SVG text, size, words for those who cannot see it, and its numbers."""

    name: str
    title: str
    svg: str
    width: int
    height: int
    alt: str
    caption: str
    data: pd.DataFrame


class Canvas:
    """A figure of `width` x `height` CSS pixels with `rows` x `columns` axes, in the report's style.

    Use it as a context manager: the style holds inside the block, and only for it.
    """

    def __init__(self, width: int = 420, height: int = 300, *, rows: int = 1, columns: int = 1) -> None:
        self.width, self.height = width, height
        self._shape = (rows, columns)
        self._context = matplotlib.rc_context(_SETTINGS)  # type: ignore[arg-type]

    def __enter__(self) -> Canvas:
        self._context.__enter__()
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        FigureCanvasAgg(self.figure)
        rows, columns = self._shape
        self.axes: list[Axes] = list(self.figure.subplots(rows, columns, squeeze=False).flat)
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def margins(self, left: float, right: float, top: float, bottom: float, gap: float = 0.3) -> None:
        """Leave margins in CSS pixels around the axes.

        `gap` is the space between them as a share of their size.
        """
        self.figure.subplots_adjust(
            left=left / self.width,
            right=1 - right / self.width,
            top=1 - top / self.height,
            bottom=bottom / self.height,
            hspace=gap,
            wspace=gap,
        )

    def svg(self) -> str:
        """Return the drawing as SVG text, the same bytes for the same drawing."""
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        return _with_variables(buffer.getvalue().decode())


def log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers, and more of them on a short axis."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _with_variables(svg: str) -> str:
    """Replace placeholder colours by CSS variables and fonts by the reader's own, keep only the drawing."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", svg)
    used = {placeholder: names for placeholder, names in _COLOURS.items() if placeholder in svg}
    for placeholder, (name, light, _) in used.items():
        svg = svg.replace(placeholder, f"var(--{name},{light})")
    light = "".join(f"--{name}:{colour};" for name, colour, _ in used.values())
    dark = "".join(f"--{name}:{colour};" for name, _, colour in used.values())
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    head = svg.index(">") + 1
    return svg[:head] + style + svg[head:]
