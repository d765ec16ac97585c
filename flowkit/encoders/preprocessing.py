"""From an image to the pixels of an encoder, in two ways that a store tells apart.

exact   PIL resize and crop through open_clip's own transform, bit for bit; what everybody else's features use
fast    uint8 antialiased resize, crop and normalisation in torch; up to 0.06 off in normalised units, at a
        fraction of the time

Both resize the shortest edge (or squash) and crop the centre. This module decodes nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import numpy as np
import PIL
import torch
import torchvision
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.v2 import functional as F

from flowkit.errors import EncoderError

Decoder = Literal["exact", "fast"]


class Preprocessing:
    """Both ways for one set of open_clip settings."""

    def __init__(self, settings: PreprocessCfg) -> None:
        """Prepare both transforms; settings are size, mean, std, interpolation and resize mode."""
        self.settings = settings
        *self._geometry, to_tensor, normalise = image_transform_v2(settings, is_train=False).transforms
        levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
        self._levels_C = normalise(to_tensor(Image.fromarray(levels)))[:, 0].numpy()
        height, width = settings.size if isinstance(settings.size, (tuple, list)) else (settings.size,) * 2
        self._crop = [height, width]
        self._resize = self._crop if settings.resize_mode == "squash" else [height]
        self._is_fast = settings.resize_mode == "squash" or (
            settings.resize_mode == "shortest" and height == width
        )
        mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def exact(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels [3, H, W], float32, of an image of any size.

        What open_clip's last two steps make of the 256 levels of a colour is looked up: the same bits in a third of
        their time.
        """
        for step in self._geometry:
            image = step(image)
        pixels_HWC = np.asarray(image)
        normalised_CHW = np.empty((3, *pixels_HWC.shape[:2]), np.float32)
        for colour, levels in enumerate(self._levels_C):
            np.take(levels, pixels_HWC[..., colour], out=normalised_CHW[colour], mode="clip")
        return torch.from_numpy(normalised_CHW)

    def fast(self, pixels_CHW: torch.Tensor) -> torch.Tensor:
        """Return the pixels [3, H, W], float32, of a decoded RGB image uint8 [3, h, w] of any size.

        Raises `EncoderError` for settings without a fast way: longest-edge resizing, oblong shortest-edge.
        """
        if not self._is_fast:
            raise EncoderError(
                f"no fast preprocessing for resize mode {self.settings.resize_mode!r} to {self.settings.size}; "
                "decode with 'exact'"
            )
        if pixels_CHW.dtype != torch.uint8 or pixels_CHW.ndim != 3 or len(pixels_CHW) != 3:
            raise ValueError(
                f"pixels are {pixels_CHW.dtype} {tuple(pixels_CHW.shape)}, expected uint8 [3, h, w]"
            )
        interpolation = F.InterpolationMode(self.settings.interpolation)
        resized = F.resize_image(pixels_CHW, self._resize, interpolation=interpolation, antialias=True)
        cropped = F.center_crop_image(resized, self._crop)
        return (
            cropped.to(torch.float32, memory_format=torch.contiguous_format)
            .mul_(self._scale)
            .add_(self._shift)
        )

    def declared(self, decoder: Decoder) -> dict[str, object]:
        """Return what a store says of one of the two ways, as JSON values."""
        if decoder not in ("exact", "fast"):
            raise EncoderError(f"decoder {decoder!r} is unknown; expected exact or fast")
        values = {key: list(value) if isinstance(value, tuple) else value
                  for key, value in asdict(self.settings).items()}  # fmt: skip
        if decoder == "exact":
            return values | {"decoder": "pillow", "version": PIL.__version__}
        return values | {"decoder": "torchvision", "version": torchvision.__version__.partition("+")[0]}
