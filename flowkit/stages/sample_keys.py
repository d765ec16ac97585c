"""Whether samples are those of the images that the configuration names, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.errors import StoreError
from flowkit.features.samples import Samples


def demand_same_keys(expected: Sequence[str], samples: Samples, sampler: str) -> None:
    """Raise `StoreError` naming the first key that differs, unless samples are those of the first images, in order.

    Samples that were refused are gaps between the others.
    """
    count = len(samples) + len(samples.refused_keys)
    if count > len(expected):
        raise StoreError(
            f"samples of {sampler}: {count} images, expected {len(expected)}; sample the run again"
        )
    for index, found in zip(samples.indices, samples.keys, strict=True):
        if found != expected[index]:
            raise StoreError(
                f"samples of {sampler}: place {index} holds image {found!r}, expected {expected[index]!r}; "
                "sample the run again"
            )


def demand_all_keys(expected: Sequence[str], samples: Samples, sampler: str) -> None:
    """Raise `StoreError` unless samples are those of all images, in order; refused ones count as there."""
    demand_same_keys(expected, samples, sampler)
    if (count := len(samples) + len(samples.refused_keys)) != len(expected):
        raise StoreError(
            f"samples of {sampler}: {count} images, expected {len(expected)}; sample the run again"
        )
