"""What a learned translator is measured against: maps with a closed form, fitted on the training pairs.

    constant       the training mean of each target position
    nearest        the target of the training image with the closest source: squared distance of principal scores
    procrustes     one orthogonal matrix for all tokens, after centring each position: rotation without scale
    ridge_token    one matrix for all tokens, of any kind: linear in the source token at the same position
    ridge          linear in all source tokens of the image at once, penalty by leave-one-image-out
    ridge_ot       ridge, then the Gaussian optimal transport of single tokens, pooled over positions
    ridge_ot_flat  ridge, then the same for all tokens of an image flattened
`nearest` and the last three start from one decomposition of the source (projection.py), which projects where an image
has more source values than `inputs`. Tokens are read in chunks and predictions made in chunks, so only means, matrices
and the training scores are held, whatever the number of images. The run `true` needs no fit: the target stands in for
the prediction. `regression` is a trained run, not a baseline here.

Shapes: N images, T tokens, E channels of the source, D channels of the target, K principal scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from flowkit.errors import ConfigError
from flowkit.evaluation.projection import PrincipalInputs, fit_principal_inputs
from flowkit.evaluation.ridge import RidgeMap, RidgeProblem, ridge_problem
from flowkit.evaluation.token_ridge import fit_procrustes, fit_token_ridge
from flowkit.evaluation.tokens import (
    Array,
    Floats,
    Integers,
    Tokens,
    chunks,
    mean_over_images,
)
from flowkit.evaluation.transport import FLAT_LIMIT, Transported, fit_transport

BASELINES = ("constant", "nearest", "procrustes", "ridge_token", "ridge", "ridge_ot", "ridge_ot_flat")
TOKEN_TO_TOKEN = ("procrustes", "ridge_token")
INPUTS = 4096
"""Source values of an image from which on they are projected."""


class Baseline(Protocol):
    """A fitted map from source tokens to target tokens."""

    def predict(self, source: Tokens) -> Iterator[Floats]:
        """Yield target-shaped predictions [n, T, D] in float32, chunk by chunk."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same tokens for every image."""

    mean_TD: Array

    def predict(self, source: Tokens) -> Iterator[Floats]:
        """Yield the mean, once per image."""
        mean = self.mean_TD.astype(np.float32)
        for rows in chunks(len(source), mean.size):
            yield np.repeat(mean[None], rows.stop - rows.start, axis=0)


@dataclass(frozen=True)
class Nearest:
    """Looks the answer up among the training images."""

    inputs: PrincipalInputs
    target: Tokens

    def predict(self, source: Tokens) -> Iterator[Floats]:
        """Yield target tokens of the nearest training images."""
        rows = self.rows(source)
        values_per_image = int(np.prod(self.target.shape[1:]))
        for part in chunks(len(rows), values_per_image):
            yield np.asarray(self.target[rows[part]], np.float32)

    def rows(self, source: Tokens) -> Integers:
        """Row of the nearest training image for each image; the first of equals."""
        training = self.inputs.training_NK
        squares = np.einsum("nk,nk->n", training, training)
        found = [
            np.argmin(squares - 2 * (self.inputs.scores(source, rows) @ training.T), axis=1)
            for rows in chunks(len(source))
        ]
        return np.concatenate(found)


def fit_baselines(
    source: Tokens,
    target: Tokens,
    names: Sequence[str] = BASELINES,
    *,
    inputs: int = INPUTS,
    scratch: Path | None = None,
) -> dict[str, Baseline]:
    """Fit the named baselines on training pairs.

    `scratch` is a folder for what does not fit into memory; it must stay as long as the baselines are used. Raises
    `ConfigError`, before anything is fitted, for an unknown name and for a baseline that these tokens cannot have.
    """
    _demand_possible(source.shape, target.shape, names)
    fit = _Fit(source, target, inputs, scratch)
    return {name: fit.baseline(name) for name in names}


@dataclass
class _Fit:
    """What several baselines share, made when the first of them asks for it."""

    source: Tokens
    target: Tokens
    most_inputs: int
    scratch: Path | None

    @cached_property
    def source_mean_TE(self) -> Array:
        return mean_over_images(self.source)

    @cached_property
    def target_mean_TD(self) -> Array:
        return mean_over_images(self.target)

    @cached_property
    def inputs(self) -> PrincipalInputs:
        return fit_principal_inputs(self.source, self.source_mean_TE, inputs=self.most_inputs)

    @cached_property
    def problem(self) -> RidgeProblem:
        return ridge_problem(self.inputs, self.target, self.target_mean_TD, self.scratch)

    @cached_property
    def ridge(self) -> RidgeMap:
        return self.problem.solve(self.problem.best_penalty())

    def baseline(self, name: str) -> Baseline:
        match name:
            case "constant":
                return Constant(self.target_mean_TD)
            case "nearest":
                return Nearest(self.inputs, self.target)
            case "procrustes":
                return fit_procrustes(self.source, self.target, self.source_mean_TE, self.target_mean_TD)
            case "ridge_token":
                return fit_token_ridge(self.source, self.target, self.source_mean_TE, self.target_mean_TD)
            case "ridge":
                return self.ridge
            case _:
                return self._transported(flattened=name == "ridge_ot_flat")

    def _transported(self, *, flattened: bool) -> Transported:
        return fit_transport(self.problem, self.ridge, flattened=flattened)


def _demand_possible(source: tuple[int, ...], target: tuple[int, ...], names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise ConfigError(f"unknown baselines {unknown}: choose from {list(BASELINES)}")
    if source[1] != target[1] and (pairing := [name for name in TOKEN_TO_TOKEN if name in names]):
        raise ConfigError(
            f"{pairing[0]} maps token to token: source has {source[1]} tokens, target {target[1]}; "
            f"leave {' and '.join(pairing)} out of baselines"
        )
    images, values = target[0], target[1] * target[2]
    if "ridge_ot_flat" in names and not images > values <= FLAT_LIMIT:
        raise ConfigError(
            f"ridge_ot_flat moves all {target[1]} x {target[2]} = {values} target values of an image together, which "
            f"takes at most {FLAT_LIMIT} of them and more training images than that, here {images}; leave "
            "ridge_ot_flat out of baselines"
        )
