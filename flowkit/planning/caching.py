"""Cache the tokens, or encode anew in every pass? Both amounts in the same unit, of the images that training reads.

images read      = images x the largest share that a run reads, min(1, epochs): runs share stores
keeping tokens   = images read through the encoders, once, and what waiting for the file system adds to trainings
encoding anew    = images x epochs of all runs through the encoders
money            = that of the GPU hours; keeping tokens also costs a year of the stores
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowkit.planning.scale import ScalePlan
from flowkit.planning.scale_parts import Cost, StoreLine


@dataclass(frozen=True)
class Comparison:
    """What keeping tokens takes beside training, what encoding anew takes, and a year of the stores in money.

    `waiting` is the part of `keeping` that trainings spend waiting for the file system.
    """

    keeping: Cost
    waiting: Cost
    anew: Cost
    year: float | None

    @property
    def in_money(self) -> tuple[float, float] | None:
        """Keeping and encoding anew in money, None where the machine does not name all prices."""
        if self.keeping.money is None or self.anew.money is None or self.year is None:
            return None
        return self.keeping.money + self.year, self.anew.money

    @property
    def is_keeping_cheaper(self) -> bool | None:
        """By money where that is known, else by GPU hours; None where neither is."""
        if self.in_money is not None:
            return self.in_money[0] <= self.in_money[1]
        if self.keeping.gpu_hours is None or self.anew.gpu_hours is None:
            return None
        return self.keeping.gpu_hours <= self.anew.gpu_hours


def share_read(plan: ScalePlan) -> float:
    """Return the share of the images that some run reads; runs share stores, so the largest share counts."""
    return min(1.0, max(line.epochs for line in plan.training))


def compared(plan: ScalePlan, kept: StoreLine) -> Comparison:
    """Return what both ways take, if tokens are kept as `kept`."""
    encoding = _sum(line.cost for line in plan.extraction)
    waiting = _sum(
        _times(line.cost, slowdown(plan, line.bytes_per_second(kept.storage)) - 1) for line in plan.training
    )
    price, share = plan.facts.prices.per_tb_year, share_read(plan)
    return Comparison(
        _sum((_times(encoding, share), waiting)),
        waiting,
        _times(encoding, sum(line.epochs for line in plan.training)),
        None if price is None else share * kept.stored.bytes / 1e12 * price,
    )


def slowdown(plan: ScalePlan, bytes_per_second: float | None) -> float:
    """Return how many times as long a training takes that has to wait for what it reads; 1 where nobody can tell."""
    return max(1.0, (bytes_per_second or 0.0) / plan.read_limit)


def _times(cost: Cost, factor: float) -> Cost:
    return Cost(*(None if one is None else factor * one for one in (cost.gpu_hours, cost.sbu, cost.money)))


def _sum(costs: Iterable[Cost]) -> Cost:
    """Return all costs together; what one of them does not know is not known of the sum."""
    amounts = zip(*((one.gpu_hours, one.sbu, one.money) for one in costs), strict=True)
    return Cost(*(None if None in found else sum(one or 0.0 for one in found) for found in amounts))
