"""Named samplers, and sampling that does not depend on the batch size.

A sampler is called `<solver>-<steps>`: euler-1, midpoint-2, heun-50; `direct-1` is the single evaluation of a
regression. The start noise of an image is a pure function of (seed, image id).

Shapes: B images, T tokens, E source width, C target width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flowkit.errors import ConfigError
from flowkit.flow.noise import keyed_normal
from flowkit.flow.solvers import SOLVERS
from flowkit.translator import Translator

DIRECT = "direct"


@dataclass(frozen=True)
class Sampler:
    """How a translator is sampled, and what that costs."""

    name: str
    solver: str
    steps: int
    nfe: int
    """Network evaluations per image without guidance."""


def parse_sampler(name: str) -> Sampler:
    """Return the sampler called `name`, for instance "heun-50"; raises `ConfigError` for anything else."""
    solver, _, steps = name.rpartition("-")
    known = solver in SOLVERS or name == f"{DIRECT}-1"
    if not known or not steps.isdecimal() or int(steps) < 1:
        raise ConfigError(
            f"sampler is {name!r}, expected <solver>-<steps> with a solver of {sorted(SOLVERS)} and at least one "
            f"step, or {DIRECT}-1; for instance euler-1 or heun-50"
        )
    count = int(steps)
    return Sampler(name, solver, count, 1 if solver == DIRECT else SOLVERS[solver].evaluations(count))


def resolve(sampler: Sampler, translator: Translator) -> Sampler:
    """Return the sampler that `translator` really runs: a regression is always evaluated once, directly.

    Raises `ConfigError` if a flow is asked for the direct estimate.
    """
    if translator.is_regression:
        return parse_sampler(f"{DIRECT}-1")
    if sampler.solver == DIRECT:
        raise ConfigError(
            f"sampler {sampler.name!r} belongs to a regression, this run is a flow; use euler-1 instead"
        )
    return sampler


def sample(
    translator: Translator,
    batches: Iterable[tuple[np.ndarray, Tensor]],
    sampler: Sampler,
    *,
    seed: int,
    guidance_scale: float = 1.0,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (image ids, tokens [B, T, C]) for every (image ids, source tokens [B, T, E]) in `batches`.

    Tokens are float32 at raw target scale, on the translator's device.
    """
    run = resolve(sampler, translator)
    shape_TC = (translator.config.target_tokens, translator.config.target_width)
    for ids, source_BTE in batches:
        white_BTC = None
        if not translator.is_regression:
            white_BTC = keyed_normal([(seed, int(image)) for image in ids], shape_TC, "cpu")
        tokens_BTC = translator.generate(
            source_BTE,
            num_inference_steps=run.steps,
            solver=run.solver,
            guidance_scale=guidance_scale,
            white_noise=white_BTC,
        )
        yield ids, tokens_BTC
