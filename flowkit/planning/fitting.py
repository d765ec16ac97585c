"""Whether the tokens of a plan of N images find room: as they are configured, and which way to keep them does.

While a store is converted its float16 tokens are there, too. Nothing deletes them by itself, so what is configured fits
if both do.
"""

from __future__ import annotations

from flowkit.planning.scale import ScalePlan
from flowkit.planning.scale_parts import StoreLine
from flowkit.planning.sizes import Amount


def stored_in_all(plan: ScalePlan, line: StoreLine) -> Amount:
    """Return what tokens, pairs and tars take in the end, once float16 tokens that were converted are deleted."""
    return line.stored + plan.tars.kept


def most_stored(plan: ScalePlan, line: StoreLine) -> Amount:
    """Return what they take while tokens are converted."""
    return stored_in_all(plan, line) + line.converting


def chosen_storage(plan: ScalePlan) -> StoreLine | None:
    """Return the most precise way to keep the tokens that fits the quota in the end; None if none does."""
    return next(
        (line for line in plan.stores if line.is_offered and holds(plan, stored_in_all(plan, line))), None
    )


def is_configured_held(plan: ScalePlan) -> bool:
    """Whether what is configured fits the quota all the time; true where the machine names none."""
    return holds(plan, most_stored(plan, plan.store(plan.storage)))


def holds(plan: ScalePlan, amount: Amount) -> bool:
    """Whether the quota of the data root has room for so much; true where the machine names none."""
    return plan.own_quota is None or plan.own_quota.holds(amount)
