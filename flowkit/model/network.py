"""What a diffusion transformer is to the rest of the package, and the stack of blocks inside it.

An architecture is one file: a `Block` and a `DiT` made of it. It takes the condition encoder, the embeddings and the
rotary table from the neighbouring modules, and its name goes into `registry`.

Shapes: B images, T target tokens, S source tokens, C target width, E source width, D model width, M width of the vector
that modulates the blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowkit.model.condition import ConditionEncoder
from flowkit.model.config import DiTConfig
from flowkit.model.layers import KeysValues
from flowkit.model.rope import RotaryTable


class Block(nn.Module, ABC):
    """One block of a network."""

    @abstractmethod
    def keys_values(self, condition_BSD: Tensor, table: RotaryTable) -> KeysValues | None:
        """Return what the block's cross-attention reads of the condition; `None` without cross-attention."""

    @abstractmethod
    def forward(
        self, h_BTD: Tensor, modulation_BM: Tensor, condition: KeysValues | None, table: RotaryTable
    ) -> Tensor:
        """Return the stream behind this block; `condition` is what `keys_values` returned."""

    @abstractmethod
    def matrices(self) -> list[nn.Parameter]:
        """Return the weight matrices of attention and feed-forward."""


class BlockStack(nn.ModuleList):
    """Blocks one after the other.

    With `recompute`, a block keeps only its input for the backward pass and runs a second time there.
    """

    recompute = False

    def __iter__(self) -> Iterator[Block]:
        return cast(Iterator[Block], super().__iter__())

    def keys_values(self, condition_BSD: Tensor, table: RotaryTable) -> tuple[KeysValues | None, ...]:
        """Return, for every block, what its cross-attention reads of the condition."""
        return tuple(block.keys_values(condition_BSD, table) for block in self)

    def forward(
        self,
        h_BTD: Tensor,
        modulation_BM: Tensor,
        keys_values: Sequence[KeysValues | None],
        table: RotaryTable,
    ) -> Tensor:
        """Return the stream behind the last block."""
        for block, condition in zip(self, keys_values, strict=True):
            inputs = (h_BTD, modulation_BM, condition, table)
            if self.recompute:  # blocks draw no random numbers, so there is no generator to rewind
                h_BTD = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                h_BTD = block(*inputs)
        return h_BTD


class DiT(nn.Module, ABC):
    """A network f(x, t, condition) -> tokens of the target, zero at initialisation.

    Encode the condition once, then evaluate it at as many (x, t) as needed.
    """

    condition: ConditionEncoder
    blocks: BlockStack
    head: nn.Module

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def encode_condition(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Any:
        """Encode source tokens; images whose `keep_B` is false get the learned null condition instead.

        What comes back belongs to the architecture: only its own `forward` reads it.
        """

    @abstractmethod
    def forward(self, x_BTC: Tensor, t_B: Tensor, condition: Any) -> Tensor:
        """Return [B, T, C]. `t_B` may hold one time for all images."""

    def token_matrices(self) -> list[nn.Parameter]:
        """Return the matrices of adapter, attention, feed-forward and head, which an orthogonalised update fits."""
        inside = [matrix for block in self.blocks for matrix in block.matrices()]
        around = [*self.condition.adapter.parameters(), *self.head.parameters()]
        return [*inside, *(parameter for parameter in around if parameter.ndim == 2)]

    def recompute_blocks(self, on: bool) -> None:
        """Choose whether blocks are recomputed in the backward pass: less memory, a third more work, equal results."""
        self.blocks.recompute = on
