"""How two sets of predictions for the same images differ: paired, so that what both share does not widen the interval.

    r2                            sum_n (e'_n - e_n) / sum_n s_n, e and e' the squared errors of image n, s its spread
                                  |B - mu|^2; bootstrap over images
    fd_*, mmd, cka, auc           v - v'; jackknife of the difference of both figures without each tenth of the images
Two intervals that overlap may still belong to figures whose difference is sure. Each side is one trained network and
one sample per image: what another training seed or other noise would change is not in the interval. Shapes: N images,
G tenths.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowkit.evaluation.bootstrap import Array, Estimate, Ratio, bootstrap, jackknife

ERROR, SPREAD = "error_image", "spread_image"
WITHOUT = "without_"
"""Prefix of the arrays that hold a figure without each tenth of the images."""


def differences(
    values: Mapping[str, float | None],
    arrays: Mapping[str, Array],
    other_values: Mapping[str, float | None],
    other_arrays: Mapping[str, Array],
    counts_RN: Array,
) -> dict[str, Estimate]:
    """Return ours less theirs by metric, for what both have; `counts_RN` are bootstrap draws of the images.

    Raises `ValueError` where the numbers of images differ.
    """
    if len(arrays[ERROR]) != len(other_arrays[ERROR]):
        raise ValueError(f"{len(arrays[ERROR])} and {len(other_arrays[ERROR])} images cannot be paired")
    better_N = np.asarray(other_arrays[ERROR], np.float64) - arrays[ERROR]
    found = bootstrap({"r2": Ratio(better_N, np.asarray(arrays[SPREAD], np.float64))}, counts_RN)
    for name in sorted(name for name in arrays if name.startswith(WITHOUT) and name in other_arrays):
        metric = name.removeprefix(WITHOUT)
        value, other = values.get(metric), other_values.get(metric)
        if value is not None and other is not None:
            without_G = np.asarray(arrays[name], np.float64) - other_arrays[name]
            found[metric] = jackknife(value - other, without_G, lowest=-np.inf)
    return found
