"""What a plan of N images recommends, each with the figures that decide it.

draws of a loaded sample       = bytes that a GPU asks for per second / bytes that it is given, rounded up
cache or recompute             caching.py
what fits                      fitting.py
tars of a job                  job_size.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flowkit.datasets import FolderDataset, HubDataset, SolidsDataset
from flowkit.planning.caching import compared, share_read
from flowkit.planning.fitting import chosen_storage, holds, is_configured_held, most_stored, stored_in_all
from flowkit.planning.job_size import job_size, slowest_encoder
from flowkit.planning.layout import bytes_text, hours_text
from flowkit.planning.scale import ScalePlan
from flowkit.planning.scale_parts import Cost, QuotaUse, StoreLine, TrainingLine
from flowkit.planning.sizes import Amount

FAR = 3
"""A number of tars per job that is so many times off is worth changing."""
MANY_TARS = 10_000
"""From there on Snakemake takes minutes to find out what is to run: it knows each tar by three files."""
MEMORY_SHARE = 0.5
WORTH_SAYING = 1.1
"""Times as fast in bf16."""


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
        *_room(plan),
        *_images_read(plan),
        _cache(plan, kept),
        _storage(plan, kept),
        *_precision(plan),
        *_reading(plan, kept or plan.stores[0]),
        _tars_of_a_job(plan),
        *_many(plan),
    ]


def _room(plan: ScalePlan) -> Iterator[Advice]:
    """Whether what is configured fits."""
    quota, line = plan.own_quota, plan.store(plan.storage)
    if quota is None:
        return
    question = f"does it fit as configured, {line.storage}?"
    reasons = [_beside_quota(plan, line, quota)]
    if line.converting:
        most = most_stored(plan, line)
        reasons.append(
            f"while converting it takes {_amount(most, quota)}: float16 tokens stay until somebody deletes them"
        )
    answer = "yes"
    if not holds(plan, stored_in_all(plan, line)):
        answer = "no"
    elif not is_configured_held(plan):
        answer = "not while converting: extract, convert and delete in parts, by first_shard and shards"
    yield Advice(question, answer, tuple(reasons))


def _images_read(plan: ScalePlan) -> Iterator[Advice]:
    """What nobody reads need not be extracted."""
    share = share_read(plan)
    if share == 1:
        return
    name, read = plan.plan.config.data.train, max(1, round(share * plan.images))
    tars = math.ceil(read / plan.tars.images) + plan.plan.config.data.validation_shards
    setting = f"datasets.{name}.images={read}"
    if isinstance(plan.dataset, HubDataset | FolderDataset):
        setting = f"datasets.{name}.shards={tars}, or a smaller samples_per_shard"
    elif isinstance(plan.dataset, SolidsDataset):
        setting = f"datasets.{name}.objects={math.ceil(read / plan.dataset.views)}"
    answer = f"no: training sees {read:,} of {plan.images:,} images; extract {read:,} ({setting}) or set train.epochs"
    longest = max(plan.training, key=lambda line: line.epochs)
    reasons = [f"{longest.run} makes {longest.epochs:.3g} passes, and no run makes more"]
    hours = _hours_of([line.cost for line in plan.extraction])
    if hours is not None:
        reasons.append(
            f"encoding the others takes {hours_text((1 - share) * hours)} GPU h that nothing is trained on"
        )
    yield Advice("are all images read?", answer, tuple(reasons))


def _cache(plan: ScalePlan, kept: StoreLine | None) -> Advice:
    line = kept or plan.store("int8 source")
    found, passes = compared(plan, line), sum(line.epochs for line in plan.training)
    reasons = [*_costs_of_an_image(plan), *_amounts(plan, line)]
    is_once = passes <= 1 and len(plan.training) == 1
    if kept is None:
        answer = "recompute, or take fewer images: the tokens fit no quota"
    elif is_once:
        answer = "cache for one pass: extract, train, delete"
    elif found.is_keeping_cheaper is None:
        answer = "cache; which takes less is not known"
    elif found.is_keeping_cheaper:
        answer = "cache"
    else:
        answer = "recomputing takes less, but is not built: cache"
    if kept is None or not (is_once or found.is_keeping_cheaper in (True, None)):
        reasons.append("training reads stores alone: tokens that are made while it runs are not built yet")
    return Advice("cache the tokens, or recompute them in every pass?", answer, tuple(reasons))


def _costs_of_an_image(plan: ScalePlan) -> Iterator[str]:
    """An image in the encoders beside an image in training: a sample of several views is several images."""
    least = min(plan.training, key=lambda line: line.operations / line.views)
    encoders = sum(line.operations for line in plan.extraction)
    training = least.operations / least.views
    yield (
        f"an image costs {encoders / training:.1f} times as much in the encoders as in a training step of {least.run}: "
        f"{encoders / 1e12:.3g} beside {training / 1e12:.3g} TFLOP"
    )
    rates = [line.rate.per_second for line in plan.extraction]
    if None in rates or least.rate.per_second is None:
        return
    encoding = sum(1 / rate for rate in rates if rate is not None)
    step = 1 / (least.rate.per_second * least.views)
    yield f"in time, on one GPU, {1000 * encoding:.3g} beside {1000 * step:.3g} ms"


def _amounts(plan: ScalePlan, line: StoreLine) -> Iterator[str]:
    found, passes = compared(plan, line), sum(one.epochs for one in plan.training)
    read = round(share_read(plan) * plan.images)
    waiting = found.waiting.gpu_hours
    text = f"keeping tokens takes {_cost_text(plan, found.keeping)} beside training: {read:,} images encoded once"
    if waiting:
        most = "at most " if found.is_most else ""
        text += f", and {most}{hours_text(waiting)} GPU h of waiting for the file system"
    yield text
    yield f"encoding anew takes {_cost_text(plan, found.anew)}: {passes:.3g} passes of all runs together"
    currency = plan.facts.prices.currency
    if found.is_keeping_cheaper is None:
        return
    if found.year is None:
        yield "decided by GPU hours: machine.yaml names no price of storage (prices.per_tb_year)"
        return
    year = f"a year of the stores costs {found.year:,.0f} {currency}"
    if found.in_money is None:
        yield f"{year}; decided by GPU hours, which have no price"
        return
    keeping, anew = found.in_money
    yield f"{year}, so keeping {keeping:,.0f} and encoding anew {anew:,.0f} {currency} in all"


def _cost_text(plan: ScalePlan, cost: Cost) -> str:
    if cost.gpu_hours is None:
        return "a time that is not known"
    text = f"{hours_text(cost.gpu_hours)} GPU h"
    if cost.sbu is not None:
        text += f", {cost.sbu:,.0f} SBU"
    return text if cost.money is None else f"{text}, {cost.money:,.0f} {plan.facts.prices.currency}"


def _hours_of(costs: list[Cost]) -> float | None:
    hours = [cost.gpu_hours for cost in costs]
    return None if None in hours else sum(one or 0.0 for one in hours)


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
    if kept.converting and not holds(plan, most_stored(plan, kept)):
        both = bytes_text(most_stored(plan, kept).bytes)
        reasons.append(
            f"float16 and int8 together ({both}) do not fit: extract, convert and delete in parts, by first_shard and "
            "shards"
        )
    if kept.storage != "fp16":
        reasons.append("measure what int8 costs first: every converted store names its error in the manifest")
    return Advice(question, kept.storage, tuple(reasons))


def _beside_quota(plan: ScalePlan, line: StoreLine, use: QuotaUse) -> str:
    whole = stored_in_all(plan, line)
    tars = f"; {bytes_text(plan.tars.kept.bytes)} of it are tars"
    is_much = plan.tars.kept.bytes > 0.01 * whole.bytes
    return f"{line.storage} takes {_amount(whole, use)}{tars if is_much else ''}"


def _amount(amount: Amount, use: QuotaUse) -> str:
    limit, files = use.quota.limit_bytes, use.quota.files
    of_bytes = "" if limit is None else f" of {bytes_text(limit)}"
    of_files = "" if files is None else f" of {files:,}"
    return f"{bytes_text(amount.bytes)}{of_bytes} and {amount.files:,}{of_files} files"


def _precision(plan: ScalePlan) -> Iterator[Advice]:
    """Where fp32 is much slower than bf16."""
    roles = ("source", "target")
    found = [
        (f"encoders.{role}", line.times_in_bf16, line.cost.gpu_hours)
        for role, line in zip(roles, plan.extraction, strict=False)
    ]
    found += [(f"train of {line.run}", line.times_in_bf16, line.cost.gpu_hours) for line in plan.training]
    reasons = [
        f"{where}: about {times:.3g} times as fast, {hours_text(hours / times)} instead of {hours_text(hours)} GPU h"
        for where, times, hours in found
        if times is not None and hours is not None and times >= WORTH_SAYING
    ]
    if reasons:
        reasons.append("bf16 makes other tokens and other weights, so compare a short run of each first")
        yield Advice("fp32?", "bf16 (precision) where its rounding does no harm", tuple(reasons))


def _reading(plan: ScalePlan, kept: StoreLine) -> Iterator[Advice]:
    """What to do about reading; runs of which the same is to be said are said together."""
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for line in plan.training:
        alike.setdefault(_draws(plan, line, kept), []).append(line.run)
    for (answer, reasons), runs in alike.items():
        yield Advice(f"noise draws for each loaded sample of {', '.join(runs)}?", answer, reasons)


def _draws(plan: ScalePlan, line: TrainingLine, kept: StoreLine) -> tuple[str, tuple[str, ...]]:
    asked, limit = line.bytes_per_second(kept.storage), plan.read_limit
    if asked is None:
        return "not known", ("the rate of training is not known",)
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
    of_job = min(plan.plan.shards_per_job, plan.tars.count)
    size, slowest = job_size(plan), slowest_encoder(plan)
    if size is None or slowest is None:
        return Advice("tars in a job?", f"{of_job}, as it is", ("the rate of an encoder is not known",))
    name, loading, per_tar = slowest
    keeps = of_job <= size.allowed and max(size.tars, of_job) <= FAR * min(size.tars, of_job)
    answer = f"{of_job}, as it is" if keeps else f"{size.tars} (shards_per_job of the profile, now {of_job})"
    hours = hours_text((loading + of_job * per_tar) / 3600)
    reasons = [
        f"{name} takes {per_tar:,.0f} s for a tar of {plan.tars.images:,} images and {loading:,.0f} s to be read, so "
        f"{hours} h for a job of {of_job}"
    ]
    if not keeps:
        reasons.append(f"bound by {size.bound}")
    return Advice("tars in a job?", answer, tuple(reasons))


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
