"""Random numbers that belong to one image, and noise with the shape of the target.

Every image has its own generator, keyed by numbers and names such as (seed, step, place in the batch) in training and
(seed, sample key, number of the draw) in sampling. Noise therefore depends neither on the batch size nor on the order
of images nor on the number of processes nor on what was drawn before.

`StartNoise` turns white noise z into A z B', where A A' is the covariance over positions and B B' over channels of the
centred training targets. The separable form costs T^2 + C^2 numbers, so it works for 257 x 1024 tokens as well as for
17 x 96. Shapes: B images, T tokens, C channels, U uniform numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

START_NOISES = ("isotropic", "target_covariance")
RELATIVE_JITTER = 1e-6
"""Added to each covariance, relative to its mean variance, so that a constant channel keeps a Cholesky factor."""


Key = tuple[int | str, ...]
"""What a stream of random numbers belongs to; 1 and "1" are two things."""


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose numbers are a pure function of the whole numbers and names in `key`."""
    # names are quoted and escaped, so no two keys are written alike
    written = ",".join(json.dumps(part) if isinstance(part, str) else str(int(part)) for part in key)
    digest = hashlib.blake2b(written.encode(), digest_size=8).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def keyed_normal(keys: Sequence[Key], shape_TC: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Return standard normal numbers [len(keys), *shape_TC]; row i is a pure function of keys[i]."""
    rows = [
        torch.randn(shape_TC, generator=keyed_generator(*key, device=device), device=device) for key in keys
    ]
    return torch.stack(rows)


@dataclass(frozen=True)
class StartNoise:
    """The two factors of the start noise: A over positions and B over channels."""

    positions_TT: Tensor
    channels_CC: Tensor

    def color(self, white_BTC: Tensor) -> Tensor:
        """Give white noise the covariance of this start noise."""
        positions_TT, channels_CC = self.positions_TT.to(white_BTC), self.channels_CC.to(white_BTC)
        return torch.einsum("ts,bsc,dc->btd", positions_TT, white_BTC, channels_CC)

    def to(self, device: torch.device | str) -> StartNoise:
        """Return the same noise on `device`."""
        return StartNoise(self.positions_TT.to(device), self.channels_CC.to(device))


def isotropic(tokens: int, channels: int) -> StartNoise:
    """Return the start noise that leaves white noise as it is."""
    return StartNoise(torch.eye(tokens), torch.eye(channels))


def fit_target_covariance(covariance_TT: Tensor, covariance_CC: Tensor, variance: float) -> StartNoise:
    """Return the start noise of centred targets.

    `covariance_TT` is their covariance over positions averaged over channels, `covariance_CC` over channels averaged
    over positions, and `variance` the mean of both diagonals. The factors reproduce that mean variance.
    """
    scale = max(variance, torch.finfo(torch.float32).tiny)
    return StartNoise(
        _factor(covariance_TT.double() / scale).float(), _factor(covariance_CC.double()).float()
    )


def _factor(covariance: Tensor) -> Tensor:
    jitter = RELATIVE_JITTER * covariance.diagonal().mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance), dtype=covariance.dtype))
    return factor.contiguous()
