"""Settings of a machine that the workflow itself reads: where results and data lie, how many tars one job takes.

They change no result and belong into a profile, on the command line or in the environment, never into a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.errors import ConfigError

MACHINE_SETTINGS = ("results", "data_root", "shards_per_job")
DEFAULT_SHARDS_PER_JOB = 32


@dataclass(frozen=True)
class Machine:
    """Settings of a machine that the workflow reads itself; they change no result and belong into a profile."""

    results: Path
    data_root: Path
    shards_per_job: int


def split_machine_settings(
    settings: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Machine, dict[str, Any], tuple[str, ...]]:
    """Return machine settings, the experiment's own values, and `set` overrides of a Snakemake configuration.

    A machine setting comes from the configuration, else from FLOWKIT_<NAME> in the environment. Raises `ConfigError`.
    """
    values = dict(settings)
    found = {name: values.pop(name, environment.get(f"FLOWKIT_{name.upper()}")) for name in MACHINE_SETTINGS}
    results = Path(str(found["results"] or "results"))
    shards_per_job = str(found["shards_per_job"] or DEFAULT_SHARDS_PER_JOB)
    if found["shards_per_job"] == 0 or not shards_per_job.isdecimal() or int(shards_per_job) < 1:
        raise ConfigError(
            f"shards_per_job={found['shards_per_job']!r}: expected a whole number of at least 1"
        )
    overrides = values.pop("set", ())
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    if not isinstance(overrides, (list, tuple)) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"set={overrides!r}: expected section.key=value, or a list of them")
    return (
        Machine(results, Path(str(found["data_root"] or results / "data")), int(shards_per_job)),
        values,
        tuple(overrides),
    )
