"""The section `export` of a configuration: which tokens are handed over to which models, and how."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from flowkit.sections import SamplerName
from flowkit.validation import Section, Switch, nearest

ConsumerName = Literal["point-e", "shap-e", "shap-e-diffusers", "point-e-imagevec", "openshape"]
"""Of all of `flowkit.export.consumers`."""


class Export(Section):
    """Tokens for models built on CLIP ViT-L/14."""

    consumers: tuple[ConsumerName, ...] = Field(
        (),
        description="Models to write tokens for: point-e, shap-e, shap-e-diffusers, point-e-imagevec, openshape; none "
        "is no export.",
    )
    runs: tuple[str, ...] | None = Field(
        None,
        description="Runs and baselines whose tokens are written, `true` among them; null means all trained runs.",
    )
    samplers: tuple[SamplerName, ...] | None = Field(
        None, min_length=1, description="Samplers of a flow whose tokens are written; null means its first."
    )
    format: Literal["safetensors", "npz"] = Field("safetensors", description="Format of the files.")
    any_encoder: Switch = Field(
        False,
        description="Take tokens of an encoder that the consumers were not trained on: for trials, as with the demo "
        "towers.",
    )

    @field_validator("consumers", "runs", "samplers", mode="before")
    @classmethod
    def _names(cls, names: Any) -> Any:
        """A single name is a list of one; YAML reads a plain `true` as a switch."""
        names = [names] if isinstance(names, str) or names is True else names
        return ["true" if name is True else name for name in names] if isinstance(names, list) else names

    @field_validator("consumers", mode="before")
    @classmethod
    def _known(cls, names: Any) -> Any:
        known = get_args(ConsumerName)
        for name in names if isinstance(names, (list, tuple)) else (names,) if isinstance(names, str) else ():
            if name not in known:
                raise ValueError(
                    f"{name!r} is no consumer, they are {', '.join(known)}{nearest(str(name), known)}"
                )
        return names

    @field_validator("consumers", "runs", "samplers")
    @classmethod
    def _once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("the same name stands there twice")
        return names
