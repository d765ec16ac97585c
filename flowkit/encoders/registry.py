"""Encoder names, the module of each family, and where weights are.

    demo-eva, demo-vit                    towers that come with the package
    open_clip:<model>/<tag or file>       any open_clip model with CLS pooling
    eva_clip:EVA-CLIP-8B[/<path>]         the published .pt, or a path: that file or a folder of the hub's shards

Each function imports only the family it needs, so an edit in one family never touches the others;
`FAMILY_MODULES` tells the code fingerprint which module that is. Importing this file imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.encoders.weight_files import weight_files
from flowkit.encoders.weight_hub import Download, RemoteWeights
from flowkit.errors import EncoderError

if TYPE_CHECKING:  # the workflow layer reads the table without importing torch
    from flowkit.encoders.contract import FrozenEncoder

__all__ = [
    "FAMILY_MODULES",
    "Download",
    "RemoteWeights",
    "encoder_family",
    "find_weights",
    "load_encoder",
    "weight_files",
]

FAMILY_MODULES = {
    "demo-eva": "flowkit.encoders.demo_towers",
    "demo-vit": "flowkit.encoders.demo_towers",
    "open_clip": "flowkit.encoders.open_clip_tower",
    "eva_clip": "flowkit.encoders.eva_clip",
}
FAMILIES_WITH_MODELS = ("open_clip", "eva_clip")


def encoder_family(name: str) -> str:
    """Return the key of `FAMILY_MODULES` for an encoder name; raises `EncoderError` for an unknown one."""
    family, colon, _ = name.partition(":")
    if family not in FAMILY_MODULES or bool(colon) != (family in FAMILIES_WITH_MODELS):
        raise EncoderError(
            f"encoder {name!r} is unknown; expected demo-eva, demo-vit, open_clip:MODEL/TAG or eva_clip:EVA-CLIP-8B"
        )
    return family


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


def find_weights(name: str, download_to: Path | None = None, *, download: Download | None = None) -> Path:
    """Return the file, or folder of shards, with the weights of an encoder.

    A path in the name is returned as it is. A tag comes from the cache of the hub's own tools if that has it,
    its digest checked; else `download(file, path)` fetches it to a path in the folder `download_to`. Without
    these two nothing is fetched. Raises `EncoderError` if it is not to be had, with what to do instead.
    """
    family = encoder_family(name)
    if family == "open_clip":
        from flowkit.encoders import open_clip_tower

        return open_clip_tower.find_weights(name, download_to, download)
    if family == "eva_clip":
        from flowkit.encoders import eva_clip

        return eva_clip.find_weights(name, download_to, download)
    return Path(__file__).parent / "assets" / f"{name}.safetensors"
