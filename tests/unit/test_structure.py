"""The house rules that a machine can check: layers, linters, types, no string imports, and what a bare image needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGE_FILES = sorted((ROOT / "flowkit").rglob("*.py"))


def _passes(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def test_rooms_import_down_only() -> None:
    _passes(str(BIN / "lint-imports"), "--no-cache")


def test_ruff_finds_nothing() -> None:
    _passes(str(BIN / "ruff"), "check", "--no-cache", ".")


def test_code_is_formatted() -> None:
    _passes(str(BIN / "ruff"), "format", "--no-cache", "--check", ".")


def test_types_hold() -> None:
    _passes(str(BIN / "mypy"))


def test_snakefiles_are_formatted() -> None:
    _passes(str(BIN / "snakefmt"), "--check", "rules", "workflow/Snakefile")


@pytest.mark.parametrize("config", ["workflow/config/demo.yaml", "tests/workflow/tiny.yaml"])
def test_snakemake_lint_finds_nothing(config: str) -> None:
    _passes(sys.executable, "-m", "snakemake", "--lint", "--configfile", config)


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_says_what_it_is_and_names_no_module_by_text(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module begins with what it is"
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    names |= {call.id for call in calls if isinstance(call, ast.Name)}
    # the command line picks its stage by name; a stage itself must not, or its fingerprint would have a hole
    assert path.name == "__main__.py" or not names & {"import_module", "__import__"}


def test_sub_package_inits_hold_a_docstring_only() -> None:
    for path in (ROOT / "flowkit").glob("*/__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, path


BARE = """
import sys
for name in ("pydantic", "snakemake", "zarr", "open_clip", "timm", "pandas", "grimp", "submitit", "pyarrow", "yaml"):
    sys.modules[name] = None
sys.modules["torchdiffeq"] = None
import flowkit.training.loop, flowkit.sampling.sampler, flowkit.translator, flowkit
"""


def test_training_imports_on_a_bare_gpu_image() -> None:
    _passes(sys.executable, "-c", BARE)


def test_readme_commands_are_those_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    for command in ("make test", "make test-slow"):
        assert command in readme
        assert f"\n{command}\n" in ci


def test_no_address_of_a_registry_or_machine_is_committed() -> None:
    text = "".join(
        line for line in (ROOT / "constraints.txt").read_text().splitlines(True) if not line.startswith("#")
    )
    assert "/" not in text
    assert "@" not in text
