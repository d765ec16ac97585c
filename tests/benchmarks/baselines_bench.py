"""Bars of the closed-form baselines at full width: 257 x 4096 source tokens to 257 x 1024 target tokens.

Tokens are computed when they are asked for, from a few hundred factors per image and noise, so that no page cache and
no array hides what a fit keeps in memory. The fit runs in a process of its own. `make bench` takes few images; the
size of the real experiment, 10,000 training and 5,000 evaluation images, is most of an hour on two cores:
    python tests/benchmarks/baselines_bench.py FOLDER 10000 5000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rows import Row, row

TOKENS, SOURCE, TARGET, FACTORS = 257, 4096, 1024, 256
TRAINING_IMAGES, EVALUATION_IMAGES = 1500, 500
BASELINES = ("constant", "nearest", "procrustes", "ridge_token", "ridge", "ridge_ot")
NOISE = 0.5
MOST_BYTES = 6e9
THREADS = 2
JUDGED = 100


def rows(folder: Path) -> list[Row]:
    """Measure the small size."""
    variables = {
        name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    command = [sys.executable, __file__, str(folder), str(TRAINING_IMAGES), str(EVALUATION_IMAGES)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    size = f"{TRAINING_IMAGES} + {EVALUATION_IMAGES} images of {TOKENS} x {SOURCE}"
    return [
        row(f"baselines, {size}, memory / 6 GB", [found["bytes"] / MOST_BYTES], 1.0, at_most=True, **found)
    ]


@dataclass(frozen=True)
class DrawnTokens:
    """[N, T, D] tokens that are computed row by row: factors of the image times loadings, and noise."""

    first: int
    images: int
    channels: int
    loadings: tuple[NDArray[np.float32], NDArray[np.float32]]
    """By position [T, F] and by channel [F, D]."""
    noise: NDArray[np.float32]
    """Longer than an image; each image starts at another place."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T, D)."""
        return (self.images, TOKENS, self.channels)

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        numbers = np.arange(self.images)[chosen]
        tokens = np.empty((len(numbers), TOKENS, self.channels), np.float32)
        for place, number in enumerate(numbers + self.first):
            tokens[place] = self._one(int(number))
        return tokens

    def _one(self, number: int) -> NDArray[np.float32]:
        factors = np.random.default_rng(number).standard_normal(FACTORS, np.float32)
        by_position, by_channel = self.loadings
        start = number * 7919 % (len(self.noise) - TOKENS * self.channels)
        noise = self.noise[start : start + TOKENS * self.channels].reshape(TOKENS, self.channels)
        return (by_position * factors) @ by_channel + noise


def drawn(first: int, images: int, channels: int) -> DrawnTokens:
    """Tokens of the images `first` ... `first` + `images`; the same factors whatever the number of channels."""
    generator = np.random.default_rng(channels)
    falling = (np.arange(1, FACTORS + 1) ** -0.5).astype(np.float32)
    by_position = generator.standard_normal((TOKENS, FACTORS), np.float32)
    by_channel = falling[:, None] * generator.standard_normal((FACTORS, channels), np.float32)
    noise = np.float32(NOISE) * generator.standard_normal(TOKENS * channels + 2_000_003, np.float32)
    return DrawnTokens(first, images, channels, (by_position, by_channel), noise)


def measure(scratch: Path, training: int, evaluation: int) -> dict[str, float]:
    """Fit and predict every baseline; returns seconds, bytes at the peak, and the R2 of ridge on some images."""
    import resource
    import time

    from flowkit.evaluation.baselines import INPUTS, fit_baselines

    scratch.mkdir(parents=True, exist_ok=True)
    source, target = drawn(0, training, SOURCE), drawn(0, training, TARGET)
    new_source, new_target = drawn(training, evaluation, SOURCE), drawn(training, evaluation, TARGET)
    started = time.monotonic()
    fitted = fit_baselines(source, target, list(BASELINES), inputs=INPUTS, scratch=scratch)
    found: dict[str, float] = {"fit_seconds": round(time.monotonic() - started, 1)}
    found["fit_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    true = new_target[: min(JUDGED, evaluation)]
    for name, baseline in fitted.items():
        began = time.monotonic()
        judged = np.concatenate(_first_images(baseline.predict(new_source), len(true)))
        found[f"{name}_seconds"] = round(time.monotonic() - began, 1)
        found[f"{name}_r2"] = round(
            float(1 - np.sum((judged - true) ** 2) / np.sum((true - true.mean(0)) ** 2)), 4
        )
    found["bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def _first_images(batches: Iterable[NDArray[np.floating]], images: int) -> list[NDArray[np.floating]]:
    """Read every batch, as the stage does, and keep the first images."""
    kept: list[NDArray[np.floating]] = []
    for batch in batches:
        have = sum(len(one) for one in kept)
        kept.append(batch[: max(0, images - have)].copy())
    return kept


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
