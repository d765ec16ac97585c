"""Where the weights of Shap-E's prior lie that evaluation tries translations on; reads no tensors."""

from __future__ import annotations

from pathlib import Path

from flowkit.errors import ConfigError
from flowkit.provenance import digest_of, file_digest

PREFIX = "shap-e-prior:"
FILES = ("prior/config.json", "prior/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")


def prior_folder(consumer: str) -> Path:
    """Return the folder that `evaluation.consumer` names."""
    return Path(consumer.removeprefix(PREFIX))


def prior_files(consumer: str) -> tuple[Path, ...]:
    """Return the files that are read; raises `ConfigError` for one that is not there."""
    folder = prior_folder(consumer)
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(
                f"evaluation.consumer={consumer}: {folder / name} is missing; expected a folder as "
                "`hf download openai/shap-e-img2img --local-dir shap-e-img2img` leaves it, with safetensors"
            )
    return tuple(folder / name for name in FILES)


def prior_digest(consumer: str) -> str:
    """Return a digest of all that is read."""
    return digest_of([file_digest(path) for path in prior_files(consumer)])
