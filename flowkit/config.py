"""The configuration of an experiment, put together from its sections, and how a run overrides some of them.

The default YAML, the JSON schema and the reference in `workflow/config/` are generated from these models
(`flowkit.config_files`); unknown keys are errors that name the nearest key. A run is a set of overrides of the sections
`model`, `objective`, `train` and `sampling`. This module must import without torch in a fraction of a second: the
Snakefile is parsed in every cluster job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from flowkit.datasets import DATASET_KINDS, Dataset, overlap
from flowkit.errors import ConfigError
from flowkit.export_section import Export
from flowkit.sections import (
    BASELINES,
    USUAL_BASELINES,
    Baseline,
    ClosedForms,
    Data,
    Encoders,
    Evaluation,
    Goals,
    Model,
    Name,
    Objective,
    Report,
    Sampling,
    Train,
)
from flowkit.validation import Section, nearest, validated


class RunConfig(Section):
    """The sections that belong to one run, with its overrides merged in."""

    model: Model
    objective: Objective
    train: Train
    sampling: Sampling


QUESTION = "question"
"""Key of a run that is no section."""


class Config(Section):
    """A whole experiment."""

    experiment: Name = Field(description="Name of the results folder.")
    datasets: dict[Name, Dataset] = Field(min_length=1, description="Data sets by name.")
    data: Data = Field(default_factory=Data, description="Which data set plays which part.")
    encoders: Encoders = Field(description="Source and target encoder.")
    model: Model = Field(default_factory=Model, description="The translation network.")
    objective: Objective = Field(default_factory=Objective, description="What it is trained to do.")
    train: Train = Field(default_factory=Train, description="Optimisation.")
    sampling: Sampling = Field(default_factory=Sampling, description="How tokens are made.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured.")
    closed_forms: ClosedForms = Field(
        default_factory=ClosedForms, description="How the closed-form baselines are fitted."
    )
    export: Export = Field(default_factory=Export, description="Tokens for models built on CLIP ViT-L/14.")
    goals: Goals = Field(default_factory=Goals, description="Demands behind the verdicts.")
    report: Report = Field(default_factory=Report, description="What the pages show.")
    baselines: tuple[Baseline, ...] = Field(
        USUAL_BASELINES,
        description="Closed-form runs beside the trained ones, and the target encoder's own tokens made anew.",
    )
    runs: dict[Name, dict[str, Any]] = Field(
        min_length=1,
        description="Runs by name; each overrides keys of model, objective, train and sampling, and may say in "
        "`question` what it is there to find out.",
    )

    @field_validator("baselines", mode="before")
    @classmethod
    def _true_is_a_name(cls, names: Any) -> Any:
        """YAML reads a plain `true` as a switch."""
        return ["true" if name is True else name for name in names] if isinstance(names, list) else names

    @field_validator("baselines")
    @classmethod
    def _distinct(cls, names: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if len(set(names)) != len(names):
            raise ValueError("the same baseline is named twice")
        return names

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        for role in ("train", "evaluation"):
            name = getattr(self.data, role)
            if name not in self.datasets:
                raise ValueError(f"data.{role}={name} is not among the data sets {', '.join(self.datasets)}")
        if self.data.train == self.data.evaluation:
            raise ValueError(
                f"data.evaluation={self.data.evaluation} is the training set, name another data set"
            )
        train, evaluation = self.datasets[self.data.train], self.datasets[self.data.evaluation]
        if found := overlap(train, evaluation):
            raise ValueError(f"datasets.{self.data.evaluation}.{found}")
        if train.views != evaluation.views:
            raise ValueError(
                f"datasets.{self.data.evaluation} has {evaluation.views} views in a sample, the training set "
                f"{self.data.train} has {train.views}; give both the same number of views"
            )
        if taken := set(self.runs) & {*BASELINES, "baselines", "ceilings"}:
            raise ValueError(f"runs.{min(taken)} has the name of a baseline, choose another name")
        known = list(dict.fromkeys([*self.runs, *self.baselines, "true"]))
        for name in self.export.runs or ():
            if name not in known:
                raise ValueError(f"export.runs={name} is none of {', '.join(known)}{nearest(name, known)}")
        return self

    def question(self, name: str) -> str:
        """Return what run `name` is there to find out, empty if it does not say."""
        question = self.runs[name].get(QUESTION, "")
        if not isinstance(question, str):
            raise ConfigError(f"runs.{name}.{QUESTION}={question!r}: expected a sentence")
        return question

    def run(self, name: str) -> RunConfig:
        """Return the sections of run `name` with its overrides merged in; raises `ConfigError` naming the key."""
        if name not in self.runs:
            raise ConfigError(
                f"runs.{name} does not exist, the runs are: {', '.join(self.runs)}{nearest(name, self.runs)}"
            )
        sections = self._sections_of(name)
        run = validated(RunConfig, sections, kinds=DATASET_KINDS, prefix=f"runs.{name}.")
        if run.objective.feature_scale == "target_norm" and self.data.layout == "pooled":
            raise ConfigError(
                f"runs.{name}: objective.feature_scale=target_norm is the norm of tokens, which data.layout=pooled has "
                "behind it; choose factor or standardize"
            )
        if run.objective.kind != "regression" and not run.objective.condition_dropout:
            if run.sampling.guidance_scale != 1:
                raise _unguided(name, f"sampling.guidance_scale={run.sampling.guidance_scale}")
            for sampler in run.sampling.samplers:
                if "-guidance" in sampler:
                    raise _unguided(name, f"sampling.samplers={sampler}")
        return run

    def _sections_of(self, name: str) -> dict[str, dict[str, Any]]:
        sections = {section: getattr(self, section).model_dump() for section in RunConfig.model_fields}
        self.question(name)
        for section, overrides in self.runs[name].items():
            if section == QUESTION:
                continue
            if section not in sections:
                raise ConfigError(
                    f"runs.{name}.{section}: unknown section, a run overrides {', '.join(sections)}, and may have a "
                    f"{QUESTION}"
                )
            if not isinstance(overrides, dict):
                raise ConfigError(f"runs.{name}.{section}={overrides!r}: expected keys and values")
            sections[section] |= overrides
        return sections


def _unguided(run: str, setting: str) -> ConfigError:
    return ConfigError(
        f"runs.{run}: {setting} needs a run that was trained with objective.condition_dropout above 0"
    )


def load_config(source: Path | dict[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """Return the validated configuration of a YAML file or a dictionary.

    `overrides` are `section.key=value` strings with YAML values, applied last. Raises `ConfigError` with one line per
    problem that names the key, the value and what is expected.
    """
    raw = _read_yaml(source) if isinstance(source, Path) else source
    raw = {**raw}
    for override in overrides:
        raw = _override(raw, override)
    config = validated(Config, raw, kinds=DATASET_KINDS)
    for name in config.runs:
        config.run(name)
    return config


def demand_own_place(
    stage: str, overrides: list[str] | None, *, has_own_data: bool, leaves_result: bool
) -> None:
    """Raise `ConfigError` if a stage would leave results of other values where the workflow takes them for its own."""
    if not overrides or not leaves_result:
        return
    if not any(override.startswith("experiment=") for override in overrides):
        raise ConfigError(
            f"flowkit {stage}: --set {overrides[0]} makes another experiment, give it a name: --set experiment=NAME"
        )
    of_data = [override for override in overrides if override.startswith(("datasets.", "encoders."))]
    if of_data and not has_own_data:
        raise ConfigError(
            f"flowkit {stage}: --set {of_data[0]} changes what all experiments share, give it a place: --data-root DIR"
        )


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one `section.key=value` string per leaf of a nested dictionary, in a stable order."""
    found = []
    for key, value in sorted(values.items()):
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={_plain(value)}")
    return found


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(_plain(item) for item in value)
    return str(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, give the path of a YAML configuration")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected section.key=value")
    head, _, rest = key.partition(".")
    if not rest:
        try:
            return {**raw, head: yaml.safe_load(text)}
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--set {override}: not readable as YAML: {' '.join(str(error).split())}"
            ) from error
    below = raw.get(head) or {}
    if not isinstance(below, dict):
        raise ConfigError(f"--set {override}: {head} is a value, it has no keys below it")
    return {**raw, head: _override(below, f"{rest}={text}")}
