"""One process of a training that several processes share, started by tests with the environment of torchrun.

    training_worker.py WORK OVERRIDES [double]

OVERRIDES is JSON with fields of the training configuration. `double` trains in float64.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from paired_material import FLOW, MODEL, TRAINING, Pairs

from flowkit.training import run
from flowkit.training.loop import train
from flowkit.training.world import joined_world


class DoublePairs(Pairs):
    """The same pairs in float64."""

    def __init__(self, images: int, *, seed: int = 0) -> None:
        super().__init__(images, seed=seed)
        self.source, self.target = self.source.double(), self.target.double()


def main(work: Path, overrides: str, *options: str) -> None:
    torch.set_num_threads(1)
    pairs = Pairs
    if "double" in options:
        pairs, build = DoublePairs, run.build_network
        run.build_network = lambda config, seed=0: build(config, seed=seed).double()
    with joined_world("cpu") as world:
        train(
            replace(TRAINING, **json.loads(overrides)),
            replace(FLOW, velocity_weight=0.3, cosine_weight=0.2),
            replace(MODEL, cross_attention=True, depth=2),
            pairs(64),
            pairs(16, seed=9),
            work,
            feature_scale="factor",
            world=world,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
