"""What became of the images of the data sets: how many were encoded, which were refused and why.

Read store by store from their attributes and tables of rejects; no token is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from flowkit.features.store import TokenStore
from flowkit.report.survey import ROLES, EncoderCount, RefusedCount
from flowkit.stages.paired import indexed_stores
from flowkit.stages.session import Spec

EXAMPLES = 24
MOST_REASONS = 40
OTHER_REASONS = "other reasons"


@dataclass(frozen=True)
class RefusedImage:
    """An image that an encoder, or both, refused: its place, and the whole reason by role."""

    dataset: str
    tar: str
    index: int
    key: str
    reasons: Mapping[str, str]


@dataclass
class Refusals:
    """Refused images of all data sets, counted by reason; of each reason some are kept as examples."""

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    kept: dict[tuple[str, str], list[RefusedImage]] = field(default_factory=dict)

    def add(self, image: RefusedImage) -> None:
        """Count in one image."""
        for role, reason in image.reasons.items():
            self.counts.setdefault((image.dataset, reason_class(reason)), Counter())[role] += 1
        first = next(iter(image.reasons.values()))
        alike = self.kept.setdefault((image.dataset, reason_class(first)), [])
        if len(alike) < EXAMPLES:
            alike.append(image)

    def table(self) -> list[RefusedCount]:
        """Return the counts, the most frequent reason of each data set first; rare ones of many are joined."""
        found: list[RefusedCount] = []
        for dataset in dict.fromkeys(name for name, _ in self.counts):
            mine = [(reason, counts) for (name, reason), counts in self.counts.items() if name == dataset]
            mine.sort(key=lambda one: (-one[1].total(), one[0]))
            rest = sum((counts for _, counts in mine[MOST_REASONS:]), Counter())
            shown = mine[:MOST_REASONS] + ([(OTHER_REASONS, rest)] if rest else [])
            found += [
                RefusedCount(dataset, reason, counts["source"], counts["target"]) for reason, counts in shown
            ]
        return found

    def examples(self) -> list[RefusedImage]:
        """Return at most `EXAMPLES` images, in turn one of each reason, then by data set and reason as counted."""
        in_turn = chain.from_iterable(zip_longest(*self.kept.values()))
        chosen = [image for image in in_turn if image is not None][:EXAMPLES]
        order = {group: number for number, group in enumerate(self.kept)}
        return sorted(
            chosen, key=lambda one: order[one.dataset, reason_class(next(iter(one.reasons.values())))]
        )


@dataclass(frozen=True)
class DatasetStores:
    """What the stores of a data set say: counts by encoder, images that one or both refused, images taken per tar."""

    encoders: list[EncoderCount]
    refused: int
    limit: int | None


def read_stores(spec: Spec, dataset: str, tars: Sequence[str], refusals: Refusals) -> DatasetStores:
    """Count the images of a data set and add its refused ones to `refusals`; one pair of stores is open at a time."""
    encoded, refused, images = Counter[str](), Counter[str](), 0
    first: dict[str, TokenStore] = {}
    sides = {role: indexed_stores(spec, dataset, spec.target[role]) for role in ROLES}
    for number, tar in enumerate(tars):
        stores = {role: side.open(number) for role, side in sides.items()}
        first = first or stores
        for role, store in stores.items():
            encoded[role] += len(store)
            refused[role] += int(store.attributes["counts"]["rejects"])
        for image in _refused_of(dataset, tar, stores):
            refusals.add(image)
            images += 1
    counts = [
        EncoderCount(role, str(store.attributes["encoder"]), store.storage, encoded[role], refused[role])
        for role, store in first.items()
    ]
    return DatasetStores(counts, images, first["source"].attributes.get("limit"))


def reason_class(reason: str) -> str:
    """Return what reasons of one sort share: the part before the first colon."""
    return reason.partition(":")[0]


def _refused_of(dataset: str, tar: str, stores: Mapping[str, TokenStore]) -> Iterator[RefusedImage]:
    """Yield the refused images of one tar in its order, those that both encoders refused once."""
    reasons: dict[tuple[int, str], dict[str, str]] = {}
    for role, store in stores.items():
        if store.attributes["counts"]["rejects"]:
            table = store.rejects
            for index, key, reason in zip(table["index"], table["key"], table["reason"], strict=True):
                reasons.setdefault((int(index), str(key)), {})[role] = str(reason)
    for (index, key), by_role in sorted(reasons.items()):
        yield RefusedImage(dataset, tar, index, key, by_role)
