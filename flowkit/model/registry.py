"""Find an architecture by name.

Each branch imports only the architecture it needs, so an edit in one never touches runs of another;
`ARCHITECTURE_MODULES` says which module an architecture needs. Imports no torch before a network is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from flowkit.model.config import DiTConfig
    from flowkit.model.network import DiT

ARCHITECTURE_MODULES = {"blip3o": "flowkit.model.dit", "lumina_next": "flowkit.model.lumina_next"}
"""The module of each architecture."""


def find_architecture(name: str) -> Callable[[DiTConfig, nn.Module], DiT]:
    """Return what makes a network of the architecture `name` from its configuration and output head.

    Raises `ValueError` for an unknown name.
    """
    if name == "blip3o":
        from flowkit.model.dit import Blip3oDiT

        return Blip3oDiT
    if name == "lumina_next":
        from flowkit.model.lumina_next import LuminaNextDiT

        return LuminaNextDiT
    raise ValueError(
        f"model architecture is {name!r}, expected one of {sorted(ARCHITECTURE_MODULES)}; choose one of these"
    )
