"""The lines of `metrics.jsonl`: one JSON object per training step, and validation by a real few-step sampler.

Keys: step (from 1), loss, loss_<part>, error_t_<where> (mean square of the clean estimate by time), grad_norm,
clip_limit, loss_scale, learning_rate (AdamW's), muon_learning_rate, skipped_steps, seconds, samples_per_s,
share_of_peak, memory_mb and, at evaluation steps, validation_tok_cos and validation_r2. Only `TIMING_KEYS` differ
between identical runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowkit.flow.fidelity import FidelitySums
from flowkit.flow.noise import keyed_normal
from flowkit.training.statistics import PairedFeatures, finite_batch
from flowkit.translator import Translator

TIMING_KEYS = ("seconds", "samples_per_s", "share_of_peak", "memory_mb")
VALIDATION_SOLVER = "euler"
VALIDATION_STEPS = 2
VALIDATION_BATCH = 128
VALIDATION_KEY = -1
"""Stands where training draws carry the step, so that validation noise is none of theirs."""


class MetricsLog:
    """Appends lines to a file; on resume, lines after the restored step are cut off."""

    def __init__(self, file: Path, *, restored_step: int) -> None:
        self._file = file
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= restored_step]
        partial = file.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, file)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line; it is complete on the disk's cache when this returns."""
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def validate(translator: Translator, data: PairedFeatures, *, images: int, seed: int) -> dict[str, float]:
    """Return validation_tok_cos and validation_r2 of the first `images` images under a few-step sampler."""
    sums = FidelitySums(translator.statistics.target_mean_TC)
    ids = np.arange(min(images, len(data)))
    batch = max(1, VALIDATION_BATCH // translator.config.views)
    for first in range(0, len(ids), batch):
        chunk = ids[first : first + batch]
        kept, source_BTE, target_BTC = finite_batch(data, chunk)
        if not len(kept):
            continue
        keys = [(seed, VALIDATION_KEY, int(index)) for index in kept]
        white_BTC = keyed_normal(keys, tuple(target_BTC.shape[1:]), torch.device("cpu"))
        predicted_BTC = translator.generate(
            source_BTE, num_inference_steps=VALIDATION_STEPS, solver=VALIDATION_SOLVER, white_noise=white_BTC
        )
        sums.add(predicted_BTC, target_BTC.to(predicted_BTC.device))
    return {"validation_tok_cos": sums.tok_cos, "validation_r2": sums.r2}
