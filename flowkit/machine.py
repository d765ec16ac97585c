"""Settings of a machine that the workflow itself reads: where results and data lie, how large jobs are, where they go.

They change no result and belong into a profile, on the command line or in the environment, never into a configuration.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flowkit.errors import ConfigError

MACHINE_SETTINGS = ("results", "data_root", "shards_per_job", "account", "stages", "training")
OVERRIDES = "set"
SHARDS_PER_JOB = 32
PROFILE_FILE = "config.yaml"
SLURMS_ACCOUNT = "SBATCH_ACCOUNT"


@dataclass(frozen=True)
class Machine:
    """Settings of a machine that the workflow reads itself; they change no result and belong into a profile."""

    results: Path
    data_root: Path
    shards_per_job: int = SHARDS_PER_JOB
    account: str = ""
    """Account that jobs are billed to; nothing: Slurm's own default."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    """What jobs ask for, by the names of `flowkit.slurm.settings`; nothing: trainings run where they are asked."""


def split_machine_settings(
    settings: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Machine, dict[str, Any], tuple[str, ...]]:
    """Return machine settings, the experiment's own values, and `set` overrides of a Snakemake configuration.

    A machine setting comes from the configuration, else from FLOWKIT_<NAME> in the environment. Raises `ConfigError`.
    """
    values = dict(settings)
    found = {name: values.pop(name, environment.get(f"FLOWKIT_{name.upper()}")) for name in MACHINE_SETTINGS}
    results = _folder("results", found["results"]) or Path("results")
    shards_per_job = _count("shards_per_job", found["shards_per_job"])
    account = str(found["account"] or environment.get(SLURMS_ACCOUNT, ""))
    training, stages = (_mapping(name, found[name]) for name in ("training", "stages"))
    overrides = values.pop(OVERRIDES, ())
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    if not isinstance(overrides, (list, tuple)) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"set={overrides!r}: expected section.key=value, or a list of them")
    data_root = _folder("data_root", found["data_root"]) or results / "data"
    return Machine(results, data_root, shards_per_job, account, stages, training), values, tuple(overrides)


def named_profile(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return the profile that a Snakemake command line or its environment names, None if there is none."""
    profile = environment.get("SNAKEMAKE_PROFILE")
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == "--profile":
            profile = following
        elif argument.startswith("--profile="):
            profile = argument.partition("=")[2]
    return profile or None


def with_profile(settings: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Return a Snakemake configuration with the machine settings of a profile's file.

    With `--config` on the command line Snakemake drops the whole `config` of a profile: trainings would run on a login
    node, with other folders. Raises `ConfigError` for a profile that cannot be read.
    """
    if file is None:
        return dict(settings)
    of_profile = _settings_in(file)
    return {**{name: value for name, value in of_profile.items() if name in MACHINE_SETTINGS}, **settings}


def as_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return machine settings as the variables that jobs on other machines read: they do not see the profile."""
    found = {name: settings[name] for name in MACHINE_SETTINGS if settings.get(name) not in (None, "")}
    return {
        f"FLOWKIT_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
    }


def machine_of(
    profile: Path | None = None, *, results: Path | None = None, data_root: Path | None = None
) -> Machine:
    """Return the settings that commands share with the workflow: as given, else the profile's, else the environment's.

    `profile` is the folder that Snakemake gets as `--profile`. Raises `ConfigError` if it cannot be read.
    """
    settings = {} if profile is None else _settings_in(_file_of(profile))
    given = {"results": results, "data_root": data_root}
    settings |= {name: str(value) for name, value in given.items() if value is not None}
    return split_machine_settings(settings, os.environ)[0]


def _settings_in(file: Path) -> dict[str, Any]:
    """Return what stands below `config` in a profile; raises `ConfigError` for a name that no machine setting has."""
    found = _mapping(f"{file}: config", _read_yaml(file).get("config"))
    for name in found:
        if name not in (*MACHINE_SETTINGS, OVERRIDES):
            raise ConfigError(
                f"{file}: config.{name}: no setting of a machine, expected one of {', '.join(MACHINE_SETTINGS)}"
            )
    return found


def _file_of(profile: Path) -> Path:
    return profile if profile.is_file() else profile / PROFILE_FILE


def read_profile(profile: Path) -> dict[str, Any]:
    """Return what a profile tells Snakemake, by the names of its options; raises `ConfigError` if it cannot be read."""
    return _read_yaml(_file_of(profile))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: no readable profile ({' '.join(str(error).split())})") from error


def _folder(name: str, value: Any) -> Path | None:
    """Return a folder with its environment variables put in; raises `ConfigError` for one that is not set."""
    if value is None or value == "":
        return None
    path = os.path.expanduser(os.path.expandvars(str(value)))
    if missing := re.search(r"\$\{?(\w+)", path):
        raise ConfigError(f"{name}={value}: the environment has no {missing[1]}; set it, or name the folder")
    return Path(path)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """Return a setting of several values, which Snakemake and the environment hand over as text."""
    if value is None or value == "":
        return {}
    try:
        read = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{name}={value!r}: not readable as YAML ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(read, Mapping):
        raise ConfigError(f"{name}={value!r}: expected names with values, for instance {{executor: slurm}}")
    return dict(read)


def _count(name: str, value: Any) -> int:
    """Return a setting that counts something; raises `ConfigError` if it is no whole number of at least 1."""
    text = str(SHARDS_PER_JOB if value is None or value == "" else value)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1")
    return int(text)
