"""Decoding ahead of the model: members of a tar in, batches of pixels out, in order.

Batch b holds the members [b B, (b + 1) B) of the tar; a rejected member leaves a gap and never moves another one.
One thread reads the tar up to `BATCHES_AHEAD` batches ahead and hands every member to the decode threads, which never
wait for the end of a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from flowkit.encoders.contract import FrozenEncoder
from flowkit.features.prefetch import prefetched
from flowkit.features.tables import RejectRow, SampleRow
from flowkit.shards.fast_decode import decode_pixels
from flowkit.shards.reader import Reject, Sample, UndecodableImage, decode_image

if TYPE_CHECKING:
    from flowkit.encoders.preprocessing import Decoder

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Decoded:
    """A sample whose image is ready for the encoder."""

    row: SampleRow
    pixels_CHW: Tensor


@dataclass(frozen=True)
class DecodedBatch:
    """One model batch before encoding; `next_index` is the first member after it."""

    next_index: int
    samples: list[Decoded]
    rejects: list[RejectRow]


def decoded_batches(
    members: Iterable[Sample | Reject],
    encoder: FrozenEncoder,
    *,
    batch_size: int,
    decode: Decoder,
    threads: int,
) -> Generator[DecodedBatch, None, None]:
    """Yield the batches of `members`; closing the generator ends its threads.

    A member that cannot be used is counted among the rejects; a fault of the tar is raised in its place.
    """

    def prepare(member: Sample | Reject) -> Decoded | RejectRow:
        return _prepared(member, encoder, decode)

    pool = ThreadPoolExecutor(threads, "decode", initializer=_compute_alone)
    submitted = prefetched(_submitted(members, batch_size, pool, prepare), BATCHES_AHEAD)
    try:
        for next_index, futures in submitted:
            results = [future.result() for future in futures]
            yield DecodedBatch(
                next_index,
                samples=[result for result in results if isinstance(result, Decoded)],
                rejects=[result for result in results if isinstance(result, RejectRow)],
            )
    finally:
        submitted.close()
        pool.shutdown(cancel_futures=True)


Results = list[Future[Decoded | RejectRow]]


def _submitted(
    members: Iterable[Sample | Reject],
    batch_size: int,
    pool: ThreadPoolExecutor,
    prepare: Callable[[Sample | Reject], Decoded | RejectRow],
) -> Iterator[tuple[int, Results]]:
    for number, group in groupby(members, key=lambda member: member.index // batch_size):
        futures, last = [], number * batch_size
        for member in group:
            futures.append(pool.submit(prepare, member))
            last = member.index
        yield last + 1, futures


def _compute_alone() -> None:
    """Let this thread use no further threads: each decode thread would otherwise start a team of its own."""
    torch.get_num_threads()  # or torch would set the number of this thread at its first operation, overriding ours
    threadpool_limits(limits=1, user_api="openmp")


def _prepared(member: Sample | Reject, encoder: FrozenEncoder, decode: Decoder) -> Decoded | RejectRow:
    """Decode and preprocess one member, or say why it cannot be used."""
    if isinstance(member, Reject):
        return _reject(member.index, member.key, member.reason)
    if not all(_is_text(text) for text in (member.key, *member.captions)):
        return _reject(member.index, member.key, "text is not Unicode: lone surrogates")
    try:
        attributes = None if member.attributes is None else json.dumps(member.attributes, sort_keys=True)
    except RecursionError:
        return _reject(member.index, member.key, "json unreadable: attributes are nested too deeply")
    try:
        pixels_CHW, width, height = _pixels(member, encoder, decode)
    except UndecodableImage as error:
        return _reject(member.index, member.key, error.reason)
    row = SampleRow(
        index=member.index,
        key=member.key,
        captions=member.captions,
        width=width,
        height=height,
        image_sha256=hashlib.sha256(member.image).hexdigest(),
        attributes_json=attributes,
    )
    return Decoded(row, pixels_CHW)


def _pixels(sample: Sample, encoder: FrozenEncoder, decode: Decoder) -> tuple[Tensor, int, int]:
    """Return the encoder's pixels of a sample, and width and height of its image."""
    if decode == "fast":
        decoded_CHW = decode_pixels(sample)
        _, height, width = decoded_CHW.shape
        return encoder.preprocess_pixels(decoded_CHW), width, height
    image = decode_image(sample)
    return encoder.preprocess(image), image.width, image.height


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reject(index: int, key: str, reason: str) -> RejectRow:
    """A row for the rejects table, whose texts must be Unicode whatever the tar says."""
    return RejectRow(index, *(text.encode("utf-8", "backslashreplace").decode() for text in (key, reason)))
