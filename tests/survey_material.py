"""A survey as stage `survey` leaves it, made up: hostile keys and captions, refused images, similar pairs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from flowkit.report.survey import (
    ARRAYS_FILE,
    MATCHES_FILE,
    SCHEMA,
    SEARCHED,
    SURVEY_FILE,
    THRESHOLDS,
    THUMBNAILS,
    USES,
    Above,
    Channel,
    ChannelSummary,
    DatasetCount,
    EncoderCount,
    Findings,
    Found,
    Matches,
    NormSummary,
    Refused,
    RefusedCount,
    SimilarPair,
    Thumbnail,
    channel_array,
    match_array,
    norm_array,
)

HOSTILE = '<script>alert(1)</script> & "quotes" \' ünï 猫 $\\frac{1}{0}$'
EVALUATED, CHANNELS = 40, {"source": 300, "target": 120}
TORN = Refused(
    "train", "00001.tar", HOSTILE,
    {"source": "image undecodable: torn", "target": "image undecodable: torn"}, Thumbnail("refused-00.png", 64, 48),
)  # fmt: skip
LOST = Refused(
    "train",
    f"{HOSTILE}.tar",
    "lost",
    {"target": f"not finite: {HOSTILE}"},
    Thumbnail(words=f"gone {HOSTILE}"),
)


def findings(**changes: object) -> Findings:
    """Records of a training set of three tars and an evaluation set of one."""
    made = Findings(
        schema=SCHEMA,
        layout="cls_patches",
        datasets=[
            DatasetCount("train", "folder", "training", 3, 1, None, _encoders(2500, 3), 4, 2496, 800, 0,
                         {f"target: not finite {HOSTILE}": 2, "both: image undecodable": 1}),
            DatasetCount("test", "coco", "evaluation", 1, 0, 50, _encoders(50, 0), 0, 50, 0, EVALUATED, {}),
        ],
        refused=[RefusedCount("train", "image undecodable", 3, 3), RefusedCount("train", f"odd {HOSTILE}", 0, 1)],
        examples=[TORN, LOST],
        channels=[_channels(role, use) for role in CHANNELS for use in USES],
        norms=[NormSummary(role, use, kind, 100, 18.0, 20.5, 25.25, 31.0)
               for role in CHANNELS for kind in ("class token", "patches") for use in USES],
        matches=Matches(
            evaluated=EVALUATED, training=1696, as_many=EVALUATED - 1, same_file=1,
            above=[Above(cosine, 7, 2, 0) for cosine in THRESHOLDS],
            pairs=[_pair(at) for at in range(3)],
        ),
    )  # fmt: skip
    return replace(made, **changes)


def write_survey(folder: Path, found: Findings | None = None) -> Path:
    """Write the files of a survey to `folder`."""
    found = findings() if found is None else found
    (folder / THUMBNAILS).mkdir(parents=True, exist_ok=True)
    (folder / SURVEY_FILE).write_text(json.dumps(asdict(found)), encoding="utf-8")
    np.savez(folder / ARRAYS_FILE, **arrays())
    (folder / MATCHES_FILE).write_text(f'tar,key\n0.tar,"{HOSTILE.replace(chr(34), "")}"\n', encoding="utf-8")
    names = ["refused-00", *(f"pair-{at}-{use}" for at in range(3) for use in USES)]
    for at, name in enumerate(names):
        Image.new("RGB", (64, 48), (30 * at, 90, 200)).save(folder / THUMBNAILS / f"{name}.png")
    return folder


def arrays() -> dict[str, np.ndarray]:
    """Arrays that fit the records; one channel of the source is massive, one is constant."""
    generator = np.random.default_rng(0)
    made = {}
    for role, channels in CHANNELS.items():
        for use in USES:
            spread = generator.uniform(0.5, 2, channels)
            spread[0], spread[1] = 80, 0
            kurtosis = np.where(spread > 0, 3.0, np.nan)
            values = {"mean": generator.normal(0, 1, channels), "spread": spread, "kurtosis": kurtosis}
            made |= {channel_array(role, use, name): array for name, array in values.items()}
            for kind, edges in (
                ("class token", np.linspace(18, 31, 21)),
                ("patches", np.geomspace(2, 900, 41)),
            ):
                made[norm_array(role, kind, "edges")] = edges
                made[norm_array(role, kind, use)] = generator.integers(0, 50, len(edges) - 1).astype(float)
    return made | {match_array(name): generator.uniform(0.5, 0.99, EVALUATED) for name in SEARCHED}


def _encoders(read: int, refused: int) -> list[EncoderCount]:
    return [
        EncoderCount("source", "eva", "int8", read - refused, refused),
        EncoderCount("target", "clip", "float16", read, 0),
    ]


def _channels(role: str, use: str) -> ChannelSummary:
    channels = CHANNELS[role]
    top = [Channel(number, 0.5, 80.0 / (number + 1), 0.01, 60.0, 0.9) for number in range(3)]
    return ChannelSummary(
        role, use, 2000, 5_000_000, 514_000, channels, 0, 1, 2, 1.25, 3.1, 61.5, Channel(17, 9.0, 0.5, 18.0, None, 0.0),
        {1: 0.9, channels // 100: 0.92, channels // 10: 0.95}, top,
    )  # fmt: skip


def _pair(at: int) -> SimilarPair:
    evaluation = Found("0.tar", f"e{at}", HOSTILE, Thumbnail(f"pair-{at}-evaluation.png", 64, 48))
    training = Found("00002.tar", HOSTILE, "", Thumbnail(f"pair-{at}-training.png", 64, 48))
    if at == 2:
        training = replace(training, thumbnail=Thumbnail(words="its tar is gone"))
    return SimilarPair(0.999 - at / 100, None if at else 0.4, at == 0, evaluation, training)
