"""Pictures as small files, the same way wherever a page shows one."""

from __future__ import annotations

import io

from PIL import Image

from flowkit.errors import ReportError

THUMBNAIL_SIDE, SMALL_SIDE = 160, 80
THUMBNAIL_BYTES = 20_000
SMALL_BYTES = 4_000
"""What a PNG may take where a JPEG would be smaller: drawings with sharp edges are hurt by one."""


def encode_thumbnail(
    image: Image.Image, index: int, side: int = THUMBNAIL_SIDE
) -> tuple[bytes, str, tuple[int, int]]:
    """Return an image as a file of at most 20 KB, its suffix and its size: PNG where that is small, else JPEG."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    plain_png = _encoded(small, "PNG", optimize=1)
    for quality in (85, 75, 60, 40):
        jpeg = _encoded(small, "JPEG", quality=quality)
        if len(plain_png) <= max(len(jpeg), SMALL_BYTES) and len(plain_png) <= THUMBNAIL_BYTES:
            return plain_png, "png", small.size
        if len(jpeg) <= THUMBNAIL_BYTES:
            return jpeg, "jpg", small.size
    raise ReportError(
        f"the thumbnail of image {index} does not fit in {THUMBNAIL_BYTES} bytes, leave the image out"
    )


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
