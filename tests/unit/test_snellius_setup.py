"""The set-up script for Snellius, run where `module` and `make` only write down that they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

MAKE = """#!/bin/bash
echo "make $*" >> calls
mkdir -p .venv/bin
printf '#!/bin/bash\\necho "python $*" >> calls\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the script and a `make` that makes an environment in which Python writes down its calls."""
    (tmp_path / "envs").mkdir()
    shutil.copy(ROOT / "envs/snellius.sh", tmp_path / "envs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").write_text(MAKE)
    (tmp_path / "bin/make").chmod(0o755)
    return tmp_path


def _set_up(place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    has_modules = {"BASH_FUNC_module%%": '() { echo "module $*" >> calls; }'}
    environment = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "USER": "somebody",
        **has_modules,
        **variables,
    }
    if variables.get("BASH_FUNC_module%%") == "":
        del environment["BASH_FUNC_module%%"]
    script = place / "envs/snellius.sh"
    return subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, cwd="/")


def test_modules_come_first_and_the_profile_is_checked_last(place: Path) -> None:
    done = _set_up(place)
    assert done.returncode == 0, done.stderr
    assert (place / "calls").read_text().splitlines() == [
        "module purge",
        "module load 2024 Python/3.12.3-GCCcore-13.3.0",
        "make environment",
        "python -m flowkit check workflow/config/demo.yaml --profile profiles/snellius",
    ]
    activate = (place / ".venv/activate-flowkit").read_text().splitlines()
    assert activate[:2] == ["module purge", "module load 2024 Python/3.12.3-GCCcore-13.3.0"]
    assert activate[2] == f". '{place}/.venv/bin/activate'"
    assert "SBATCH_ACCOUNT" in done.stdout


def test_other_modules_can_be_named(place: Path) -> None:
    _set_up(place, MODULES="2025 Python/3.13.1-GCCcore-14.2.0")
    assert "module load 2025 Python/3.13.1-GCCcore-14.2.0" in (place / "calls").read_text()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"SLURM_JOB_ID": "7"}, "this is a job: compute nodes have no internet"),
        ({"BASH_FUNC_module%%": ""}, "there is no command 'module' here"),
    ],
)
def test_the_wrong_place_is_refused_in_one_line(place: Path, variables: dict[str, str], says: str) -> None:
    done = _set_up(place, **variables)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (place / "calls").exists()
