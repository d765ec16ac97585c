"""A plan of N images as plain text that fits 110 columns, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flowkit.planning.advice import advice
from flowkit.planning.assumptions import assumptions
from flowkit.planning.caching import share_read
from flowkit.planning.fitting import most_stored, stored_in_all
from flowkit.planning.layout import Rows, bytes_text, hours_text, table_lines
from flowkit.planning.rates import Rate
from flowkit.planning.scale import LAYOUTS, ScalePlan
from flowkit.planning.scale_parts import Cost, QuotaUse

COLUMNS = 110
UNKNOWN = "-"
TERA = 1e12


def scale_lines(plan: ScalePlan) -> Iterator[str]:
    """Yield the lines of a plan; the recommendation comes first, what it rests on after it."""
    config, tars = plan.plan.config, plan.tars
    held = f"in {tars.count:,} tars of {tars.images:,}"
    yield f"{config.experiment} with {plan.images:,} images of {config.data.train}, {held}"
    yield f"{config.encoders.source.name} -> {config.encoders.target.name}, layout {config.data.layout}"
    for part in (_advice, _storage, _quotas, _reading, _extraction, _training, _jobs, _cost, _assumed):
        yield ""
        yield from part(plan)


def scale_json(plan: ScalePlan) -> dict[str, Any]:
    """Return everything that the text says, as numbers."""
    quotas = [
        asdict(use)
        | {
            "holds": {line.storage: use.holds(stored_in_all(plan, line)) for line in plan.stores},
            "holds_while_converting": {
                line.storage: use.holds(most_stored(plan, line)) for line in plan.stores
            },
        }
        for use in plan.quotas
    ]
    training = [
        asdict(line) | {"bytes_per_second": {one: line.bytes_per_second(one) for one in line.read_bytes}}
        for line in plan.training
    ]
    return {
        "schema": 1,
        "experiment": plan.plan.config.experiment,
        "images": plan.images,
        "tars": asdict(plan.tars),
        "stores": [asdict(line) for line in plan.stores],
        "quotas": quotas,
        "extraction": [asdict(line) for line in plan.extraction],
        "training": training,
        "jobs": plan.jobs,
        "order_bytes": plan.order_bytes,
        "read_limit": plan.read_limit,
        "assumed": [asdict(one) for one in assumptions(plan)],
        "advice": [asdict(one) for one in advice(plan)],
    }


def _advice(plan: ScalePlan) -> Iterator[str]:
    yield "recommended"
    for one in advice(plan):
        yield from _wrapped(f"{one.question} {one.answer}", "  ")
        for reason in one.reasons:
            yield from _wrapped(reason, "    - ")


def _storage(plan: ScalePlan) -> Iterator[str]:
    rows: Rows = [("storage", "an image", "stores", "files", "while converting", "")]
    for line in plan.stores:
        converting = bytes_text((line.stored + line.converting).bytes) if line.converting else UNKNOWN
        note = "" if line.is_offered else "not offered yet"
        amounts = bytes_text(line.image_bytes), bytes_text(line.stored.bytes), f"{line.stored.files:,}"
        rows.append((f"  {line.storage}", *amounts, converting, note))
    kept = plan.tars.kept
    rows.append(
        (
            "  tars",
            bytes_text(plan.tars.bytes / plan.tars.images),
            bytes_text(kept.bytes),
            f"{kept.files:,}",
            "",
            "",
        )
    )
    yield from table_lines(rows, left=(0, 5))
    yield "Class token, patches and pooled vector of both encoders, whatever layout is translated."


def _quotas(plan: ScalePlan) -> Iterator[str]:
    if not plan.quotas:
        yield "quotas: none known, the profile has no machine.yaml that names some"
        return
    storages = [line.storage for line in plan.stores]
    rows: Rows = [("quota", "bytes", "files", *(f"room, {one}" for one in storages))]
    rows += [_quota(use, storages, is_own=use is plan.own_quota) for use in plan.quotas]
    yield from table_lines(rows)
    yield "Room: images whose tokens and tars fit if nothing else is there. * holds data_root."
    yield from (f"{', '.join(use.quota.paths)}: {use.quota.note}" for use in plan.quotas if use.quota.note)


def _quota(use: QuotaUse, storages: list[str], *, is_own: bool) -> tuple[str, ...]:
    limit, files = use.quota.limit_bytes, use.quota.files
    room = [UNKNOWN if (images := use.images[one]) is None else f"{images:,}" for one in storages]
    name = f"{'*' if is_own else ' '} {', '.join(use.quota.paths)}"
    return name, UNKNOWN if limit is None else bytes_text(limit), f"{files:,}" if files else UNKNOWN, *room


def _reading(plan: ScalePlan) -> Iterator[str]:
    rows: Rows = [("reading an image", *(line.storage for line in plan.stores))]
    for layout in LAYOUTS:
        rows.append((f"  {layout}", *(bytes_text(line.read_bytes[layout]) for line in plan.stores)))
    yield from table_lines(rows)


def _extraction(plan: ScalePlan) -> Iterator[str]:
    rows: Rows = [("extraction", "precision", "TFLOP", "images/s", "GPU h", "SBU", _currency(plan))]
    for line in plan.extraction:
        work = f"{line.operations / TERA:.3g}"
        rows.append((f"  {line.encoder}", line.precision, work, _rate(line.rate), *_costs(line.cost)))
    yield from table_lines(rows)
    yield from _sources([(line.encoder, line.rate) for line in plan.extraction])


def _training(plan: ScalePlan) -> Iterator[str]:
    rows: Rows = [("training", "precision", "TFLOP", "samples/s", "epochs", "GPU h", "SBU", _currency(plan))]
    for line in plan.training:
        work, epochs = f"{line.operations / TERA:.3g}", f"{line.epochs:.3g}"
        rows.append((f"  {line.run}", line.precision, work, _rate(line.rate), epochs, *_costs(line.cost)))
    yield from table_lines(rows)
    yield from _sources([(line.run, line.rate) for line in plan.training])
    yield "TFLOP: of an image, or of a sample's forward and backward pass. Rates are those of one GPU."
    yield "fp32 runs without TF32, which flowkit allows nowhere."
    yield ""
    storages = [line.storage for line in plan.stores]
    speeds: Rows = [("read by each GPU", *storages)]
    wholes: Rows = [("read in all", *storages)]
    for line in plan.training:
        rates = (_speed(line.bytes_per_second(one)) for one in storages)
        whole = (bytes_text(line.read_bytes[one] * line.samples_seen) for one in storages)
        speeds.append((f"  {line.run}", *rates))
        wholes.append((f"  {line.run}", *whole))
    yield from table_lines(speeds)
    yield from table_lines(wholes)
    yield f"Pairs and order take {bytes_text(plan.order_bytes)} of memory in each training process."


def _jobs(plan: ScalePlan) -> Iterator[str]:
    jobs = ", ".join(f"{count:,} {stage}" for stage, count in plan.jobs.items())
    runs = len(plan.training)
    yield f"jobs: {jobs} of {plan.plan.shards_per_job} tars, {runs} train, and those that do not go by tars"
    for line, shape in zip(plan.extraction, plan.shapes, strict=False):
        if line.job_hours is not None:
            loading = f"{bytes_text(shape.weight_bytes)} of weights" if shape.weight_bytes else "weights"
            yield f"  a job of {line.encoder} takes {hours_text(line.job_hours)} h, reading {loading} among it"


def _cost(plan: ScalePlan) -> Iterator[str]:
    costs = [line.cost for line in plan.extraction] + [line.cost for line in plan.training]
    known = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    hours = hours_text(sum(known)) if len(known) == len(costs) else "not known how many"
    sbu = [cost.sbu for cost in costs if cost.sbu is not None]
    money = [cost.money for cost in costs if cost.money is not None]
    text = f"extraction and training together: {hours} GPU h"
    if len(sbu) == len(costs):
        text += f", {sum(sbu):,.0f} SBU"
    if len(money) == len(costs):
        text += f", {sum(money):,.0f} {plan.facts.prices.currency}"
    yield text
    if known and share_read(plan) < 1:
        unread = sum(cost.gpu_hours or 0.0 for cost in costs[: len(plan.extraction)]) * (1 - share_read(plan))
        yield f"of that, {hours_text(unread)} GPU h encode images that no run reads"
    price = plan.facts.prices.per_tb_year
    if price is not None:
        years = (f"{line.storage} {line.stored.bytes / TERA * price:,.0f}" for line in plan.stores)
        yield f"a year of the stores, in {plan.facts.prices.currency}: {', '.join(years)}"
    if not sbu and not money:
        yield "SBU and money: not known, machine.yaml names neither partitions that bill nor prices"


def _assumed(plan: ScalePlan) -> Iterator[str]:
    found = assumptions(plan)
    if not found:
        yield "Nothing is assumed."
        return
    yield "assumed"
    for one in found:
        yield from _wrapped(f"{one.what}: {one.value} ({one.why})", "  - ")


def _sources(rates: list[tuple[str, Rate]]) -> Iterator[str]:
    """Where rates come from; those of one source are said together."""
    by_source: dict[str, list[str]] = {}
    for name, rate in rates:
        source = f"{'measured' if rate.is_measured else 'assumed'}, {rate.source}"
        if rate.per_second is None:
            source = f"{rate.source} ({rate.why})"
        by_source.setdefault(source, []).append(name)
    for source, names in by_source.items():
        yield from _wrapped(f"rate of {', '.join(names)}: {source}", "")


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=" " * max(2, len(first)),
        break_on_hyphens=False,
    )


def _rate(rate: Rate) -> str:
    if rate.per_second is None:
        return UNKNOWN
    return f"{'' if rate.is_measured else '~'}{rate.per_second:,.0f}"


def _hours(hours: float | None) -> str:
    return UNKNOWN if hours is None else hours_text(hours)


def _speed(bytes_per_second: float | None) -> str:
    return UNKNOWN if bytes_per_second is None else f"{bytes_text(bytes_per_second)}/s"


def _currency(plan: ScalePlan) -> str:
    return plan.facts.prices.currency


def _costs(cost: Cost) -> tuple[str, str, str]:
    amounts = (UNKNOWN if one is None else f"{one:,.0f}" for one in (cost.sbu, cost.money))
    return _hours(cost.gpu_hours), *amounts  # type: ignore[return-value]
