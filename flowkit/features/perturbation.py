"""Images changed so little that nobody would call them others: what an encoder makes of them is a ceiling in practice.

jpeg_75   stored as a JPEG of quality 75 (PIL's tables, colours at half the resolution) and decoded again
crop_95   a window of 95 % of width and height, rounded down, anywhere in the image; its place is drawn from a
          generator that is keyed by the sample's key, so it is the same on every run and machine
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from flowkit.shards.reader import UndecodableImage

JPEG_QUALITY = 75
CROP_PERCENT = 95


def jpeg_75(image: Image.Image, key: str) -> Image.Image:
    """Return what is left of an RGB image after it was a JPEG.

    Raises `UndecodableImage` if it has more than 65,500 pixels on a side, which no JPEG can have.
    """
    stored = io.BytesIO()
    try:
        image.save(stored, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
        stored.seek(0)
        with Image.open(stored, formats=["JPEG"]) as decoded:
            return decoded.convert("RGB")
    except (OSError, ValueError) as fault:
        raise UndecodableImage(
            f"image of {image.width} x {image.height} pixels cannot be stored as JPEG: {fault}"
        ) from fault


def crop_95(image: Image.Image, key: str) -> Image.Image:
    """Return the window of an RGB image that its key draws; a side of one pixel stays as it is."""
    width, height = (max(1, side * CROP_PERCENT // 100) for side in image.size)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
    across, down = np.random.Philox(key=seed).random_raw(2).tolist()
    left, top = across % (image.width - width + 1), down % (image.height - height + 1)
    return image.crop((left, top, left + width, top + height))
