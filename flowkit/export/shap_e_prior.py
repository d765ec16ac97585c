"""Shap-E's prior (diffusers, openai/shap-e-img2img) as a judge of features: how far apart are its outputs?

The output is the prior's one-step estimate of the clean latents, without guidance, clipped as its scheduler clips, at
three times of the schedule. The first input is noise alone, as where sampling begins; each later one is the estimate
under the true features with noise on it,
    x = sqrt(a_t) estimate + sqrt(1 - a_t) noise,
so both sets of features are judged at the same noisy latents. Noise and times are functions of the image's key alone.
What is said to true features is the same for every sampler; it is kept in memory for as many images as fit into
`KEPT_BYTES`. Weights are read from disk. diffusers is needed for this and nothing else.
Shapes: N images, T patches, D channels, L latents of width W.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.errors import ConfigError, StoreError
from flowkit.export.prior_files import NO_DIFFUSERS, prior_files, prior_folder
from flowkit.flow.noise import keyed_normal

TIMES = (1.0, 0.5, 0.125)
"""As shares of the schedule, from pure noise on."""
KEPT_BYTES = 2**30
"""Estimates of an image take 12 MiB in Shap-E's own prior: 85 of at most 200 judged images are kept."""


class ShapEPrior:
    """The prior, its schedule, and how far apart its outputs are."""

    def __init__(self, consumer: str, device: str) -> None:
        prior_files(consumer)
        model, scheduler = _diffusers()
        folder = prior_folder(consumer)
        self._device = device
        self._prior = model.from_pretrained(
            folder / "prior", local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
        self._prior.eval().to(device)
        schedule = scheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        self._kept_T: NDArray[np.float64] = schedule.alphas_cumprod.double().numpy()
        self._latents = (self._prior.config.num_embeddings, self._prior.config.embedding_dim)
        self._channels = self._prior.config.embedding_proj_dim
        self._clip = schedule.config.clip_sample_range if schedule.config.clip_sample else None
        self._kept: dict[bytes, torch.Tensor] = {}

    @torch.no_grad()
    def distances(
        self, true_NTD: NDArray[np.floating], other_NTD: NDArray[np.floating], keys: Sequence[str]
    ) -> NDArray[np.float64]:
        """Return the Euclidean distances [N] of the outputs under two sets of features on the raw scale.

        Raises `StoreError` if their width is not the one that the prior was trained on.
        """
        true_XNLW = self._true_estimates(true_NTD, keys)
        other = self._condition(other_NTD)
        squares_N = torch.zeros(len(keys), dtype=torch.float64)
        for number, (step, kept, noise_NLW) in enumerate(self._inputs(keys)):
            before_NLW: torch.Tensor | float = true_XNLW[number - 1] if number else 0.0
            estimate_NLW = self._estimate(_noisy(before_NLW, kept, noise_NLW), step, other)
            squares_N += (true_XNLW[number] - estimate_NLW).double().square().sum((1, 2)).cpu()
        return squares_N.sqrt().numpy()

    def _true_estimates(self, true_NTD: NDArray[np.floating], keys: Sequence[str]) -> torch.Tensor:
        """Return the estimates [times, N, L, W] under true features, remembered if all of them are."""
        names = [_name(key, tokens) for key, tokens in zip(keys, true_NTD, strict=True)]
        if all(name in self._kept for name in names):
            return torch.stack([self._kept[name] for name in names], dim=1).to(self._device)
        true = self._condition(true_NTD)
        made: list[torch.Tensor] = []
        for number, (step, kept, noise_NLW) in enumerate(self._inputs(keys)):
            before_NLW: torch.Tensor | float = made[-1] if number else 0.0
            made.append(self._estimate(_noisy(before_NLW, kept, noise_NLW), step, true))
        made_XNLW = torch.stack(made)
        for row, name in enumerate(names):
            of_image = made_XNLW[:, row].cpu()
            if (len(self._kept) + 1) * of_image.nbytes <= KEPT_BYTES:
                self._kept[name] = of_image.clone()
        return made_XNLW

    def _inputs(self, keys: Sequence[str]) -> Iterator[tuple[int, float, torch.Tensor]]:
        """Yield time, share of the signal's variance and noise; there is no signal in the first."""
        for number, time in enumerate(TIMES):
            step = round(time * (len(self._kept_T) - 1))
            noise = keyed_normal([("downstream", key, number) for key in keys], self._latents, "cpu")
            yield step, float(self._kept_T[step]) if number else 0.0, noise.to(self._device)

    def _estimate(self, latents_NLW: torch.Tensor, step: int, condition_NTD: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._prior(
            latents_NLW, timestep=step, proj_embedding=condition_NTD
        ).predicted_image_embedding
        estimate = made[..., : self._latents[1]]  # behind it lies the variance
        return estimate if self._clip is None else estimate.clamp(-self._clip, self._clip)

    def _condition(self, tokens_NTD: NDArray[np.floating]) -> torch.Tensor:
        if tokens_NTD.shape[2] != self._channels:
            raise StoreError(
                f"patches have {tokens_NTD.shape[2]} channels, this prior takes {self._channels}: it was trained on "
                "another encoder; name another evaluation.consumer or none"
            )
        return torch.from_numpy(np.ascontiguousarray(tokens_NTD, np.float32)).to(self._device)


def _noisy(estimate_NLW: torch.Tensor | float, kept: float, noise_NLW: torch.Tensor) -> torch.Tensor:
    return kept**0.5 * estimate_NLW + (1 - kept) ** 0.5 * noise_NLW


def _name(key: str, tokens_TD: NDArray[np.floating]) -> bytes:
    """What the estimates of an image belong to: its key, which is its noise, and its features."""
    return hashlib.blake2b(np.ascontiguousarray(tokens_TD).tobytes() + key.encode()).digest()


def _diffusers() -> tuple[Any, Any]:
    try:
        from diffusers import HeunDiscreteScheduler, PriorTransformer
    except ImportError as error:
        raise ConfigError(f"{NO_DIFFUSERS} ({error})") from error
    return PriorTransformer, HeunDiscreteScheduler
