"""The jobs of stage `export`, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.config import Config
from flowkit.errors import ConfigError
from flowkit.export.consumers import (
    ENCODER_CHANNELS,
    consumer_named,
    demand_expected_encoder,
    demand_form,
    is_expected_encoder,
)
from flowkit.export.prior_files import declared_files, demand_usable
from flowkit.validation import nearest

TRUE = "true"
"""The run whose tokens are those of the target's own stores."""


def exported_runs(config: Config) -> list[str]:
    """Return the runs and baselines whose tokens are written, in the order of the configuration."""
    if not config.export.consumers:
        return []
    return list(config.runs if config.export.runs is None else config.export.runs)


def exporting(config: Config, run: str) -> Config:
    """Return a configuration that exports one run or baseline; raises `ConfigError` for a name that is neither."""
    known = list(dict.fromkeys([*config.runs, *config.baselines, TRUE]))
    if run not in known:
        raise ConfigError(
            f"export: --run {run} is none of {', '.join(known)}, the names that export.runs may have"
            f"{nearest(run, known)}"
        )
    return config.model_copy(update={"export": config.export.model_copy(update={"runs": (run,)})})


def demand_exportable(config: Config) -> None:
    """Raise `ConfigError` for an export that must fail, before anything is trained for it."""
    settings, encoder = config.export, config.encoders.target.name
    for name in settings.consumers:
        demand_expected_encoder(name, encoder, any_encoder=settings.any_encoder)
        # the stores that `true` is read from hold a class token whatever the layout
        if set(exported_runs(config)) - {TRUE}:
            demand_form(consumer_named(name), config.data.layout)
    for run in exported_runs(config):
        if run not in config.runs or config.run(run).objective.kind == "regression":
            continue
        made = config.run(run).sampling.samplers
        for sampler in settings.samplers or ():
            if sampler not in made:
                raise ConfigError(
                    f"export.samplers={sampler}: run {run} has {', '.join(made)}{nearest(sampler, made)}"
                )


def consumer_files(config: Config) -> tuple[Path, ...]:
    """Return the files of the consumer that evaluation tries translations on; raises `ConfigError` if it cannot.

    Files that are not on this machine are found missing when an evaluation has to run.
    """
    if (consumer := config.evaluation.consumer) is None:
        return ()
    if config.data.layout == "pooled":
        raise ConfigError(
            f"evaluation.consumer={consumer} takes the tokens of all patches, which data.layout=pooled has not; "
            "set it to null"
        )
    demand_expected_encoder(consumer, config.encoders.target.name, any_encoder=config.export.any_encoder)
    demand_usable(consumer, ENCODER_CHANNELS if is_expected_encoder(config.encoders.target.name) else None)
    return declared_files(consumer)


def export_values(config: Config, run: str) -> dict[str, Any]:
    """Return the configuration leaves that the export of a run sees."""
    settings = config.export.model_dump(include={"consumers", "format", "any_encoder"})
    is_flow = run in config.runs and config.run(run).objective.kind != "regression"
    return {
        "export": settings | ({"samplers": config.export.samplers} if is_flow else {}),
        "evaluation": {"images": config.evaluation.images},
        "data": {"layout": config.data.layout},
    }
