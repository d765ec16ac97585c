"""The order in which an epoch visits its samples: pure functions of (seed, epoch), nothing to save or replay.

    order        any sample may follow any other
    block_order  blocks of neighbours in a random order, then a full shuffle inside windows of that sequence
    Schedule     cuts either into the steps of a run and the slices of its ranks

A window is a list of numbers, no memory for samples. Whoever reads a sample of a block can fetch the rest of the
block with it, which slow disks need; windows of 16384 samples keep the batches nearly as mixed as a full shuffle.
Both sort the raw output of Philox keyed by (seed, epoch), which no version of numpy may change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Shuffle = Literal["random", "blocks"]
Ids = NDArray[np.int64]

BLOCK, POOL = 8, 16384
_BLOCKS_STREAM, _POOL_STREAM = 1, 2


def order(seed: int, epoch: int, count: int) -> Ids:
    """The permutation of 0 .. count - 1 for one epoch, from 0 <= seed < 2^64 and epoch alone."""
    return stable_argsort(_keys(seed, epoch, count))


def block_order(seed: int, epoch: int, count: int, *, block: int = BLOCK, pool: int = POOL) -> Ids:
    """A permutation of 0 .. count - 1 that visits each `block` neighbours within about `pool` places.

    For samples numbered in the order in which they lie on disk. Raises `ValueError` unless 1 <= block <= pool.
    """
    if not 1 <= block <= pool:
        raise ValueError(f"block is {block} and pool {pool}, expected 1 <= block <= pool")
    blocks = stable_argsort(_keys(seed, epoch, -(-count // block), _BLOCKS_STREAM))
    ids = (blocks[:, None] * block + np.arange(block)).ravel()
    ids = ids[ids < count]  # the last block may be short
    keys = _keys(seed, epoch, count, _POOL_STREAM)
    whole = count // pool * pool
    windows = np.argsort(keys[:whole].reshape(-1, pool), axis=1, kind="stable")
    shuffled = np.take_along_axis(ids[:whole].reshape(-1, pool), windows, axis=1).ravel()
    return np.concatenate([shuffled, ids[whole:][stable_argsort(keys[whole:])]])


@dataclass(frozen=True)
class Schedule:
    """Which of `count` samples every step of a run takes.

    `batch_size` is the size of the global batch, of which rank r of `world_size` takes the slice r; the global
    batches do not depend on the number of ranks. Within an epoch no sample comes twice; the rest that fills no batch
    is left out until the next epoch.
    """

    count: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle: Shuffle = "random"

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.count:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected 1 to the {self.count} samples there are"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank is {self.rank}, expected 0 <= rank < world_size, which is {self.world_size}"
            )
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split among {self.world_size} ranks; make it a multiple"
            )
        if self.shuffle not in get_args(Shuffle):
            raise ValueError(f"shuffle is {self.shuffle!r}, expected one of {', '.join(get_args(Shuffle))}")

    @property
    def local_batch_size(self) -> int:
        """Samples per step of one rank."""
        return self.batch_size // self.world_size

    def steps(self, start_step: int = 0) -> Iterator[tuple[int, Ids]]:
        """Yield (step, ids of this rank) without end, from `start_step` on."""
        steps_per_epoch = self.count // self.batch_size
        epoch, first = divmod(start_step, steps_per_epoch)
        while True:
            ids = self._epoch(epoch)
            for number in range(first, steps_per_epoch):
                start = number * self.batch_size + self.rank * self.local_batch_size
                yield epoch * steps_per_epoch + number, ids[start : start + self.local_batch_size]
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int) -> Ids:
        return (order if self.shuffle == "random" else block_order)(self.seed, epoch, self.count)


def _keys(seed: int, epoch: int, count: int, stream: int = 0) -> NDArray[np.uint64]:
    """`count` random numbers; every stream of a (seed, epoch) is another sequence."""
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, stream]).random_raw(count)


def stable_argsort(keys: NDArray[np.uint64]) -> Ids:
    """The stable argsort of random keys.

    Sorting values is many times faster than sorting numbers by them: each key carries its number in its low bits. The
    few keys that agree in all other bits are put right afterwards.
    """
    low = np.uint64((1 << len(keys).bit_length()) - 1)
    packed = keys & ~low
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    same = np.flatnonzero((packed[1:] ^ packed[:-1]) <= low)
    packed &= low
    ids = packed.view(np.int64)
    places = np.union1d(same, same + 1)
    unsure = ids[places]
    ids[places] = unsure[np.lexsort((unsure, keys[unsure]))]
    return ids
