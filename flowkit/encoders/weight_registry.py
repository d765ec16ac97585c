"""Where the weights of an encoder are: what the weights stage needs, and nothing that computes with them.

Each function imports only the family it needs, and of that the part that reads names; `NAME_MODULES` tells the code
fingerprint which that is. An edit in the forward pass of a family therefore makes nobody fetch its weights again.
Importing this file imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from flowkit.encoders.names import brought_weights, encoder_family, split_name
from flowkit.encoders.weight_files import weight_files
from flowkit.encoders.weight_hub import Download, RemoteWeights

__all__ = [
    "NAME_MODULES",
    "Download",
    "RemoteWeights",
    "brought_weights",
    "encoder_family",
    "fetch_tokenizer",
    "find_weights",
    "weight_files",
]

NAME_MODULES = {
    "open_clip": "flowkit.encoders.open_clip_names",
    "eva_clip": "flowkit.encoders.eva_names",
}


def find_weights(name: str, download_to: Path | None = None, *, download: Download | None = None) -> Path:
    """Return the file, or folder of shards, with the weights of an encoder.

    A path in the name is returned as it is. A tag comes from the cache of the hub's own tools if that has it,
    its digest checked; else `download(file, path)` fetches it to a path in the folder `download_to`. Without
    these two nothing is fetched. Raises `EncoderError` if it is not to be had, with what to do instead.
    """
    family = encoder_family(name)
    if family == "open_clip":
        from flowkit.encoders import open_clip_names

        return open_clip_names.find_weights(name, download_to, download)
    if family == "eva_clip":
        from flowkit.encoders import eva_names

        return eva_names.find_weights(name, download_to, download)
    return Path(__file__).parent / "assets" / f"{name}.safetensors"


def fetch_tokenizer(name: str) -> None:
    """Bring what the encoder needs for texts into the hub's cache: for some open_clip models a tokenizer and the
    config of a text tower, for all others nothing.

    What the cache has is enough without internet. Raises `EncoderError` if something is not to be had.
    """
    if encoder_family(name) == "open_clip":
        from flowkit.encoders.open_clip_text import fetch_text_side

        fetch_text_side(name, split_name(name).model)
