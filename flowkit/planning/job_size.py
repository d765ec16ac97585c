"""How many tars make a job: long beside what it takes to load an encoder, short beside time limits.

seconds of a job  = bytes of the weights / reading rate + tars x seconds of a tar in the slower encoder
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowkit.datasets import HubDataset
from flowkit.planning.billing import MachineFacts
from flowkit.planning.scale import ScalePlan
from flowkit.slurm.settings import StageJob

HOURS_PER_JOB = 1.5
"""Long beside the minutes in which a job is queued and loads its encoder, short beside time limits."""
SHARE_OF_LIMIT = 0.5
"""Of its time limit a job may be planned to take; rates are estimates."""
FETCHED_PER_SECOND = 50e6
"""Bytes of a hub's tars that arrive in a second; assumed."""
MINUTES, MINUTES_PER_TAR, FETCHING_MINUTES = 60, 10, 480
"""Time limits of extraction and fetching where the profile sets none, as `flowkit.stages.data_jobs` estimates them."""


@dataclass(frozen=True)
class JobSize:
    """The most tars of a job, what bounds it, and the most by time limits alone."""

    tars: int
    bound: str
    allowed: int


def job_size(plan: ScalePlan) -> JobSize | None:
    """Return how many tars an extraction job should take; None where the rate of an encoder is not known."""
    found = slowest_encoder(plan)
    if found is None:
        return None
    _, loading, per_tar = found
    limits = {
        "a job has half of the tars at most, so that two can share them": math.ceil(plan.tars.count / 2),
        "the time limit of extraction": _within_limit(plan, loading, per_tar),
    }
    if isinstance(plan.dataset, HubDataset):
        seconds = SHARE_OF_LIMIT * 60 * _fetching_minutes(plan)
        limits["the time limit of fetching"] = int(seconds * FETCHED_PER_SECOND / plan.tars.bytes)
    allowed = max(1, min(limits.values()))
    wanted = round((HOURS_PER_JOB * 3600 - loading) / per_tar)
    bounds = {**limits, f"{HOURS_PER_JOB} h of work": wanted}
    bound = min(bounds, key=lambda name: bounds[name])
    return JobSize(max(1, bounds[bound]), bound, allowed)


def slowest_encoder(plan: ScalePlan) -> tuple[str, float, float] | None:
    """Return name, seconds of loading and seconds of a tar of the encoder whose jobs take longest."""
    found = []
    for encoder, line in zip(plan.encoders_used, plan.extraction, strict=True):
        if line.rate.per_second is None:
            return None
        found.append((line.encoder, plan.loading_seconds(encoder), plan.tars.images / line.rate.per_second))
    tars = min(plan.plan.shards_per_job, plan.tars.count)
    return max(found, key=lambda one: one[1] + tars * one[2])


def _within_limit(plan: ScalePlan, loading: float, per_tar: float) -> int:
    """Tars that take half of a job's time limit, which grows with them unless the profile sets it."""
    settings = plan.requests.stage("extract")
    longest = _longest_minutes(plan.facts, settings)
    minutes = min(settings.minutes or math.inf, longest)
    fixed = math.inf
    if minutes < math.inf:
        fixed = (SHARE_OF_LIMIT * 60 * minutes - loading) / per_tar
    if settings.minutes:
        return int(fixed)
    spare, more = SHARE_OF_LIMIT * 60 * MINUTES - loading, per_tar - SHARE_OF_LIMIT * 60 * MINUTES_PER_TAR
    growing = spare / more if more > 0 else math.inf
    return int(min(fixed, growing, plan.tars.count))


def _fetching_minutes(plan: ScalePlan) -> float:
    settings = plan.requests.stage("fetch")
    return min(settings.minutes or FETCHING_MINUTES, _longest_minutes(plan.facts, settings))


def _longest_minutes(facts: MachineFacts, settings: StageJob) -> float:
    partition = facts.partitions.get(settings.partition)
    hours = None if partition is None else partition.longest_hours
    return math.inf if hours is None else 60 * hours
