"""Tokens of a chunk of images to the rows that a consumer takes, in float32, without a detour through main memory.

Numpy converts float16 number by number and writes the transposed result with a stride of one row, so each number
touches a cache line of its own. Here a chunk is a few images; each is converted where it was read (vectorised), into a
scratch of one image that stays in the cache and whose rows are 320 bytes longer than they need to be, so that a column
does not fall into one set of the cache; then it is read column by column and written row by row. Shapes: B images, T
patches, D channels, P embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from flowkit.encoders.head import apply_head
from flowkit.features.records import LARGEST_BITS, largest_bits

PADDING = 80
"""Numbers between the rows of the scratch."""
Head = Mapping[str, torch.Tensor]


class RowMaker(Protocol):
    """Makes rows of tokens; one per thread, because it keeps a scratch."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one row that is made."""
        ...

    def fill(self, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
        """Fill out [B, *row_shape] and return the rows that no consumer can take: those that are not finite."""
        ...


class Grid:
    """Patches of images, channels first or last; `drops_first` is for tokens with a class token."""

    def __init__(self, patches: int, channels: int, *, channels_first: bool, drops_first: bool) -> None:
        self.row_shape: tuple[int, ...] = (channels, patches) if channels_first else (patches, channels)
        self._first, self._transposes = int(drops_first), channels_first
        self._scratch_TD = torch.empty(patches, channels + PADDING)[:, :channels]

    def fill(self, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
        """Fill out [B, D, T] or [B, T, D] and return the rows that are not finite."""
        for row, patches_TD in enumerate(tokens_BTD[:, self._first :]):
            if self._transposes:
                self._scratch_TD.copy_(patches_TD)
                out[row].copy_(self._scratch_TD.t())
            else:
                out[row].copy_(patches_TD)
        return not_finite(tokens_BTD)


class Pooled:
    """Image embeddings of length 1: of the class token by the tower's own head, or of embeddings as they are."""

    def __init__(self, width: int, head: Head | None) -> None:
        self.row_shape: tuple[int, ...] = (width,)
        self._head = head

    def fill(self, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
        """Fill out [B, P] and return the rows that are not finite or have no direction."""
        first_B1D = tokens_BTD[:, :1].float()
        embedded_BP = first_B1D[:, 0] if self._head is None else apply_head(first_B1D, dict(self._head))
        length_B1 = torch.linalg.vector_norm(embedded_BP, dim=1, keepdim=True)
        out.copy_(embedded_BP / length_B1)
        # a length beyond float32 would make zeros of numbers that are finite themselves
        has_direction_B = (torch.isfinite(length_B1) & (length_B1 > 0))[:, 0] & torch.isfinite(out).all(dim=1)
        without_direction = torch.nonzero(~has_direction_B).flatten().tolist()
        return sorted({*not_finite(tokens_BTD), *without_direction})


def not_finite(tokens_BTD: torch.Tensor) -> list[int]:
    """Return the images with a token that is not finite: each is refused as a whole, whatever is taken of it."""
    return [row for row, tokens_TD in enumerate(tokens_BTD) if not _is_finite(tokens_TD)]


def _is_finite(values: torch.Tensor) -> bool:
    if values.dtype == torch.float16:
        return largest_bits(values.numpy()) <= LARGEST_BITS
    # a sum is finite unless a number is not, or numbers are so large that each must be looked at
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
