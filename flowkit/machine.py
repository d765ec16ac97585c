"""Settings of a machine that the workflow itself reads: where results and data lie, how many tars one job takes.

They change no result and belong into a profile, on the command line or in the environment, never into a configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowkit.errors import ConfigError

MACHINE_SETTINGS = ("results", "data_root", "shards_per_job", "extract_threads")
DEFAULTS = {"shards_per_job": 32, "extract_threads": 1}


@dataclass(frozen=True)
class Machine:
    """Settings of a machine that the workflow reads itself; they change no result and belong into a profile."""

    results: Path
    data_root: Path
    shards_per_job: int = DEFAULTS["shards_per_job"]
    extract_threads: int = DEFAULTS["extract_threads"]


def split_machine_settings(
    settings: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Machine, dict[str, Any], tuple[str, ...]]:
    """Return machine settings, the experiment's own values, and `set` overrides of a Snakemake configuration.

    A machine setting comes from the configuration, else from FLOWKIT_<NAME> in the environment. Raises `ConfigError`.
    """
    values = dict(settings)
    found = {name: values.pop(name, environment.get(f"FLOWKIT_{name.upper()}")) for name in MACHINE_SETTINGS}
    results = Path(str(found["results"] or "results"))
    counts = {name: _count(name, found[name]) for name in DEFAULTS}
    overrides = values.pop("set", ())
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    if not isinstance(overrides, (list, tuple)) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"set={overrides!r}: expected section.key=value, or a list of them")
    return (
        Machine(results, Path(str(found["data_root"] or results / "data")), **counts),
        values,
        tuple(overrides),
    )


def machine_of(
    profile: Path | None = None, *, results: Path | None = None, data_root: Path | None = None
) -> Machine:
    """Return the settings that commands share with the workflow: as given, else the profile's, else the environment's.

    `profile` is the folder that Snakemake gets as `--profile`. Raises `ConfigError` if it cannot be read.
    """
    settings: dict[str, Any] = {}
    if profile is not None:
        file = profile / "config.yaml"
        try:
            settings = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("config") or {}
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise ConfigError(f"{file}: no readable profile ({' '.join(str(error).split())})") from error
    given = {"results": results, "data_root": data_root}
    settings |= {name: str(value) for name, value in given.items() if value is not None}
    return split_machine_settings(settings, os.environ)[0]


def _count(name: str, value: Any) -> int:
    """Return a setting that counts something; raises `ConfigError` if it is no whole number of at least 1."""
    text = str(DEFAULTS[name] if value is None or value == "" else value)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1")
    return int(text)
