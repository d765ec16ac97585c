"""Pictures as far as they can still be decoded, for people who want to see what was refused.

Never for an encoder: a file that breaks off is drawn up to there, and the rest is grey.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageFile

from flowkit.shards.reader import (
    IMAGE_BYTES_MAX,
    IMAGE_EXTENSIONS,
    Listing,
    Sample,
    UndecodableImage,
    decode_image,
)


def salvage_picture(listing: Listing, index: int, key: str, stream: BinaryIO) -> Image.Image:
    """Return the picture of sample `index` of an open tar as RGB, whether or not the sample was refused.

    Raises `UndecodableImage`, whose reason is for readers of a report, if there is nothing to draw.
    """
    if index >= len(listing) or listing.groups[index][0] != key:
        raise UndecodableImage("the tar no longer holds this sample")
    _, group = listing.groups[index]
    pictures = [member for member in group if member.extension in IMAGE_EXTENSIONS and not member.fault]
    if not pictures:
        raise UndecodableImage("there is no picture that may be read")
    member = pictures[0]
    if not 0 < member.bytes <= IMAGE_BYTES_MAX:
        raise UndecodableImage(f"the picture has {member.bytes:,} bytes")
    content = os.pread(stream.fileno(), member.bytes, member.offset)
    with _truncated_pictures_allowed():
        return decode_image(Sample(index, key, content, (), None))


@contextmanager
def _truncated_pictures_allowed() -> Iterator[None]:
    """PIL asks a global; whatever it was, it is the same afterwards."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
