"""Named samplers, and sampling that depends neither on the batch size nor on the order of images.

    <solver>-<steps>[-shift<s>][-guidance<g>][-mean<K>]      euler-1, midpoint-2, heun-50, euler-4-shift3-mean8
    adaptive-<d>[-guidance<g>][-mean<K>]                     dopri5 with a tolerance of 10^-d
    direct-1                                                 the single evaluation of a regression

The start noise of an image is a pure function of (seed, key of the image, number of the draw). The mean of K samples
takes the draws 0 to K - 1. Shapes: B images, T tokens, E source width, C target width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowkit.errors import ConfigError
from flowkit.flow.adaptive import DEFAULT_TOLERANCE
from flowkit.flow.guidance import CONDITIONAL
from flowkit.flow.noise import keyed_normal
from flowkit.flow.objective import Transport
from flowkit.flow.solvers import ADAPTIVE, SOLVERS
from flowkit.translator import Translator

DIRECT = "direct"
_FACTOR = r"[0-9]+(?:[.][0-9]+)?"
_NAME = re.compile(
    rf"(?:(?P<solver>{'|'.join(SOLVERS)})-(?P<steps>[1-9][0-9]{{0,3}})(?:-shift(?P<shift>{_FACTOR}))?"
    rf"|{ADAPTIVE}-(?P<digits>[1-9]))"
    rf"(?:-guidance(?P<guidance>{_FACTOR}))?(?:-mean(?P<samples>[2-9]|[1-9][0-9]))?"
)


@dataclass(frozen=True)
class Sampler:
    """How a translator is sampled. `tolerance` is the adaptive solver's, `steps` and `shift` are the others'."""

    name: str
    solver: str
    steps: int = 1
    tolerance: float = DEFAULT_TOLERANCE
    shift: float = 1.0
    guidance: float | None = None
    """Scale of guidance; None is that of the run."""
    samples: int = 1
    """Samples of an image whose mean is the result."""

    @property
    def has_spread(self) -> bool:
        """Whether another draw of noise gives another sample, rather than another estimate of the mean."""
        return self.solver != DIRECT and self.samples == 1

    def transport(self, guidance_scale: float = CONDITIONAL) -> Transport:
        """Return how the objective is sampled; `guidance_scale` is that of the run."""
        scale = guidance_scale if self.guidance is None else self.guidance
        return Transport(self.solver, self.steps, scale, self.shift, self.tolerance)


DIRECT_SAMPLER = Sampler(f"{DIRECT}-1", DIRECT)


@dataclass(frozen=True)
class Samples:
    """Tokens of the images called `keys`, float32 at raw scale, and network evaluations, summed over the images."""

    keys: Sequence[str]
    tokens_BTC: Tensor
    evaluations: int


def parse_sampler(name: str) -> Sampler:
    """Return the sampler called `name`, for instance "heun-50"; raises `ConfigError` for anything else."""
    if name == DIRECT_SAMPLER.name:
        return DIRECT_SAMPLER
    found = _NAME.fullmatch(name)
    if found is None or float(found["shift"] or 1) == 0:
        raise ConfigError(
            f"sampler is {name!r}, expected <solver>-<steps> with a solver of {list(SOLVERS)} and 1 to 9999 steps, "
            f"{ADAPTIVE}-<d> with d from 1 to 9, or {DIRECT}-1, then, as wanted and in this order, -shift<s> of steps "
            "with s > 0, -guidance<g>, -mean<K> with K from 2 to 99; for instance euler-1 or heun-50"
        )
    guidance = None if found["guidance"] is None else float(found["guidance"])
    samples = int(found["samples"] or 1)
    if found["digits"] is not None:
        tolerance = float(f"1e-{found['digits']}")
        return Sampler(name, ADAPTIVE, tolerance=tolerance, guidance=guidance, samples=samples)
    shift = float(found["shift"] or 1)
    return Sampler(
        name, found["solver"], int(found["steps"]), shift=shift, guidance=guidance, samples=samples
    )


def resolve(sampler: Sampler, translator: Translator) -> Sampler:
    """Return the sampler that `translator` really runs: a regression is always evaluated once, directly.

    Raises `ConfigError` if a flow is asked for the direct estimate.
    """
    if translator.is_regression:
        return DIRECT_SAMPLER
    if sampler.solver == DIRECT:
        raise ConfigError(
            f"sampler {sampler.name!r} belongs to a regression, this run is a flow; use euler-1 instead"
        )
    return sampler


def sample(
    translator: Translator,
    batches: Iterable[tuple[Sequence[str], Tensor]],
    sampler: Sampler,
    *,
    seed: int,
    guidance_scale: float = CONDITIONAL,
    draw: int = 0,
) -> Iterator[Samples]:
    """Yield the samples of every (keys of images, source tokens [B, T, E]) in `batches`.

    `draw` is the number of the start noise, or of the first one where the mean of several samples is wanted.
    `guidance_scale` is for samplers that name none. Tokens are on the translator's device.
    """
    run = resolve(sampler, translator)
    transport = run.transport(guidance_scale)
    shape_TC = (translator.config.target_tokens, translator.config.target_width)

    def noise(keys: Sequence[str], number: int) -> Tensor:
        if run.solver == DIRECT:
            return torch.zeros(len(keys), *shape_TC)
        return keyed_normal([(seed, key, number) for key in keys], shape_TC, "cpu")

    for keys, source_BTE in batches:
        noises = (noise(keys, number) for number in range(draw, draw + run.samples))
        made = translator.translate(source_BTE, transport, noises)
        yield Samples(keys, made.tokens_BTC, made.evaluations)
