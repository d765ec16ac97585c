"""A copy of the project for tests that run or edit the workflow, and ways to ask it what it would do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT_PARTS = ("flowkit", "rules", "workflow", "profiles", "envs")
CONFIG = "tiny.yaml"


@dataclass(frozen=True)
class Project:
    """A folder with its own copy of package, rules and configuration; `variables` go into the environment."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Run Snakemake here, with the copied package, and return what it printed."""
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            "profiles/local",
            "--configfile",
            CONFIG,
            *arguments,
        ]
        return self.run(command, check=check)

    def flowkit(self, *arguments: str, check: bool = True) -> str:
        """Run the command line here, with the copied package."""
        return self.run([sys.executable, "-m", "flowkit", *arguments], check=check)

    def run(self, command: list[str], *, check: bool = True) -> str:
        """Run a command here and return what it printed."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which this copy shadows the installed package."""
        own = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **own, **self.variables}

    def planned(self, *arguments: str) -> dict[str, str]:
        """Return {rule: reason} of everything that would run now."""
        text = self.snakemake("-n", *arguments)
        return {
            name: reason
            for name, reason in re.findall(r"Job \d+: (\S+)\nReason: (.*)", text)
            if name != "all"
        }

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace one text in a file."""
        file = self.folder / path
        text = file.read_text()
        assert old in text, f"{old!r} is not in {path}"
        file.write_text(text.replace(old, new, 1))


def copy_project(to: Path) -> Path:
    """Copy what the workflow needs, so that a test may edit it; results are not copied."""
    to.mkdir(parents=True, exist_ok=True)
    for part in PROJECT_PARTS:
        shutil.copytree(ROOT / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/workflow/tiny.yaml", to / "tiny.yaml")
    return to
