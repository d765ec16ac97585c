"""Channels and norms of the tokens of one encoder, over evenly spaced images, as the survey writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowkit.evaluation.survey import (
    ChannelFigures,
    ChannelSums,
    bin_edges,
    known,
    rounded,
    token_norms,
)
from flowkit.evaluation.tokens import Array, evenly_spaced, token_chunks
from flowkit.features.samples import by_view
from flowkit.progress import Progress
from flowkit.report.survey import (
    LARGEST_PERCENT,
    USES,
    Channel,
    ChannelSummary,
    NormSummary,
    channel_array,
    channels_in,
    norm_array,
)
from flowkit.stages.matches import Side

SAMPLE_IMAGES = 2000
"""Images whose tokens are looked at, of each use: more would move no figure that a reader can see."""
TOP_CHANNELS = 5
KINDS = {"cls_patches": ("class token", "patches"), "patches": ("patches",), "pooled": ("pooled vector",)}
"""The sorts of tokens of each layout; a class token is the first one."""
LOW, HIGH = 0.01, 0.99
"""Quantiles that stand beside the median of norms."""

Looks = Mapping[tuple[str, str], "Look"]
"""What was seen, by role and use."""


@dataclass(frozen=True)
class Look:
    """What was seen of the tokens of one role and use; norms by kind."""

    images: int
    of_images: int
    figures: ChannelFigures
    norms: Mapping[str, Array]


def look_at(side: Side, role: str, layout: str) -> Look:
    """Read the tokens of evenly spaced images in chunks."""
    chosen = evenly_spaced(side.images, SAMPLE_IMAGES)
    tokens = side.pairs.source(chosen) if role == "source" else side.pairs.target(chosen)
    sums = ChannelSums()
    norms: dict[str, list[Array]] = {kind: [] for kind in KINDS[layout]}
    progress = Progress(f"look at {role} tokens", len(chosen), "image")
    for rows in token_chunks(tokens):
        tokens_NTD = by_view(tokens[rows], side.pairs.views)
        sums.add(tokens_NTD)
        for kind, norm_NT in zip(norms, _by_kind(token_norms(tokens_NTD), layout), strict=True):
            norms[kind].append(norm_NT.ravel())
        progress.advance(rows.stop - rows.start)
    progress.close()
    joined = {kind: np.concatenate(parts) for kind, parts in norms.items()}
    return Look(len(chosen), side.images, sums.figures(), joined)


def _by_kind(norm_NT: Array, layout: str) -> Sequence[Array]:
    return (norm_NT[:, :1], norm_NT[:, 1:]) if layout == "cls_patches" else (norm_NT,)


def channel_summaries(looks: Looks) -> list[ChannelSummary]:
    """Return what stands out among the channels of each role and use."""
    return [_channel_summary(role, use, look) for (role, use), look in looks.items()]


def channel_arrays(looks: Looks) -> dict[str, Array]:
    """Return the figures of all channels."""
    arrays: dict[str, Array] = {}
    for (role, use), look in looks.items():
        figures = look.figures
        values = {"mean": figures.mean_D, "spread": figures.spread_D, "kurtosis": figures.kurtosis_D}
        arrays |= {channel_array(role, use, name): rounded(array_D) for name, array_D in values.items()}
    return arrays


def norm_histograms(looks: Looks) -> tuple[list[NormSummary], dict[str, Array]]:
    """Return figures of the norms and their histograms, whose edges training and evaluation share."""
    summaries: list[NormSummary] = []
    arrays: dict[str, Array] = {}
    for role, kind in dict.fromkeys((role, kind) for (role, _), look in looks.items() for kind in look.norms):
        norms = {use: looks[role, use].norms[kind] for use in USES}
        edges = bin_edges(list(norms.values()))
        arrays[norm_array(role, kind, "edges")] = rounded(edges)
        for use, norm_N in norms.items():
            finite = norm_N[np.isfinite(norm_N)]
            counts, _ = np.histogram(finite, edges)
            arrays[norm_array(role, kind, use)] = counts.astype(np.float64)
            low, median, high, largest = map(float, rounded(np.quantile(finite, (LOW, 0.5, HIGH, 1.0))))
            summaries.append(NormSummary(role, use, kind, len(finite), low, median, high, largest))
    return summaries, arrays


def _channel_summary(role: str, use: str, look: Look) -> ChannelSummary:
    figures = look.figures
    channels = len(figures.mean_D)
    offset_D = np.nan_to_num(figures.offset_D, nan=-1.0)
    several = sorted({channels_in(percent, channels) for percent in LARGEST_PERCENT})
    varying = ~figures.is_constant_D
    kurtosis = figures.kurtosis_D[varying]
    largest = np.argsort(-figures.spread_D, kind="stable")[:TOP_CHANNELS]
    return ChannelSummary(
        role=role,
        use=use,
        images=look.images,
        of_images=look.of_images,
        tokens=figures.tokens,
        channels=channels,
        not_finite=figures.not_finite,
        constant=int(figures.is_constant_D.sum()),
        massive=int(figures.is_massive_D.sum()),
        median_spread=float(rounded(np.median(figures.spread_D))),
        median_kurtosis=known(np.median(kurtosis)) if varying.any() else None,
        largest_kurtosis=known(kurtosis.max()) if varying.any() else None,
        largest_offset=_channel(figures, int(offset_D.argmax())) if varying.any() else None,
        top_share={count: float(rounded(figures.top_share(count))) for count in several},
        top=[_channel(figures, int(number)) for number in largest],
    )


def _channel(figures: ChannelFigures, number: int) -> Channel:
    return Channel(
        number=number,
        mean=float(rounded(figures.mean_D[number])),
        spread=float(rounded(figures.spread_D[number])),
        offset=known(figures.offset_D[number]),
        kurtosis=known(figures.kurtosis_D[number]),
        share=float(rounded(figures.share_D[number])),
    )
