"""What fixes a network's shapes, whatever its architecture. Imports nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiTConfig:
    """Everything that fixes the network's shapes. Raises `ValueError` for shapes that do not fit together.

    Tokens are those of `views` pictures, one after the other, each a row-major grid behind its CLS token if it has one.
    """

    architecture: str
    source_tokens: int
    source_width: int
    target_tokens: int
    target_width: int
    grid: tuple[int, int]
    has_cls: bool
    width: int
    depth: int
    heads: int
    kv_heads: int
    ffn_width: int
    adapter_layers: int
    cross_attention: bool
    aligned_condition: bool
    head: str
    views: int = 1

    def __post_init__(self) -> None:
        self._check_tokens()
        if self.width % self.heads or self.heads % self.kv_heads or self.head_width % 2:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads} do not divide into even head "
                "widths and whole groups; choose another size"
            )
        if not (self.cross_attention or self.aligned_condition):
            raise ValueError(
                "the network would not see its condition; turn on cross_attention or aligned_condition"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    def _check_tokens(self) -> None:
        rows, columns = self.grid
        if self.views < 1:
            raise ValueError(f"views is {self.views}, expected 1 or more; correct it")
        tokens = self.views * (rows * columns + self.has_cls)
        if tokens != self.target_tokens:
            raise ValueError(
                f"{self.views} view(s) of a {rows} x {columns} grid with{'' if self.has_cls else 'out'} CLS have "
                f"{tokens} tokens, expected {self.target_tokens}; correct views, grid or has_cls"
            )
        if self.source_tokens != self.target_tokens:
            raise ValueError(
                f"source has {self.source_tokens} tokens, target {self.target_tokens}, expected equal numbers on "
                "one grid; use the same token layout for both"
            )
