"""What stage `page` leaves for the pages that show several runs: images with error maps, a sparkline, what it cost.

Format: `about.json` beside the files of the page. It is read by stage `report` and is no part of the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flowkit.errors import ReportError
from flowkit.report.gallery import Group

ABOUT = "about.json"


@dataclass(frozen=True)
class MadePage:
    """One run's page as others see it.

    `groups` are the best, worst and random images of its best sampler. `sparkline` is a curve of training from its
    first to its last step, and `sparkline_of` what it shows. `seconds` is the time of each stage of the run,
    `error_limit` the error of the brightest colour of the error maps and `scale_of` the run that set it, `evaluation`
    the name of what was measured.
    """

    run: str
    page: str
    sampler: str
    question: str
    groups: Sequence[Group]
    sparkline: Sequence[float]
    sparkline_of: str
    seconds: Mapping[str, float]
    error_limit: float
    scale_of: str
    evaluation: str

    def as_bytes(self) -> bytes:
        """Return the JSON form."""
        return _FORM.dump_json(self, indent=1)


_FORM = TypeAdapter(MadePage)


def read_made_page(folder: Path) -> MadePage:
    """Return what stage `page` left in its folder; raises `ReportError` naming the file if it is missing or damaged."""
    path = folder / ABOUT
    try:
        return _FORM.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ReportError(
            f"{path} cannot be read ({str(error).splitlines()[0]}), run stage page again"
        ) from None
