"""What pages share: who stands where, where each run's page lies, and the best of each kind.

A `Scene` is built once from the results; pages ask it and never read files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flowkit.report.data import Results
from flowkit.report.details import Details
from flowkit.report.standings import NO_SAMPLERS, Entry, best, best_per_run, entries, told_apart


@dataclass(frozen=True)
class Scene:
    """The results with everything that more than one page asks of them."""

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
    def best(self) -> Entry | None:
        """The best trained run."""
        return best(self.leading, "flow", "regression")

    @cached_property
    def best_flow(self) -> Entry | None:
        """The best flow."""
        return best(self.leading, "flow")

    def champion_of(self, run: str) -> Entry | None:
        """Return the best entry of one run."""
        mine = [entry for entry in self.leading if entry.run == run]
        return max(mine, key=lambda entry: entry.headline, default=None)

    def tied_with(self, champion: Entry | None) -> Sequence[Entry]:
        """Return the other trained runs that are not told apart from the best one: their order is not shown."""
        if champion is None:
            return []
        rivals = [
            entry for entry in best_per_run(self.leading) if entry.trained and entry.run != champion.run
        ]
        return [entry for entry in rivals if not told_apart(champion, entry)]


def details_of(entry: Entry, known: dict[str, Details]) -> Details | None:
    """Return the arrays of an entry among those of its run; a closed form may name its only sampler differently."""
    if entry.sampler in known:
        return known[entry.sampler]
    is_closed = entry.sampler in NO_SAMPLERS
    return next(iter(known.values())) if is_closed and len(known) == 1 else None


def page_of(run: str) -> str:
    """Return the path of a run's page."""
    return f"runs/{slug(run)}.html"


def data_of(run: str) -> str:
    """Return the path of a run's data, from which any two runs are compared."""
    return f"data/runs/{slug(run)}.js"


def slug(name: str) -> str:
    """Return a file name for a run: the name itself when it is plain, else a readable form with a digest."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')}-{digest}"
