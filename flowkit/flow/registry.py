"""Find an objective, and the head that goes with it, by name.

The defects of the earlier recipe are imported only for a run that asks for them, and `OBJECTIVE_MODULES` says which
module an objective kind, a clock or a head needs, so an edit there concerns only those runs.
"""

from __future__ import annotations

from torch import nn

from flowkit.flow.objective import FlowObjective, Objective, ObjectiveConfig, RegressionObjective, ascending

OBJECTIVE_MODULES = {"earlier": "flowkit.flow.earlier"}
"""Modules beyond `flowkit.flow.objective` that a kind, clock or head of this name needs."""

HEADS = ("linear", "earlier")


def build_objective(config: ObjectiveConfig) -> Objective:
    """Return the objective that `config` describes."""
    if config.kind == "regression":
        return RegressionObjective(config)
    clock = ascending
    if config.clock == "earlier":
        from flowkit.flow.earlier import reversed_time

        clock = reversed_time
    if config.kind == "earlier":
        from flowkit.flow.earlier import EarlierObjective

        return EarlierObjective(config, clock)
    return FlowObjective(config, clock)


def build_head(name: str, *, width: int, target_width: int) -> nn.Module:
    """Return the output layer called `name`, zero at initialisation; raises `ValueError` for an unknown name."""
    if name == "linear":
        head = nn.Linear(width, target_width)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head
    if name == "earlier":
        from flowkit.flow.earlier import RankLimitedHead

        return RankLimitedHead(width, target_width)
    raise ValueError(f"head is {name!r}, expected one of {list(HEADS)}; choose one of these")
