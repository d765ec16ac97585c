"""Fast decoding: plain JPEGs through torchvision.io, everything else through the exact decoder.

Plain is what cameras and web sites write: 8 bits, three colours, one picture, at most `IMAGE_PIXELS_MAX` pixels.
Greyscale, CMYK, 12-bit and damaged JPEGs, PNG and WebP go through PIL, and so does whatever torchvision refuses: both
ways reject the same images for the same reasons. Orientation tags are ignored by both, as open_clip does.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from flowkit.shards.reader import IMAGE_PIXELS_MAX, Sample, decode_image

COLOURS = 3
_START, _FRAMES, _SCAN = 0xD8, (0xC0, 0xC1, 0xC2), 0xDA
_WITHOUT_LENGTH = (0x00, 0x01, 0xFF, *range(0xD0, 0xDA))


def decode_pixels(sample: Sample) -> Tensor:
    """Return the pixels uint8 [3, H, W] of a sample's image; raises `UndecodableImage` as `decode_image` does."""
    if is_plain_jpeg(sample.image):
        try:
            return decode_jpeg(
                torch.frombuffer(bytearray(sample.image), dtype=torch.uint8), ImageReadMode.RGB
            )
        except RuntimeError:  # the exact decoder knows whether the image is damaged, and how
            pass
    return pixels_of(decode_image(sample))


def pixels_of(image: Image.Image) -> Tensor:
    """Return the pixels uint8 [3, H, W] of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_plain_jpeg(content: bytes) -> bool:
    """Whether `content` has the header of an 8-bit colour JPEG of a size that may be decoded, and ends as one."""
    if not content.startswith(b"\xff\xd8\xff") or not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return False
    position, plain = 2, False
    while position + 10 <= len(content):
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        if content[position] != 0xFF or marker in _WITHOUT_LENGTH or length < 2:
            return False
        if marker == _SCAN:
            return plain
        if marker in _FRAMES:
            bits, colours = content[position + 4], content[position + 9]
            height = int.from_bytes(content[position + 5 : position + 7], "big")
            width = int.from_bytes(content[position + 7 : position + 9], "big")
            plain = bits == 8 and colours == COLOURS and 0 < width * height <= IMAGE_PIXELS_MAX
        position += 2 + length
    return False
