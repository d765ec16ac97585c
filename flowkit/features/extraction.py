"""Extraction: one source tar through a frozen encoder into a token store.

Members are cut into model batches by their index in the tar, batch b being members [b B, (b + 1) B); a
rejected member leaves a gap in its batch and never moves another one. So the bytes of a store depend on the
tar, the encoder and B, not on where an earlier attempt was killed. Images are decoded in threads while the
model works on the batch before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowkit.encoders.contract import FrozenEncoder
from flowkit.features.prefetch import prefetched
from flowkit.features.tables import RejectRow, SampleRow
from flowkit.features.writer import Counts, TokenStoreWriter
from flowkit.shards.catalogue import describe_tar
from flowkit.shards.reader import Reject, Sample, UndecodableImage, decode_image, read_samples

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class _Prepared:
    """A decoded sample, ready for the encoder."""

    row: SampleRow
    pixels_CHW: Tensor


@dataclass(frozen=True)
class _Batch:
    """One model batch before encoding; `next_index` is the first member after it."""

    next_index: int
    prepared: list[_Prepared]
    rejects: list[RejectRow]


def extract_tar(
    tar: Path,
    encoder: FrozenEncoder,
    work_dir: Path,
    *,
    batch_size: int,
    attributes: Mapping[str, Any],
    progress: Callable[[int], None] | None = None,
    limit: int | None = None,
    decode_threads: int = 1,
) -> Counts:
    """Write the complete store of `tar` into `work_dir`, going on from what a killed attempt left there.

    `attributes` are what only the caller knows, such as the digest of the weights; encoder, batch size and
    source tar are added here. `progress` is called with the number of members just done. `limit` takes only
    the first members of the tar. Raises `ShardError` for a damaged tar and `StoreError` if `work_dir` holds
    other work; a damaged sample is counted.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    with TokenStoreWriter(
        work_dir,
        token_shape=(encoder.token_count, encoder.token_width),
        pooled_width=encoder.pooled_width,
        attributes={
            "source": dict(describe_tar(tar)),
            **attributes,
            **encoder_attributes(encoder),
            "batch_size": batch_size,
            "limit": limit,
        },
    ) as writer:
        if writer.finished:
            return writer.counts
        members = islice(read_samples(tar), writer.next_index, limit)
        with ThreadPoolExecutor(max_workers=decode_threads, thread_name_prefix="decode") as pool:
            batches = prefetched(_batches(members, encoder, batch_size, pool), BATCHES_AHEAD)
            try:
                for batch in batches:
                    done = batch.next_index - writer.next_index
                    _append(writer, encoder, batch)
                    if progress is not None:
                        progress(done)
            finally:
                batches.close()
        return writer.finish()


def encoder_attributes(encoder: FrozenEncoder) -> dict[str, Any]:
    """What a store says of the encoder that made it."""
    rows, columns = encoder.grid
    return {
        "encoder": encoder.name,
        "layer": encoder.layer,
        "grid": [rows, columns],
        "has_cls": encoder.token_count == rows * columns + 1,
        "preprocessing": encoder.preprocessing,
    }


def _batches(
    members: Iterable[Sample | Reject], encoder: FrozenEncoder, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[_Batch]:
    for _, group in groupby(members, key=lambda member: member.index // batch_size):
        batch = list(group)
        results = list(pool.map(partial(_prepare, encoder=encoder), batch))
        yield _Batch(
            next_index=batch[-1].index + 1,
            prepared=[result for result in results if isinstance(result, _Prepared)],
            rejects=[result for result in results if isinstance(result, RejectRow)],
        )


def _prepare(member: Sample | Reject, *, encoder: FrozenEncoder) -> _Prepared | RejectRow:
    """Decode and preprocess one member, or say why it cannot be used."""
    if isinstance(member, Reject):
        return _reject(member.index, member.key, member.reason)
    attributes = None if member.attributes is None else json.dumps(member.attributes, sort_keys=True)
    if not all(_is_text(text) for text in (member.key, *member.captions)):
        return _reject(member.index, member.key, "text is not Unicode: lone surrogates")
    try:
        image = decode_image(member)
    except UndecodableImage as error:
        return _reject(member.index, member.key, error.reason)
    row = SampleRow(
        index=member.index,
        key=member.key,
        captions=member.captions,
        width=image.width,
        height=image.height,
        image_sha256=hashlib.sha256(member.image).hexdigest(),
        attributes_json=attributes,
    )
    return _Prepared(row, encoder.preprocess(image))


def _append(writer: TokenStoreWriter, encoder: FrozenEncoder, batch: _Batch) -> None:
    if batch.prepared:
        with torch.inference_mode():
            tokens, pooled = encoder.encode(torch.stack([one.pixels_CHW for one in batch.prepared]))
        tokens_NTD, pooled_NP = _to_numpy(tokens), _to_numpy(pooled)
    else:
        tokens_NTD = np.empty((0, encoder.token_count, encoder.token_width), np.float32)
        pooled_NP = np.empty((0, encoder.pooled_width), np.float32)
    rows = [one.row for one in batch.prepared]
    writer.append(tokens_NTD, pooled_NP, rows, rejects=batch.rejects, next_index=batch.next_index)


def _to_numpy(values: Tensor) -> NDArray[np.float32]:
    return values.detach().to("cpu", torch.float32).numpy()


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _reject(index: int, key: str, reason: str) -> RejectRow:
    """A row for the rejects table, whose texts must be Unicode whatever the tar says."""
    return RejectRow(index, *(text.encode("utf-8", "backslashreplace").decode() for text in (key, reason)))
