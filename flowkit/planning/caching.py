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
from flowkit.planning.scale_parts import Cost, StoreLine, TrainingLine


@dataclass(frozen=True)
class Comparison:
    """What keeping tokens takes beside training, what encoding anew takes, and a year of the stores in money.

    `waiting` is the part of `keeping` that trainings spend waiting for the file system; where `is_most`, it is the most
    that it can be, because the rate of a training is not known.
    """

    keeping: Cost
    waiting: Cost
    anew: Cost
    year: float | None
    is_most: bool

    @property
    def in_money(self) -> tuple[float, float] | None:
        """Keeping and encoding anew in money, None where the machine does not name all prices."""
        if self.keeping.money is None or self.anew.money is None or self.year is None:
            return None
        return self.keeping.money + self.year, self.anew.money

    @property
    def is_keeping_cheaper(self) -> bool | None:
        """By money where that is known, else by GPU hours; None where neither decides."""
        amounts = self.in_money or (self.keeping.gpu_hours, self.anew.gpu_hours)
        if amounts[0] is None or amounts[1] is None:
            return None
        is_cheaper = amounts[0] <= amounts[1]
        return None if self.is_most and not is_cheaper else is_cheaper


def share_read(plan: ScalePlan) -> float:
    """Return the share of the images that some run reads; runs share stores, so the largest share counts."""
    return min(1.0, max(line.epochs for line in plan.training))


def compared(plan: ScalePlan, kept: StoreLine) -> Comparison:
    """Return what both ways take, if tokens are kept as `kept`."""
    encoding = _sum(line.cost for line in plan.extraction)
    waiting = _sum(_waiting(plan, line, kept.storage) for line in plan.training)
    price, share = plan.facts.prices.per_tb_year, share_read(plan)
    return Comparison(
        _sum((_times(encoding, share), waiting)),
        waiting,
        _times(encoding, sum(line.epochs for line in plan.training)),
        None if price is None else share * kept.stored.bytes / 1e12 * price,
        any(line.cost.gpu_hours is None for line in plan.training),
    )


def _waiting(plan: ScalePlan, line: TrainingLine, storage: str) -> Cost:
    """Return what reading takes longer than training; all of it where nobody can tell how long training takes."""
    reading = line.read_bytes[storage] * line.samples_seen / plan.read_limit / 3600
    waiting = max(0.0, reading - (line.cost.gpu_hours or 0.0))
    return plan.cost_of(waiting, plan.training_ask(line.run))


def _times(cost: Cost, factor: float) -> Cost:
    return Cost(*(None if one is None else factor * one for one in (cost.gpu_hours, cost.sbu, cost.money)))


def _sum(costs: Iterable[Cost]) -> Cost:
    """Return all costs together; what one of them does not know is not known of the sum."""
    amounts = zip(*((one.gpu_hours, one.sbu, one.money) for one in costs), strict=True)
    return Cost(*(None if None in found else sum(one or 0.0 for one in found) for found in amounts))
