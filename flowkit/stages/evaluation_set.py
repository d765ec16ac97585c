"""Which pairs of the evaluation set are sampled and scored: the first ones, as many as the configuration says."""

from __future__ import annotations

from flowkit.errors import ConfigError
from flowkit.features.loader import PairedTokens
from flowkit.stages.session import Spec


def evaluation_count(spec: Spec, pairs: PairedTokens) -> int:
    """Return how many pairs are sampled and scored; raises `ConfigError` if there are fewer.

    Every stage that reads the evaluation set asks, so a set that lost images is found out before any training ends.
    """
    count = int(spec.values["evaluation"]["images"])
    if len(pairs) < count:
        raise ConfigError(
            f"evaluation.images={count}: {spec.target['dataset']} has {len(pairs)} pairs, lower it or add images"
        )
    return count
