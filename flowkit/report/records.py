"""How the results came about: settings that differ between runs, stages with their cost, package versions.

Works on the `run.json` records alone. A key that a record lacks is shown as unknown; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flowkit.report.data import RunFiles, StageRecord, finite

UNKNOWN = "unknown"


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` -> text."""
    found: dict[str, str] = {}
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return found


def settings(run: RunFiles) -> dict[str, str]:
    """Return the settings of a run's training and sampling, empty when there is no record of them."""
    found: dict[str, str] = {}
    for record in run.records:
        spec, stage = record.values.get("spec"), record.name.split("/")[0]
        values = spec.get("values") if isinstance(spec, Mapping) else None
        if not isinstance(values, Mapping):
            continue
        if stage == "train":
            found |= leaves(values)
        elif stage == "samples" and isinstance(values.get("sampling"), Mapping):
            found |= leaves({"sampling": values["sampling"]})
    return dict(sorted(found.items()))


def stage_seconds(run: RunFiles) -> dict[str, float]:
    """Return the wall time of each stage of a run that left a record, in seconds."""
    found = {_stage(record): finite(record.values.get("seconds")) for record in run.records}
    return {stage: seconds for stage, seconds in found.items() if seconds is not None}


def pretty(record: StageRecord) -> str:
    """Return a record as indented JSON."""
    return json.dumps(record.values, indent=1, sort_keys=True, ensure_ascii=False)


def _stage(record: StageRecord) -> str:
    return str(record.values.get("stage") or record.name)


def rates_text(values: object) -> str:
    """Return the rates of a record as text."""
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" for key, value in sorted(values.items()) if finite(value)
    )
