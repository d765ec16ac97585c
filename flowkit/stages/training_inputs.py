"""What a training reads, known without loading what trains: whoever submits one asks."""

from __future__ import annotations

from pathlib import Path

from flowkit.stages.session import Spec


def training_inputs(spec: Spec) -> list[Path]:
    """Return the result folders that training reads."""
    pairs = spec.places.pairs(spec.target["dataset"], spec.target["source"], spec.target["target"])
    return [pairs, spec.places.head(spec.target["target"])] if needs_head(spec) else [pairs]


def needs_head(spec: Spec) -> bool:
    """Whether training reads the target encoder's final norm."""
    return bool(spec.values["objective"]["feature_scale"] == "target_norm")
