"""A job: one rule of the workflow, and what Snakemake is told of it."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flowkit.config import leaves
from flowkit.paths import MANIFEST
from flowkit.stages.session import Spec, hide_other_values, was_lost

STAGES = {
    "fetch": "Fetch the tars or archives of a data set from the network; goes on where it was stopped.",
    "shards": "Draw the demo images, make tars of COCO, or take stock of a folder of tars.",
    "weights": "Find or fetch the weights of an encoder and record their digest.",
    "extract": "Encode the images of tars into token stores.",
    "convert": "Convert the source encoder's token stores to int8.",
    "pairs": "Join the rows of two encoders' stores.",
    "head": "Save the target encoder's final norm and projection.",
    "texts": "Embed captions and class prompts with the target's text tower.",
    "train": "Train a run.",
    "sample": "Translate the evaluation set with a trained run.",
    "baselines": "Fit the closed-form baselines and translate the evaluation set with them.",
    "ceilings": "Encode the evaluation set once more: unrounded, from JPEGs, from crops.",
    "survey": "Look at the data: counts, refused images, channels, norms, images that training has seen.",
    "evaluate": "Measure the samples of a run or baseline.",
    "export": "Write tokens in the form that models built on CLIP ViT-L/14 take.",
    "summary": "Join the metrics of all runs and judge the goals.",
    "page": "Write the page of a run with its figures and images.",
    "report": "Put the pages of all runs together; says what is missing where not all is done.",
}
"""Every stage, and what it does."""

ARGUMENT_LETTERS = 100_000
"""Linux takes 131,072 bytes in one argument; a spec that names ten thousand tars is longer."""
PACKED = "zlib:"


@dataclass(frozen=True)
class Job:
    """One rule: its name, what its stage is asked, the results and user's files it reads, the results it fills.

    `is_local`: it needs the network or takes a moment, so it runs where Snakemake runs and not on a compute node.
    """

    name: str
    spec: Spec
    inputs: tuple[Path, ...]
    folders: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    threads: int = 1
    memory_mb: int = 2000
    runtime_minutes: int = 60
    priority: int = 0
    is_local: bool = False

    @property
    def tracked(self) -> list[str]:
        """What Snakemake compares: one string per configuration leaf, one per module."""
        return [*leaves(dict(self.spec.values)), *self.spec.code]

    @property
    def manifests(self) -> list[str]:
        """Declared outputs."""
        return [str(folder / MANIFEST) for folder in self.folders]

    @property
    def declared_inputs(self) -> list[str]:
        """Manifests of the results that are read, and files that the user brought."""
        return [*(str(folder / MANIFEST) for folder in self.inputs), *map(str, self.files)]


def made_otherwise(jobs: Iterable[Job]) -> list[str]:
    """Return the manifests of results that are hidden, because they were made by hand from other values, or lost.

    Snakemake makes no missing file anew that only finished rules read, so these must be asked for.
    """
    found = []
    for job in jobs:
        tracked = job.tracked
        found += [
            manifest
            for folder, manifest in zip(job.folders, job.manifests, strict=True)
            if hide_other_values(folder, tracked) or was_lost(folder)
        ]
    return found


def pack_spec(text: str, *, most: int = ARGUMENT_LETTERS) -> str:
    """Return a spec as one argument of a command: as it is, or packed where it has more than `most` letters.

    Without it, where it would exceed what the kernel allows.
    """
    if len(text) <= most:
        return text
    return PACKED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpack_spec(argument: str) -> str:
    """Return the spec that `pack_spec` made an argument of; raises `ValueError` for what it did not make."""
    if not argument.startswith(PACKED):
        return argument
    try:
        return zlib.decompress(base64.b64decode(argument.removeprefix(PACKED), validate=True)).decode()
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error


def rule_word(name: str) -> str:
    """Return a name as a part of a rule name, which may hold letters, digits and underscores only."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
