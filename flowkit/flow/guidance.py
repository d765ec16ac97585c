"""Classifier-free guidance: v = v_null + s (v_condition - v_null).

A scale s of 1 is the plain conditional velocity and costs one network evaluation; any other scale costs two. Guidance
only means something for a network whose condition was sometimes dropped in training.
"""

from __future__ import annotations

from torch import Tensor

from flowkit.flow.solvers import Velocity

CONDITIONAL = 1.0
"""The guidance scale that leaves the conditional velocity as it is."""


def evaluations_per_velocity(scale: float) -> int:
    """Return how many network evaluations one guided velocity costs."""
    return 1 if scale == CONDITIONAL else 2


def guided(conditional: Velocity, null: Velocity, scale: float) -> Velocity:
    """Return the velocity field guided with `scale`."""
    if scale == CONDITIONAL:
        return conditional

    def velocity(x_BTC: Tensor, t: float) -> Tensor:
        v_null_BTC = null(x_BTC, t)
        return v_null_BTC + scale * (conditional(x_BTC, t) - v_null_BTC)

    return velocity
