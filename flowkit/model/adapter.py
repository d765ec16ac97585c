"""Bring the source encoder's tokens to the width of the model.

With n layers: an MLP whose widths fall evenly from source to model width, beside a linear shortcut,

    y = mlp(x) + sigmoid(W mlp(x)) * shortcut(x)

With 0 layers: one linear projection. Shapes: B images, S source tokens, E source width, D model width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from flowkit.model.layers import rms_norm


def layer_widths(source_width: int, width: int, layers: int) -> list[int]:
    """Return layers + 1 widths from `source_width` to `width`, evenly spaced and rounded down."""
    return [int(source_width + (width - source_width) * layer / layers) for layer in range(layers + 1)]


class GradualAdapter(nn.Module):
    """An MLP that narrows step by step, with a gated linear shortcut."""

    def __init__(self, source_width: int, width: int, layers: int) -> None:
        super().__init__()
        widths = layer_widths(source_width, width, layers)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.shortcut = nn.Linear(source_width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, source_BSE: Tensor) -> Tensor:
        """Return [B, S, D]."""
        x = source_BSE
        for layer in self.layers[:-1]:
            x = nn.functional.gelu(rms_norm(layer(x)))
        y_BSD = self.layers[-1](x)
        return y_BSD + self.gate(y_BSD).sigmoid() * self.shortcut(source_BSE)


def build_adapter(source_width: int, width: int, layers: int) -> nn.Module:
    """Return the adapter with `layers` layers; raises `ValueError` for a negative number."""
    if layers < 0:
        raise ValueError(f"adapter_layers is {layers}, expected 0 (a linear projection) or more; correct it")
    return GradualAdapter(source_width, width, layers) if layers else nn.Linear(source_width, width)
