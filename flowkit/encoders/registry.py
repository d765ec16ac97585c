"""Loads an encoder by its name (see `names`).

Each branch imports only the family it needs, so an edit in one family never touches the others; `FAMILY_MODULES` tells
the code fingerprint which module that is. Where weights are is the matter of `weight_registry`. Importing this file
imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.encoders.names import brought_weights, encoder_family

if TYPE_CHECKING:  # the workflow layer reads the table without importing torch
    from flowkit.encoders.contract import FrozenEncoder

__all__ = ["FAMILY_MODULES", "brought_weights", "encoder_family", "load_encoder"]

FAMILY_MODULES = {
    "demo-eva": "flowkit.encoders.demo_towers",
    "demo-vit": "flowkit.encoders.demo_towers",
    "open_clip": "flowkit.encoders.open_clip_tower",
    "eva_clip": "flowkit.encoders.eva_clip",
}


def load_encoder(
    name: str,
    weights: Path | None = None,
    *,
    precision: str = "fp32",
    device: str = "cpu",
    compile: bool = False,
) -> FrozenEncoder:
    """Return the encoder `name` with the weights at a path, frozen, on `device`.

    `weights` may be left out for the demo towers, whose weights come with the package, and where the name holds
    a path. `precision` is fp32, bf16 or fp16; `compile` compiles the forward pass of images. Raises
    `EncoderError` for unknown names and for files that are missing or do not fit.
    """
    family = encoder_family(name)
    if family == "open_clip":
        from flowkit.encoders.open_clip_tower import load_open_clip

        return load_open_clip(name, weights, precision=precision, device=device, compile=compile)
    if family == "eva_clip":
        from flowkit.encoders.eva_clip import load_eva_clip

        return load_eva_clip(name, weights, precision=precision, device=device, compile=compile)
    from flowkit.encoders.demo_towers import load_demo_tower

    return load_demo_tower(name, weights, precision=precision, device=device, compile=compile)
