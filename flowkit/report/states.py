"""How far each run has come, and what to do about those that are not done.

A report can be built at any time, so that a reader of a half-finished experiment sees what is there, what is not, and
which command makes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Step = Literal["data", "train", "sample", "baselines", "ceilings", "evaluate", "page", ""]
DONE: Step = ""

_WORDS = {
    "data": "its data are not there",
    "train": "not trained",
    "sample": "trained, nothing translated",
    "baselines": "not fitted",
    "ceilings": "not encoded",
    "evaluate": "translated, not evaluated",
    "page": "evaluated, its page is missing or of an earlier evaluation",
    DONE: "complete",
}


@dataclass(frozen=True)
class RunState:
    """The stage that a run waits for, none when it is complete; `detail` is how far that stage has come."""

    run: str
    waits_for: Step
    detail: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every stage of the run is done."""
        return self.waits_for == DONE

    @property
    def lacks_evaluation(self) -> bool:
        """Whether nothing was measured yet."""
        return self.waits_for not in (DONE, "page")

    @property
    def words(self) -> str:
        """The state as a reader should see it."""
        return ", ".join(part for part in (_WORDS[self.waits_for], self.detail) if part)

    @property
    def command(self) -> str:
        """What makes the stage that is waited for; empty where it takes several, which the whole workflow makes."""
        if self.waits_for in (DONE, "data"):
            return ""
        return f"flowkit {self.waits_for} --config CONFIG --run {self.run}"


def unfinished(states: Sequence[RunState]) -> list[RunState]:
    """Return the states of runs that are not complete."""
    return [state for state in states if not state.is_complete]
