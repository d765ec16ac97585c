"""Encoder names and the module of each family.

`load_encoder` imports only the family it needs, so an edit in one family never touches the others;
`FAMILY_MODULES` tells the code fingerprint which module that is. Importing this file imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.errors import EncoderError

if TYPE_CHECKING:  # the workflow layer reads the table without importing torch
    from flowkit.encoders.contract import FrozenEncoder

FAMILY_MODULES = {
    "demo-eva": "flowkit.encoders.demo_towers",
    "demo-vit": "flowkit.encoders.demo_towers",
    "open_clip": "flowkit.encoders.open_clip_tower",
}


def encoder_family(name: str) -> str:
    """Return the key of `FAMILY_MODULES` for an encoder name; raises `EncoderError` for an unknown one."""
    family = name.partition(":")[0]
    if family not in FAMILY_MODULES or (":" in name) != (family == "open_clip"):
        raise EncoderError(f"encoder {name!r} is unknown; expected demo-eva, demo-vit or open_clip:MODEL/TAG")
    return family


def load_encoder(
    name: str, weights: Path | None = None, *, precision: str = "fp32", device: str = "cpu"
) -> FrozenEncoder:
    """Return the encoder `name` with the weights of a file, frozen, on `device`.

    `weights` may be left out for the demo towers, whose weights come with the package. `precision` is fp32,
    bf16 or fp16. Raises `EncoderError` for unknown names and for files that are missing or do not fit.
    """
    if encoder_family(name) == "open_clip":
        from flowkit.encoders.open_clip_tower import load_open_clip

        return load_open_clip(name, weights, precision=precision, device=device)
    from flowkit.encoders.demo_towers import load_demo_tower

    return load_demo_tower(name, weights, precision=precision, device=device)
