"""Fills templates: what every page says of itself, and figures as files with what a template needs to show them.

Templates only print. Everything is escaped: captions, file names and names of runs come from strangers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from flowkit.report.drawing import Plot
from flowkit.report.measures import plain, short
from flowkit.report.tables import sample, to_csv

TEMPLATES = Path(__file__).parent / "templates"

Files = dict[str, bytes]
"""Files of the report by their path below its top."""


@dataclass(frozen=True)
class Facts:
    """What stands on top of every page: the experiment, and what is translated into what."""

    experiment: str
    title: str
    source_encoder: str
    target_encoder: str
    is_demo: bool


class Renderer:
    """Fills templates of one report, or of a page that belongs to none; `more` is known to all of them."""

    def __init__(self, facts: Facts | None = None, **more: Any) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {"plain": plain, "short": short}
        self._environment.tests |= {"missing": pd.isna}
        self._environment.globals |= {"facts": facts, **more}

    def __call__(self, template: str, root: str = "", **context: Any) -> bytes:
        """Return a page; `root` is the way from it back to the top of the report, such as `../`."""
        return self._environment.get_template(template).render(root=root, **context).encode()


def figure_files(folder: str, plots: Sequence[Plot]) -> tuple[Files, list[Mapping[str, Any]]]:
    """Return the files of some plots, SVG and CSV below `folder`, and what `parts.figure` needs to show each."""
    files: Files = {}
    shown: list[Mapping[str, Any]] = []
    for plot in plots:
        image, data = f"{folder}/{plot.name}.svg", f"{folder}/{plot.name}.csv"
        files |= {image: plot.svg.encode(), data: to_csv(plot.data).encode()}
        shown.append({"plot": plot, "image": image, "csv": data, "sample": sample(plot.data)})
    return files, shown
