"""Names of runs that are one training with several seeds: NAME and NAME_seed_1, NAME_seed_2, ..."""

from __future__ import annotations

import re

SEED_SUFFIX = re.compile(r"_seed_\d+$")


def without_seed(run: str) -> str:
    """Return what the runs of several seeds of one training have in common."""
    return SEED_SUFFIX.sub("", run)
