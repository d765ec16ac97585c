"""What `flowkit plan` says, as lines for people and as a document for programs, and whether it fits the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowkit.errors import ConfigError
from flowkit.planning.pending import State
from flowkit.planning.plan import MachinePlan, machine_plan
from flowkit.planning.plan_text import plan_lines
from flowkit.stages.specs import Plan

MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Said:
    """A plan for people and for programs."""

    lines: Sequence[str]
    document: dict[str, Any]
    fits: bool


def plan(of: Plan, profile: Path | None) -> Said:
    """Return the plan of the data as they are configured."""
    planned = machine_plan(of, profile)
    fits = not any(warned.is_grave for warned in planned.warnings)
    return Said(list(plan_lines(planned)), _document(planned), fits)


def plan_of_images(of: Plan, profile: Path | None, count: str) -> Said:
    """Return the plan for as many images as `count` says; it fits if the configured storage does, all the time.

    Raises `ConfigError` if `count` is no number.
    """
    from flowkit.planning.fitting import is_configured_held
    from flowkit.planning.scale import scale_plan
    from flowkit.planning.scale_text import scale_json, scale_lines

    planned = scale_plan(of, profile, number_of_images(count))
    return Said(list(scale_lines(planned)), scale_json(planned), is_configured_held(planned))


def number_of_images(text: str) -> int:
    """Return a number as people write it: 5M, 1.5M, 120k, 7828, 5,000,000; raises `ConfigError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text.replace(",", "").replace("_", ""))
    count = round(float(match[1]) * MULTIPLES[match[2]]) if match else 0
    if not count:
        raise ConfigError(f"--images {text}: expected a number of images, for instance 5M, 120k or 7828")
    return count


def _document(planned: MachinePlan) -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": planned.plan.config.experiment,
        "jobs": {state.value: planned.count(state) for state in State},
        "stored": [asdict(line) for line in planned.stored],
        "quotas": [asdict(line) for line in planned.quotas],
        "stages": [asdict(line) for line in planned.stages],
        "reading": [asdict(line) for line in planned.reading],
        "warnings": [asdict(warned) for warned in planned.warnings],
    }
