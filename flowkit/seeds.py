"""What names of runs tell: NAME_seed_1, NAME_seed_2, ... are trainings of NAME with other seeds.

NAME_by_view is NAME, trained to translate each view of an object by itself.
"""

from __future__ import annotations

import re

SEED_SUFFIX = re.compile(r"_seed_\d+$")
BY_VIEW = "_by_view"


def without_seed(run: str) -> str:
    """Return what the runs of several seeds of one training have in common."""
    return SEED_SUFFIX.sub("", run)
