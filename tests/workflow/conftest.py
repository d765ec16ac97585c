"""A copy of the project in which the tiny workflow has run, and ways to ask what would run next."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import copy_project

CONFIG = "tiny.yaml"


@dataclass(frozen=True)
class Project:
    """A folder with its own copy of package, rules and configuration."""

    folder: Path

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
        return {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}

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

    def restore(self, path: str, original: Path) -> None:
        """Put a file back as it was."""
        shutil.copy(original / path, self.folder / path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the tiny workflow has run to its end. Tests must leave it as they found it."""
    project = Project(copy_project(tmp_path_factory.mktemp("finished") / "project"))
    project.snakemake()
    return project
