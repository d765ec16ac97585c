"""A job: one rule of the workflow, and what Snakemake is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowkit.config import leaves
from flowkit.paths import MANIFEST
from flowkit.stages.session import Spec


@dataclass(frozen=True)
class Job:
    """One rule: its name, what its stage is asked, the results and user's files it reads, the results it fills."""

    name: str
    spec: Spec
    inputs: tuple[Path, ...]
    folders: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    threads: int = 1
    memory_mb: int = 2000
    runtime_minutes: int = 60
    priority: int = 0

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


def rule_word(name: str) -> str:
    """Return a name as a part of a rule name, which may hold letters, digits and underscores only."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
