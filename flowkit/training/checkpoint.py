"""Training checkpoints from which a killed run goes on exactly where it was.

A checkpoint is a folder `step-00000120/` with `tensors.safetensors` (weights, their average, optimizer state) and
`state.json` (step, counters, digest of the tensors and of these). It gets its name by one rename when both files are on
the disk; the last `KEPT` stay. A folder that is damaged all the same is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from flowkit.errors import CheckpointError
from flowkit.training.world import sharded_like

KEPT = 2
PREFIX = "step-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """The state after `step` steps."""

    step: int
    counters: dict[str, Any]
    tensors: dict[str, Tensor]


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write `state` below `folder`, remove the oldest beyond `KEPT`, and return the new checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{state.step:08d}"
    partial = folder / f"partial-{state.step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()})
    described = {"step": state.step, "counters": state.counters}
    described["digest"] = _digest(tensors, described)
    write_durably(partial / "tensors.safetensors", tensors)
    write_durably(partial / "state.json", json.dumps(described, sort_keys=True).encode())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)
    for outdated in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(outdated)
    return final


def load_newest(folder: Path) -> TrainingState | None:
    """Return the newest intact state below `folder`, or None if there is no checkpoint.

    Raises `CheckpointError` if there are checkpoints but all are damaged.
    """
    checkpoints = _checkpoints(folder)
    reasons = []
    for checkpoint in reversed(checkpoints):
        try:
            return _load(checkpoint)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reasons.append(f"{checkpoint.name}: {error}")
            log.warning("checkpoint=%s damaged=%s, falling back to the one before", checkpoint, error)
    if checkpoints:
        raise CheckpointError(
            f"all checkpoints in {folder} are damaged ({'; '.join(reasons)}), expected an intact one; "
            "remove the folder to train from the start"
        )
    return None


def _load(checkpoint: Path) -> TrainingState:
    described = json.loads((checkpoint / "state.json").read_text())
    tensors = (checkpoint / "tensors.safetensors").read_bytes()
    expected = described.pop("digest")
    if _digest(tensors, described) != expected:
        raise ValueError("tensors.safetensors or state.json differs from the digest")
    return TrainingState(described["step"], described["counters"], load(tensors))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def _digest(tensors: bytes, described: dict[str, Any]) -> str:
    digest = hashlib.blake2b(tensors, digest_size=16)
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()


def write_durably(file: Path, content: bytes) -> None:
    """Write a file and force it to disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_into(parameters: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy the tensors named `prefix` + name into `parameters`; raises `CheckpointError` if they do not match."""
    found = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if found != set(parameters):
        raise CheckpointError(
            f"checkpoint holds other tensors under {prefix!r} than the network: {sorted(found ^ set(parameters))[:4]}; "
            "remove the checkpoints to train from the start"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(sharded_like(tensors[prefix + name], parameter))
