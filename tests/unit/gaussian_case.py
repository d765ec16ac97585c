"""A translation whose flow is known in closed form: x_1 = c A + b + e with Gaussian c and e.

With A = diag(a) V', cov e = V diag(s^2) V' and start noise of covariance 1,

    E[x_1 | x_t, c] = mu + t S (t^2 S + (1 - t)^2)^-1 (x_t - t mu)        mu = c A + b,  S = cov e
    x_1 = mu + S^1/2 x_0                                                  where the flow carries x_0

Tokens are independent of each other. Shapes: B images, T tokens, C channels of source and target.
"""

from __future__ import annotations

from dataclasses import replace

import paired_material
import torch
from torch import Tensor, nn

from flowkit.evaluation.moments import Moments
from flowkit.flow.noise import StartNoise, isotropic
from flowkit.flow.objective import ObjectiveConfig
from flowkit.flow.scale import FeatureScale
from flowkit.translator import Statistics, Translator

TOKENS, CHANNELS = 2, 6
FLOW = replace(paired_material.FLOW, start_noise="isotropic", condition_dropout=0.1)
MODEL = replace(
    paired_material.MODEL,
    source_tokens=TOKENS,
    target_tokens=TOKENS,
    source_width=CHANNELS,
    target_width=CHANNELS,
    grid=(1, 1),
)


class Gaussian(nn.Module):
    """The exact clean estimate, in the place of a network. A dropped condition has the mean b."""

    basis_CC: Tensor
    signal_C: Tensor
    spread_C: Tensor
    offset_C: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32, smallest_spread: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        square = torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)
        values = {
            "basis_CC": torch.linalg.qr(square).Q,
            "signal_C": torch.linspace(0.6, 1.6, CHANNELS, dtype=torch.float64),
            "spread_C": torch.linspace(smallest_spread, 0.8, CHANNELS, dtype=torch.float64),
            "offset_C": torch.linspace(-1, 1, CHANNELS, dtype=torch.float64),
        }
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.to(dtype), requires_grad=False))

    def encode_condition(self, source_BTC: Tensor, keep_B: Tensor | None = None) -> Tensor:
        """Return mu."""
        mean_BTC = source_BTC * self.signal_C @ self.basis_CC.T + self.offset_C
        if keep_B is None:
            return mean_BTC
        return torch.where(keep_B[:, None, None], mean_BTC, self.offset_C)

    def forward(self, seen_BTC: Tensor, t_B: Tensor, mean_BTC: Tensor) -> Tensor:
        """Return E[x_1 | x_t, c] from t x_t, which a time-gated network sees."""
        t_B = t_B.reshape(-1, 1, 1)
        x_BTC = torch.where(t_B > 0, seen_BTC / t_B, 0.0)
        variance_C = self.spread_C.square()
        gain_BTC = t_B * variance_C / (t_B.square() * variance_C + (1 - t_B).square())
        return mean_BTC + (x_BTC - t_B * mean_BTC) @ self.basis_CC * gain_BTC @ self.basis_CC.T

    def carried(self, mean_BTC: Tensor, x_0_BTC: Tensor) -> Tensor:
        """Return where the exact flow carries `x_0_BTC`."""
        return mean_BTC + x_0_BTC @ self.basis_CC * self.spread_C @ self.basis_CC.T

    def draw(self, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return conditions and targets [B, T, C]."""
        generator = torch.Generator().manual_seed(seed)
        source_BTC, white_BTC = torch.randn(2, images, TOKENS, CHANNELS, generator=generator)
        return source_BTC, self.carried(self.encode_condition(source_BTC), white_BTC)

    def moments(self, *, spread: bool) -> Moments:
        """Return the moments of targets, or of their conditional means, in closed form about the offset."""
        variance_C = self.signal_C.square() + (self.spread_C.square() if spread else 0)
        covariance_CC = (self.basis_CC * variance_C @ self.basis_CC.T).double()
        return Moments(1, torch.zeros(CHANNELS).double().numpy(), covariance_CC.numpy())

    @property
    def r2_of_mean(self) -> float:
        """Share of the targets' variance that their conditional mean explains."""
        signal, noise = self.signal_C.square().sum(), self.spread_C.square().sum()
        return float(signal / (signal + noise))

    @property
    def distance_of_mean(self) -> float:
        """Squared Frechet distance of the conditional means to the targets."""
        total_C = (self.signal_C.square() + self.spread_C.square()).sqrt()
        return float((total_C - self.signal_C).square().sum())


def translator(
    network: Gaussian, objective: ObjectiveConfig = FLOW, noise: StartNoise | None = None
) -> Translator:
    """Return a translator with the exact network at raw scale."""
    scale = FeatureScale(torch.zeros(CHANNELS), torch.ones(CHANNELS))
    noise = isotropic(TOKENS, CHANNELS) if noise is None else noise
    statistics = Statistics(scale, scale, noise, torch.zeros(TOKENS, CHANNELS))
    return Translator(network, MODEL, objective, "none", statistics)
