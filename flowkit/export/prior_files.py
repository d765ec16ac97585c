"""Where the weights of Shap-E's prior lie that evaluation tries translations on; reads no tensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flowkit.errors import ConfigError
from flowkit.provenance import digest_of, file_digest, read_json

PREFIX = "shap-e-prior:"
FILES = ("prior/config.json", "prior/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")
NO_DIFFUSERS = (
    "evaluation.consumer needs diffusers: pip install diffusers --constraint constraints.txt, or set to null"
)


def prior_folder(consumer: str) -> Path:
    """Return the folder that `evaluation.consumer` names; `~` is the user's home."""
    return Path(consumer.removeprefix(PREFIX)).expanduser()


def declared_files(consumer: str) -> tuple[Path, ...]:
    """Return the files that are read, there or not."""
    return tuple(prior_folder(consumer) / name for name in FILES)


def prior_files(consumer: str) -> tuple[Path, ...]:
    """Return the files that are read; raises `ConfigError` for one that is not there."""
    for path in declared_files(consumer):
        if not path.is_file():
            raise ConfigError(
                f"evaluation.consumer={consumer}: {path} is missing; expected a folder as "
                "`hf download openai/shap-e-img2img --local-dir shap-e-img2img` leaves it, with safetensors"
            )
    return declared_files(consumer)


def demand_usable(consumer: str, channels: int | None) -> None:
    """Raise `ConfigError` if a prior that lies on this machine cannot judge patches of `channels`, None if unknown.

    A folder that is not here is no error: a report can be made, or a job submitted, where the weights are not.
    """
    config = prior_folder(consumer) / FILES[0]
    if not config.is_file():
        return
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError(NO_DIFFUSERS)
    if channels is not None and (width := read_json(config).get("embedding_proj_dim")) != channels:
        raise ConfigError(
            f"evaluation.consumer={consumer}: {config} says embedding_proj_dim={width}, the target encoder's patches "
            f"have {channels} channels: this prior was trained on another encoder; name another or null"
        )


def prior_digest(consumer: str) -> str:
    """Return a digest of all that is read."""
    return digest_of([file_digest(path) for path in prior_files(consumer)])
