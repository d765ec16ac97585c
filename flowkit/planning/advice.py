"""What a plan of N images recommends, each with the figures that decide it.

extra GPU hours of recomputing = (passes of all trainings - 1) x GPU hours of extraction
draws of a loaded sample       = bytes that a GPU asks for per second / bytes that it is given, rounded up
tars of a job                  = 1.5 hours / time of a tar in the slower encoder
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flowkit.planning.layout import bytes_text, hours_text
from flowkit.planning.scale import ScalePlan
from flowkit.planning.scale_parts import QuotaUse, StoreLine, TrainingLine

HOURS_PER_JOB = 1.5
"""Long beside the minutes in which a job loads its encoder, short beside time limits."""
FAR = 3
"""A number of tars per job that is so many times off is worth changing."""
MANY_TARS = 10_000
"""From there on Snakemake takes minutes to find out what is to run: it knows each tar by three files."""
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Advice:
    """An answer to a question, and why."""

    question: str
    answer: str
    reasons: tuple[str, ...]


def advice(plan: ScalePlan) -> list[Advice]:
    """Return the recommendations of a plan."""
    kept = chosen_storage(plan)
    return [
        _cache(plan, kept),
        _storage(plan, kept),
        *_reading(plan, kept or plan.stores[0]),
        _tars_of_a_job(plan),
        *_many(plan),
    ]


def chosen_storage(plan: ScalePlan) -> StoreLine | None:
    """Return the most precise way to keep the tokens that fits the quota; None if none does."""
    return next((line for line in plan.stores if line.is_offered and _fits(plan, line)), None)


def _fits(plan: ScalePlan, line: StoreLine) -> bool:
    return plan.own_quota is None or plan.own_quota.holds(line.stored + plan.tars.kept)


def _cache(plan: ScalePlan, kept: StoreLine | None) -> Advice:
    extraction = sum(line.cost.gpu_hours for line in plan.extraction)
    training = sum(line.cost.gpu_hours for line in plan.training)
    passes = sum(line.epochs for line in plan.training)
    extra = max(0.0, passes - 1) * extraction
    work = sum(line.operations for line in plan.extraction) / min(line.operations for line in plan.training)
    reasons = [
        f"an image costs {work:.1f} times as much in the encoders as a sample in a step of training",
        f"{passes:.3g} passes in all: encoding anew in each takes {hours_text(extra)} GPU h more, beside "
        f"{hours_text(training)} of training",
    ]
    price = plan.facts.prices.per_tb_year
    if kept is not None and price is not None:
        year = kept.stored.bytes / 1e12 * price
        reasons.append(f"a year of these stores costs {year:,.0f} {plan.facts.prices.currency}")
    if kept is None:
        answer = "recompute, or take fewer images: the tokens fit no quota"
        reasons.append("training reads stores alone: tokens that are made while it runs are not built yet")
    elif extra == 0:
        answer = "cache for one pass: extract, train, delete"
    else:
        answer = "cache"
    return Advice("cache the tokens, or recompute them in every pass?", answer, tuple(reasons))


def _storage(plan: ScalePlan, kept: StoreLine | None) -> Advice:
    question, quota = "fp16 or int8?", plan.own_quota
    if quota is None:
        reason = "the profile names no quota that holds data_root, so nothing speaks against the exact tokens"
        return Advice(question, "fp16", (reason,))
    reasons = [_beside_quota(plan, line, quota) for line in plan.stores if line.is_offered or kept is None]
    if kept is None:
        best = plan.store("int8 source")
        room = quota.images[best.storage]
        return Advice(question, f"neither fits; {best.storage} holds {room or 0:,} images", tuple(reasons))
    if kept.converting and not quota.holds(kept.stored + kept.converting + plan.tars.kept):
        both = bytes_text((kept.stored + kept.converting).bytes)
        reasons.append(
            f"float16 and int8 together ({both}) do not fit: extract, convert and delete in parts, by first_shard and "
            "shards"
        )
    if kept.storage != "fp16":
        reasons.append("measure what int8 costs first: every converted store names its error in the manifest")
    return Advice(question, kept.storage, tuple(reasons))


def _beside_quota(plan: ScalePlan, line: StoreLine, use: QuotaUse) -> str:
    whole, limit, files = line.stored + plan.tars.kept, use.quota.limit_bytes, use.quota.files
    tars = (
        f", {bytes_text(plan.tars.kept.bytes)} of it tars"
        if plan.tars.kept.bytes > 0.01 * whole.bytes
        else ""
    )
    of_bytes = "" if limit is None else f" of {bytes_text(limit)}"
    of_files = "" if files is None else f" of {files:,}"
    return (
        f"{line.storage} takes {bytes_text(whole.bytes)}{of_bytes}{tars}, and {whole.files:,}{of_files} files"
    )


def _reading(plan: ScalePlan, kept: StoreLine) -> Iterator[Advice]:
    """What to do about reading; runs of which the same is to be said are said together."""
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for line in plan.training:
        alike.setdefault(_draws(plan, line, kept), []).append(line.run)
    for (answer, reasons), runs in alike.items():
        yield Advice(f"noise draws for each loaded sample of {', '.join(runs)}?", answer, reasons)


def _draws(plan: ScalePlan, line: TrainingLine, kept: StoreLine) -> tuple[str, tuple[str, ...]]:
    asked, limit = line.bytes_per_second(kept.storage), plan.read_limit
    draws = max(1, math.ceil(asked / limit))
    reasons = [
        f"{line.rate.per_second:,.0f} samples/s of {bytes_text(line.read_bytes[kept.storage])} are "
        f"{bytes_text(asked)}/s for a GPU, which is given {bytes_text(limit)}/s"
    ]
    if draws > 1:
        reasons += [
            f"with {draws} noises and times for each loaded sample it reads {bytes_text(asked / draws)}/s; with one, "
            f"reading holds training at {limit / asked:.0%} of its rate",
            "training has no setting for that yet",
        ]
    return str(draws), tuple(reasons)


def _tars_of_a_job(plan: ScalePlan) -> Advice:
    slowest = max(plan.extraction, key=lambda line: line.job_hours)
    of_job = min(plan.plan.shards_per_job, plan.tars.count)
    fitting = max(1, min(plan.tars.count, round(HOURS_PER_JOB / slowest.job_hours * of_job)))
    keeps = max(fitting, of_job) <= FAR * min(fitting, of_job)
    answer = f"{of_job}, as it is" if keeps else f"{fitting} (shards_per_job of the profile, now {of_job})"
    seconds = slowest.job_hours * 3600 / of_job
    reason = f"{slowest.encoder} takes {seconds:,.0f} s for a tar of {plan.tars.images:,} images, so "
    return Advice(
        "tars in a job?", answer, (reason + f"{hours_text(slowest.job_hours)} h for a job of {of_job}",)
    )


def _many(plan: ScalePlan) -> Iterator[Advice]:
    """What grows with the number of tars and images until it no longer fits a process."""
    reasons = []
    if plan.tars.count > MANY_TARS:
        reasons.append(
            f"{plan.tars.count:,} tars are {3 * plan.tars.count:,} results that Snakemake follows one by one; parsing "
            f"and a dry run grow with them"
        )
    memory = min(plan.training_memory(line.run) for line in plan.training)
    if plan.order_bytes > MEMORY_SHARE * memory:
        reasons.append(
            f"pairs and order take {bytes_text(plan.order_bytes)} in each training process, of {bytes_text(memory)} "
            "that it asks for"
        )
    if reasons:
        parts = max(
            math.ceil(plan.tars.count / MANY_TARS), math.ceil(plan.order_bytes / (MEMORY_SHARE * memory))
        )
        answer = f"no: {parts} data sets, extracted and trained on one after the other, or larger tars"
        yield Advice("one data set?", answer, tuple(reasons))
