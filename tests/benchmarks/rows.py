"""One row of the benchmark report."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(
    name: str, values: Sequence[float], demand: float | None, *, at_most: bool = False, **more: Any
) -> Row:
    """Return the median and spread of `values`; `demand` is the least median, or the largest where `at_most`."""
    value = statistics.median(values)
    holds = None if demand is None else (value <= demand if at_most else value >= demand)
    return {
        "name": name,
        "value": float(f"{value:.9g}"),
        "demand": demand,
        "holds": holds,
        "median_of": len(values),
        "spread": [float(f"{end:.9g}") for end in (min(values), max(values))],
        "device": processor(),
        **more,
    }


def processor() -> str:
    """Return the processor's name and how many of its cores this process may use."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores"
