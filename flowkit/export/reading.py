"""How a consumer's side reads an export: the tensor, the keys of its rows, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from flowkit.errors import StoreError
from flowkit.export.exporter import DESCRIPTION, KEYS
from flowkit.export.tensor_files import TENSOR
from flowkit.provenance import read_json
from flowkit.validation import nearest


@dataclass(frozen=True)
class Export:
    """An export in memory: rows [N, ...] float32, one key each, and its description (`export.json`)."""

    embeddings: torch.Tensor
    keys: list[str]
    description: dict[str, Any]

    def of(self, keys: Sequence[str]) -> torch.Tensor:
        """Return the rows of some keys, in their order; raises `StoreError` for a key that is not there."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        if missing := [key for key in keys if key not in row_of]:
            raise StoreError(
                f"{missing[0]!r} is not among the {len(self.keys)} keys of this export"
                f"{nearest(missing[0], self.keys)}; {DESCRIPTION} names what was left out"
            )
        return self.embeddings[[row_of[key] for key in keys]]


def read_export(folder: Path) -> Export:
    """Read the export of one consumer; safetensors are mapped, so rows are read from disk when they are used.

    Raises `StoreError` if the file does not fit its description.
    """
    description, keys = read_json(folder / DESCRIPTION), read_json(folder / KEYS)
    path = folder / description["file"]
    if path.suffix == ".npz":
        with np.load(path) as archive:
            embeddings = torch.from_numpy(archive[TENSOR])
    else:
        embeddings = load_file(path)[TENSOR]
    if list(embeddings.shape) != description["shape"] or len(embeddings) != len(keys):
        raise StoreError(
            f"{path} holds {list(embeddings.shape)} for {len(keys)} keys, {DESCRIPTION} says {description['shape']}; "
            "export again"
        )
    return Export(embeddings, keys, description)
