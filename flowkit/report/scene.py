"""What all pages share: who stands where, where each run's page lies, and the images that are shown.

A `Scene` is built once from the results; pages ask it and never read files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flowkit.report import neighbours
from flowkit.report.data import ReportInputs, Results
from flowkit.report.details import Details
from flowkit.report.gallery import Album, error_limit
from flowkit.report.standings import Entry, best, best_per_run, entries, overlap


@dataclass(frozen=True)
class Scene:
    """The results with everything that more than one page asks of them."""

    inputs: ReportInputs
    results: Results

    @cached_property
    def entries(self) -> list[Entry]:
        """Every run and sampler, best first within a data set."""
        return entries(self.results)

    @cached_property
    def leading(self) -> list[Entry]:
        """Entries of the first data set: the ones that headline, figures and galleries speak of."""
        return [entry for entry in self.entries if entry.data == self.entries[0].data]

    @cached_property
    def pages(self) -> Mapping[str, str]:
        """The path of each run's page."""
        return {name: f"runs/{slug(name)}.html" for name in self.results.runs}

    @cached_property
    def best(self) -> Entry | None:
        """The best trained run."""
        return best(self.leading, "flow", "regression")

    @cached_property
    def best_flow(self) -> Entry | None:
        """The best flow."""
        return best(self.leading, "flow")

    @cached_property
    def detailed(self) -> Mapping[Entry, Details]:
        """Each run's best entry that has details, best first, without the true features."""
        found = {
            entry: self.details(entry) for entry in best_per_run(self.leading) if entry.kind != "ceiling"
        }
        return {entry: details for entry, details in found.items() if details}

    @cached_property
    def album(self) -> Album:
        """The images of all galleries, encoded once; the best run sets the scale of the error maps."""
        indices = {int(index) for details in self.detailed.values() for index in details.gallery_index}
        for entry, details in self.detailed.items():
            indices |= neighbours.indices(details) if entry.trained else set()
        limit = error_limit(self.details(self.best) if self.best else None)
        return Album(self.inputs.pictures, sorted(indices), limit)

    def details(self, entry: Entry) -> Details | None:
        """Return the arrays of an entry.

        A closed form may have named its sampler differently, it has only one.
        """
        found = self.results.runs[entry.run].details
        if entry.sampler in found:
            return found[entry.sampler]
        return next(iter(found.values())) if len(found) == 1 else None

    def champion_of(self, run: str) -> Entry | None:
        """Return the best entry of one run."""
        mine = [entry for entry in self.leading if entry.run == run]
        return max(mine, key=lambda entry: entry.headline, default=None)

    def tied_with(self, champion: Entry | None) -> Sequence[Entry]:
        """Return the other trained runs whose interval overlaps: their order is not shown."""
        if champion is None:
            return []
        rivals = [
            entry for entry in best_per_run(self.leading) if entry.trained and entry.run != champion.run
        ]
        return [entry for entry in rivals if overlap(champion, entry)]


def slug(name: str) -> str:
    """Return a file name for a run: the name itself when it is plain, else a readable form with a digest."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')}-{digest}"
