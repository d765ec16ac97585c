"""What the figures of a plan of N images rest on beside its configuration, each with the reason for its value."""

from __future__ import annotations

from collections.abc import Iterator

from flowkit.datasets import FolderDataset, HubDataset
from flowkit.planning.job_size import FETCHED_PER_SECOND
from flowkit.planning.rates import Rate
from flowkit.planning.scale import IMAGE_BYTES, IMAGES_PER_TAR, READ_GB_PER_S, ScalePlan
from flowkit.planning.scale_parts import Assumed


def assumptions(plan: ScalePlan) -> list[Assumed]:
    """Return what nobody measured or configured."""
    return list(dict.fromkeys(_assumed(plan)))


def _assumed(plan: ScalePlan) -> Iterator[Assumed]:
    if plan.images_per_shard is None:
        why = "others count so in BLIP3o shards; samples_per_shard sets it"
        yield Assumed("images in a tar", f"{IMAGES_PER_TAR:,}", why)
    if not plan.listed and isinstance(plan.dataset, HubDataset | FolderDataset):
        why = "a JPEG of 640 x 480 pixels; no list of tars is here"
        yield Assumed("bytes of an image", f"{IMAGE_BYTES:,}", why)
    if isinstance(plan.dataset, HubDataset):
        yield Assumed("fetching", f"{FETCHED_PER_SECOND / 1e6:.0f} MB/s", "bounds the tars of a job alone")
    yield from _cards(plan)
    rates: list[tuple[str, Rate]] = [("rate of encoders", line.rate) for line in plan.extraction]
    for what, rate in rates + [("rate of training", line.rate) for line in plan.training]:
        if not rate.is_measured and rate.per_second is not None:
            yield Assumed(what, rate.source, rate.why)
    if plan.facts.read_gb_per_s is None:
        why = "usual of parallel file systems; read_gb_per_s in machine.yaml sets it"
        yield Assumed("reading", f"{READ_GB_PER_S:g} GB/s for each GPU", why)


def _cards(plan: ScalePlan) -> Iterator[Assumed]:
    """The data sheets' rates that were taken because the machine gives none."""
    asked = [("extraction", line.precision, plan.extraction_ask) for line in plan.extraction]
    asked += [("training", line.precision, plan.training_ask(line.run)) for line in plan.training]
    for what, precision, ask in asked:
        card = plan.card(ask)
        if why := card.assumption(precision):
            value = f"{card.name}, {card.peak(precision):g} TFLOP/s in {precision}"
            yield Assumed(f"GPU of {what}", value, why)
