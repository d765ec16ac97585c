"""A second pass: images whose tokens are in a store go through their encoder once more, for tokens in float32.

Members of the tar are cut into the same batches as in extraction, by index and with the same gaps where members were
rejected, so on the same machine these are the very numbers that extraction rounded to float16. With a change of the
images, they are what the encoder makes of the changed ones.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowkit.encoders.contract import FrozenEncoder
from flowkit.errors import ShardError
from flowkit.features.decoding import Change, DecodedBatch, decoded_batches
from flowkit.shards.reader import list_samples

if TYPE_CHECKING:
    from flowkit.encoders.preprocessing import Decoder


def encode_again(
    tar: Path,
    encoder: FrozenEncoder,
    rows: pd.DataFrame,
    *,
    batch_size: int,
    limit: int | None = None,
    views: int = 1,
    decode: Decoder = "exact",
    decode_threads: int = 1,
    change: Change | None = None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield tokens [n, T, D] and pooled [n, P], float32 on the CPU, of the images in `rows`, batch by batch.

    `rows` are lines of the sample table (tables.py) of the tar's store, in the order of `index`; batch size, limit,
    views and decoder are those that the store was made with. Batches of which no image is in `rows` are not encoded.
    Raises `ShardError` that names the image if one cannot be used again or is not the one of the store.
    """
    wanted = rows["index"].to_numpy()
    if not len(wanted) or (np.diff(wanted) <= 0).any():
        raise ValueError(f"rows name the members {wanted}, expected at least one, in ascending order")
    listing = list_samples(tar, views)
    end = len(listing) if limit is None else min(limit * views, len(listing))
    last = int(wanted[-1])
    if last >= end:
        raise _unusable(tar, str(rows["key"].iloc[-1]), f"it was member {last}, the tar has {end} now")
    batches = decoded_batches(
        listing,
        encoder,
        start=int(wanted[0]) // batch_size * batch_size,
        stop=min((last // batch_size + 1) * batch_size, end),
        batch_size=batch_size,
        decode=decode,
        threads=decode_threads,
        change=change,
    )
    done = 0
    with closing(batches):
        for batch in batches:
            upto = int(np.searchsorted(wanted, batch.next_index))
            places = _places(tar, batch, rows.iloc[done:upto])
            done = upto
            if places:
                with torch.inference_mode():
                    tokens_NTD, pooled_NP = encoder.encode(batch.pixels_NCHW)
                    chosen = tokens_NTD[places].cpu(), pooled_NP[places].cpu()
            batch.release()
            if places:
                yield chosen


def _places(tar: Path, batch: DecodedBatch, rows: pd.DataFrame) -> list[int]:
    """Return where the images in `rows` are in the batch."""
    place_of = {row.index: place for place, row in enumerate(batch.rows)}
    reasons = {reject.index: reject.reason for reject in batch.rejects}
    places = []
    for index, key, digest in zip(rows["index"], rows["key"], rows["image_sha256"], strict=True):
        if (place := place_of.get(index)) is None:
            raise _unusable(tar, key, reasons.get(index, "it is not there any more"))
        if (batch.rows[place].key, batch.rows[place].image_sha256) != (key, digest):
            raise _unusable(tar, key, f"member {index} is another image now, {batch.rows[place].key}")
        places.append(place)
    return places


def _unusable(tar: Path, key: str, reason: str) -> ShardError:
    return ShardError(
        f"{tar}: image {key} cannot be encoded again ({reason}) though its tokens are in the store; "
        "fetch or write the tar again, or extract it anew"
    )
