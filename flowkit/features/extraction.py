"""Extraction: one source tar through a frozen encoder into a token store.

Members are cut into model batches by their index in the tar, batch b being members [b B, (b + 1) B); a
rejected member leaves a gap in its batch and never moves another one. So the bytes of a store depend on the
tar, the encoder and B, not on where an earlier attempt was killed or on how many threads decode. Images are decoded
ahead of the model and records are written behind it, each in threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkit.encoders.contract import FrozenEncoder
from flowkit.features.decoding import DecodedBatch, decoded_batches
from flowkit.features.origin import CheckedTar
from flowkit.features.staging import WriteBehind
from flowkit.features.writer import Counts, TokenStoreWriter
from flowkit.shards.catalogue import TarDescription
from flowkit.shards.reader import list_samples

if TYPE_CHECKING:
    from flowkit.encoders.preprocessing import Decoder


def extract_tar(
    tar: Path,
    encoder: FrozenEncoder,
    work_dir: Path,
    *,
    batch_size: int,
    attributes: Mapping[str, Any],
    source: TarDescription | None = None,
    begin: Callable[[int, int], None] | None = None,
    progress: Callable[[int], None] | None = None,
    limit: int | None = None,
    views: int = 1,
    decode: Decoder = "exact",
    decode_threads: int = 1,
) -> Counts:
    """Write the complete store of `tar` into `work_dir`, going on from what a killed attempt left there.

    `attributes` are what only the caller knows, such as the digest of the weights; encoder, preprocessing, batch size
    and source tar are added here. `source` is what the caller's list of tars says of this one: it is checked while the
    model works instead of read beforehand, and nothing is kept that came of another one. `begin` is called once with
    the numbers of images that are done and of all, `progress` with the number of images just written. `limit` takes
    only the first samples of the tar; each has so many `views`, and every view is a record of its own. `decode` is
    "exact" (PIL, as open_clip) or "fast". Raises `ShardError` for a damaged or exchanged tar and `StoreError` if
    `work_dir` holds other work or the disk is full; a damaged sample is counted.
    """
    for name, value in (("batch_size", batch_size), ("decode_threads", decode_threads)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    checked = CheckedTar(tar, source)
    listing = list_samples(tar, views)
    stop = len(listing) if limit is None else min(limit * views, len(listing))
    writer = TokenStoreWriter(
        work_dir,
        token_shape=(encoder.token_count, encoder.token_width),
        pooled_width=encoder.pooled_width,
        attributes={
            "source": dict(checked.description),
            **attributes,
            **encoder_attributes(encoder, decode),
            "batch_size": batch_size,
            "limit": limit,
            "views": views,
        },
    )
    with writer, checked:
        if not writer.finished:
            checked.begin(writer)
        if begin is not None:
            begin(writer.next_index, stop)
        if not writer.finished:
            batches = decoded_batches(
                listing,
                encoder,
                start=writer.next_index,
                stop=stop,
                batch_size=batch_size,
                decode=decode,
                threads=decode_threads,
            )
            _write(batches, WriteBehind(writer, encoder, batch_size, progress), checked, writer)
        return writer.finish()


def encoder_attributes(encoder: FrozenEncoder, decode: Decoder = "exact") -> dict[str, Any]:
    """What a store says of the encoder that made it."""
    rows, columns = encoder.grid
    return {
        "encoder": encoder.name,
        "layer": encoder.layer,
        "arithmetic": encoder.arithmetic,
        "grid": [rows, columns],
        "has_cls": encoder.token_count == rows * columns + 1,
        "preprocessing": encoder.preprocessing_of(decode),
    }


def _write(
    batches: Generator[DecodedBatch, None, None],
    writes: WriteBehind,
    checked: CheckedTar,
    writer: TokenStoreWriter,
) -> None:
    with closing(batches), writes:
        for batch in batches:
            if not checked.is_sound(writer):
                break
            writes.add(batch)
        writes.drain()
    checked.finish(writer)
