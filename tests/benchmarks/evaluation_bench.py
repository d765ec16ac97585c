"""Bars of the evaluation at full size: 5,000 images of 257 x 1024 tokens, every metric of one sampler of a run.

The sampler has samples from two noise seeds, as runs have unless told otherwise, so that their spread is measured, too.
Tokens are drawn with a falling spectrum, a mean that many tokens share, and predictions of R2 about .8; captions (five
per image), class prompts and a head of the real shapes are drawn too. The evaluation runs in a process of its own on
two threads, so that its peak memory is its own. The Frechet distance is held against scipy's matrix square root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import Row, row
from scipy import linalg

from flowkit.evaluation.distribution import frechet_distance
from flowkit.evaluation.moments import moments
from flowkit.features.samples import write_tokens

IMAGES, TOKENS, CHANNELS, WIDTH = 5000, 257, 1024, 768
CAPTIONS_PER_IMAGE, CLASSES = 5, 80
MOST_SECONDS, MOST_BYTES = 600, 6e9
THREADS = 2
BATCH = 50
REFERENCE_TOLERANCE = 1e-6
PREDICTED = ("predicted", "predicted-again")


def rows(folder: Path) -> list[Row]:
    """Measure everything; tokens (8 GB) are made below `folder` if they are not there yet."""
    make(folder)
    variables = {
        name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    what = f"evaluation of {IMAGES} x {TOKENS} x {CHANNELS}"
    return [
        row(f"{what}, time / 10 minutes", [found["seconds"] / MOST_SECONDS], 1.0, at_most=True, **found),
        row(f"{what}, peak memory / 6 GB", [found["bytes"] / MOST_BYTES], 1.0, at_most=True),
        row(
            "Frechet distance / scipy's, difference from 1",
            frechet_differences(),
            REFERENCE_TOLERANCE,
            at_most=True,
        ),
    ]


def make(folder: Path) -> None:
    """Write true tokens and predictions of two noise seeds as stores."""
    for name in ("true", *PREDICTED):
        if not (folder / name / "zarr.json").exists():
            write_tokens(folder / name, _batches(name), {}, keys=[f"{n:012d}" for n in range(IMAGES)])


def _batches(name: str) -> Iterator[NDArray[np.float32]]:
    spectrum = (np.arange(1, CHANNELS + 1, dtype=np.float32) ** -0.5)[None, None]
    mean = np.random.default_rng(0).normal(size=(1, 1, CHANNELS)).astype(np.float32)
    for first in range(0, IMAGES, BATCH):
        generator = np.random.default_rng([1, first])
        image = generator.standard_normal((BATCH, 1, CHANNELS), np.float32)
        tokens = generator.standard_normal((BATCH, TOKENS, CHANNELS), np.float32)
        true = (0.6 * image + tokens) * spectrum + 0.1 * mean
        if name in PREDICTED:
            noise = np.random.default_rng([2, PREDICTED.index(name), first])
            shared, own = (source.standard_normal(true.shape, np.float32) for source in (generator, noise))
            true += (0.4 * shared + 0.3 * own) * spectrum
        yield true


def frechet_differences() -> list[float]:
    """Relative differences between our distance and the trace of scipy's root, at 1,024 channels."""
    differences = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        spectrum = np.arange(1, CHANNELS + 1) ** -0.5
        a, b = (generator.normal(size=(2 * CHANNELS, CHANNELS)) * spectrum for _ in range(2))
        shift = np.zeros(CHANNELS)
        ours = frechet_distance(moments(a, shift), moments(b, shift))
        covariances = [np.cov(one.T, ddof=0) for one in (a, b)]
        reference = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(sum(covariances))
        reference -= 2 * np.trace(linalg.sqrtm(covariances[0] @ covariances[1]).real)
        differences.append(float(abs(ours / reference - 1)))
    return differences


def measure(folder: Path) -> dict[str, Any]:
    """Score the predictions; returns seconds, bytes at the peak, and which metrics were not measured."""
    import resource
    import time

    import torch

    from flowkit.encoders.head import apply_head
    from flowkit.evaluation.collected import collect_true
    from flowkit.evaluation.details import per_image
    from flowkit.evaluation.retrieval import Captions
    from flowkit.evaluation.score import Classes, Texts, score
    from flowkit.evaluation.tokens import mean_over_images
    from flowkit.evaluation.zero_shot import class_table
    from flowkit.features.samples import SampledTokens

    torch.set_num_threads(THREADS)
    generator = np.random.default_rng(2)
    head = {
        "norm.weight": torch.ones(CHANNELS),
        "norm.bias": torch.zeros(CHANNELS),
        "norm.epsilon": torch.tensor([1e-5]),
        "projection.weight": torch.from_numpy(generator.normal(size=(WIDTH, CHANNELS)).astype(np.float32))
        / 32,
    }
    target, predicted, again = (SampledTokens(folder / name) for name in ("true", *PREDICTED))
    started = time.monotonic()
    mean = mean_over_images(target)
    true = collect_true(target, mean, lambda part: apply_head(torch.from_numpy(part), head).numpy())
    owner = np.repeat(np.arange(IMAGES), CAPTIONS_PER_IMAGE)
    embeddings = np.asarray(true.side.embeddings_NP)[owner]
    captions = Captions(
        embeddings + generator.normal(size=embeddings.shape), [str(n) for n in range(len(owner))], owner
    )
    labels = class_table([[int(n)] for n in generator.integers(CLASSES, size=IMAGES)], CLASSES)
    texts = Texts(captions, Classes(generator.normal(size=(CLASSES, WIDTH)), labels))
    found = score(predicted, true, texts=texts, noise=[again])
    per_image(predicted, found.collected, true, captions=captions)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "metrics": len(found.rows),
        "not_measured": [one["metric"] for one in found.rows if one["value"] is None],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]))))
