"""Decoding ahead of the model: members of a tar in, batches of pixels out, in order.

Batch b holds the members [b B, (b + 1) B) of the tar; a rejected member leaves a gap and never moves another one.
Every decode thread takes one member after the other, up to `BATCHES_AHEAD` batches ahead: it reads, checks and decodes,
and puts the pixels into the buffer of their batch. Buffers are reused, because fresh memory costs a tenth of a decode.

Images can be changed between decoding and preprocessing. A changed image is always decoded by PIL; with "fast" it is
still resized and normalised the fast way.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from flowkit.encoders.contract import FrozenEncoder
from flowkit.features.tables import RejectRow, SampleRow
from flowkit.shards.fast_decode import decode_pixels, pixels_of
from flowkit.shards.reader import Listing, Reject, Sample, UndecodableImage, decode_image

if TYPE_CHECKING:
    from flowkit.encoders.preprocessing import Decoder

BATCHES_AHEAD = 2
Change = Callable[[Image.Image, str], Image.Image]
"""What is made of an RGB image and the key of its sample; raises `UndecodableImage` where it cannot be made."""
PER_TASK = 4
"""Members that a decode thread takes at a time; handing over each by itself costs two hundredths of a decode."""
_PROBE = np.zeros((8, 8, 3), np.uint8)


@dataclass(frozen=True)
class DecodedBatch:
    """One model batch before encoding: `rows` and their pixels in the same order.

    `next_index` is the first member after it. Whoever has read the pixels calls `release` once: from then on they may
    be overwritten.
    """

    next_index: int
    rows: list[SampleRow]
    rejects: list[RejectRow]
    pixels_NCHW: Tensor
    release: Callable[[], None]


def decoded_batches(
    listing: Listing,
    encoder: FrozenEncoder,
    *,
    start: int,
    stop: int,
    batch_size: int,
    decode: Decoder = "exact",
    threads: int = 1,
    change: Change | None = None,
) -> Generator[DecodedBatch, None, None]:
    """Yield the batches of the members `start` to `stop`; closing the generator ends its threads.

    With `change`, the pixels are those of the changed images; the rows still describe the images of the tar. A
    member that cannot be used is counted among the rejects; a tar that shrinks meanwhile is a `ShardError`.
    """
    ahead: deque[_Batch] = deque()
    buffers = _Buffers(encoder, batch_size, decode)
    pool = ThreadPoolExecutor(threads, "decode", initializer=_compute_alone)
    with listing.tar.open("rb") as stream:
        prepare = _Preparation(listing, stream, encoder, decode, change)
        try:
            for begin in range(start - start % batch_size, stop, batch_size):
                members = range(max(begin, start), min(begin + batch_size, stop))
                ahead.append(_Batch(members, pool, prepare, buffers))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().decoded()
            while ahead:
                yield ahead.popleft().decoded()
        finally:
            pool.shutdown(cancel_futures=True)


class _Buffers:
    """Buffers [B, 3, H, W] for pixels, pinned where the encoder sits on a GPU; as many as are in use at once."""

    def __init__(self, encoder: FrozenEncoder, batch_size: int, decode: Decoder) -> None:
        if decode == "fast":
            probe_CHW = encoder.preprocess_pixels(torch.from_numpy(_PROBE).permute(2, 0, 1))
        else:
            probe_CHW = encoder.preprocess(Image.fromarray(_PROBE))
        self._shape = (batch_size, *probe_CHW.shape)
        self._pinned = encoder.device.type == "cuda"
        self._free: deque[Tensor] = deque()

    def take(self) -> Tensor:
        return self._free.pop() if self._free else torch.empty(self._shape, pin_memory=self._pinned)

    def give(self, buffer: Tensor) -> None:
        self._free.append(buffer)


class _Batch:
    """Members on their way through the decode threads into one buffer."""

    def __init__(
        self, members: range, pool: ThreadPoolExecutor, prepare: _Preparation, buffers: _Buffers
    ) -> None:
        self._next_index, self._buffers = members.stop, buffers
        self._buffer = buffers.take()
        self._futures: list[Future[list[SampleRow | RejectRow]]] = [
            pool.submit(prepare, members[begin : begin + PER_TASK], self._buffer[begin:])
            for begin in range(0, len(members), PER_TASK)
        ]

    def decoded(self) -> DecodedBatch:
        """Wait for the threads and close the gaps that rejected members left in the buffer."""
        rows: list[SampleRow] = []
        rejects: list[RejectRow] = []
        wait(self._futures)  # woken once, not for each of them
        for slot, result in enumerate(chain.from_iterable(future.result() for future in self._futures)):
            if isinstance(result, RejectRow):
                rejects.append(result)
                continue
            if rejects:
                self._buffer[len(rows)].copy_(self._buffer[slot])
            rows.append(result)
        return DecodedBatch(self._next_index, rows, rejects, self._buffer[: len(rows)], self._release)

    def _release(self) -> None:
        self._buffers.give(self._buffer)


@dataclass(frozen=True)
class _Preparation:
    """The way from a member to its pixels."""

    listing: Listing
    stream: BinaryIO
    encoder: FrozenEncoder
    decode: Decoder
    change: Change | None

    def __call__(self, members: range, out_NCHW: Tensor) -> list[SampleRow | RejectRow]:
        """Prepare a few members, one after the other."""
        return [self._one(index, out_CHW) for index, out_CHW in zip(members, out_NCHW, strict=False)]

    def _one(self, index: int, out_CHW: Tensor) -> SampleRow | RejectRow:
        """Put the pixels of a member into `out_CHW` and describe it, or say why it cannot be used."""
        member = self.listing.sample(index, self.stream)
        if isinstance(member, Reject):
            return _reject(index, member.key, member.reason)
        if not all(_is_text(text) for text in (member.key, *member.captions)):
            return _reject(index, member.key, "text is not Unicode: lone surrogates")
        try:
            attributes = None if member.attributes is None else json.dumps(member.attributes, sort_keys=True)
            pixels_CHW, width, height = self._pixels(member)
        except RecursionError:
            return _reject(index, member.key, "json unreadable: attributes are nested too deeply")
        except UndecodableImage as error:
            return _reject(index, member.key, error.reason)
        out_CHW.copy_(pixels_CHW)
        return SampleRow(
            index=index,
            key=member.key,
            captions=member.captions,
            width=width,
            height=height,
            image_sha256=hashlib.sha256(member.image).hexdigest(),
            attributes_json=attributes,
        )

    def _pixels(self, sample: Sample) -> tuple[Tensor, int, int]:
        """Return the encoder's pixels of a sample, and width and height of its image."""
        if self.decode == "fast" and self.change is None:
            decoded_CHW = decode_pixels(sample)
            _, height, width = decoded_CHW.shape
            return self.encoder.preprocess_pixels(decoded_CHW), width, height
        image = decode_image(sample)
        shown = image if self.change is None else self.change(image, sample.key)
        if self.decode == "fast":
            return self.encoder.preprocess_pixels(pixels_of(shown)), image.width, image.height
        return self.encoder.preprocess(shown), image.width, image.height


def _compute_alone() -> None:
    """Let this thread use no further threads: each decode thread would otherwise start a team of its own."""
    torch.get_num_threads()  # or torch would set the number of this thread at its first operation, overriding ours
    threadpool_limits(limits=1, user_api="openmp")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reject(index: int, key: str, reason: str) -> RejectRow:
    """A row for the rejects table, whose texts must be Unicode whatever the tar says."""
    return RejectRow(index, *(text.encode("utf-8", "backslashreplace").decode() for text in (key, reason)))
