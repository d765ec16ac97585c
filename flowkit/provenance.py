"""What a result was made from: digests, atomic files, code fingerprints and run records.

A code fingerprint is one `module@hash` string per flowkit module that a stage can import: the import graph comes from
grimp, the hash is over the syntax tree without comments and docstrings, so that only edits that can change a result
change it. Parent packages' `__init__` files are hashed and not followed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flowkit.errors import StageError

PACKAGE = "flowkit"
# Modules that cannot change a number: their values are tracked as leaves, or they only speak, wait or name folders.
NOT_FINGERPRINTED = {
    "flowkit.config": "declarations; the values that a stage sees are tracked one by one",
    "flowkit.sections": "declarations, as in flowkit.config",
    "flowkit.export_section": "declarations, as in flowkit.config",
    "flowkit.datasets": "declarations, as in flowkit.config",
    "flowkit.validation": "how declarations are checked",
    "flowkit.machine": "where results lie and how many tars one job takes",
    "flowkit.errors": "wording of errors",
    "flowkit.progress": "what is printed while working",
    "flowkit.paths": "names of folders",
    "flowkit.provenance": "how provenance itself is recorded",
    "flowkit.runtime": "threads, locks and the life of a process",
    "flowkit.stages.fingerprint": "how fingerprints are taken",
    "flowkit.stages.session": "how results are adopted and committed",
    "flowkit.stages.kept_samples": "takes over samples that were made from the same things",
}
PROCESS_BEGAN = time.time()
"""When this module was loaded: stages do so before the libraries that take seconds."""
RECORDED_PACKAGES = (
    "torch", "numpy", "open_clip_torch", "timm", "zarr", "safetensors", "scipy", "scikit-learn", "pandas",
    "matplotlib", "webdataset", "snakemake", "submitit",
)  # fmt: skip


def canonical_json(value: Any) -> str:
    """Return JSON text that is the same for equal values: sorted keys, no spaces to spare."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON-able value, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return {relative path: sha256} of every file below `folder`, in name order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in names.items()}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises `StageError` that names a missing or damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: missing, run the stage that makes it first") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StageError(f"{path}: damaged ({error}), delete it and run its stage again") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_all(folder: Path) -> None:
    """Flush every file and folder of a result to disk before it gets its final name."""
    for path in [folder, *folder.rglob("*")]:
        sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def source_hash(source: str) -> str:
    """Return ten hex digits over the meaning of Python source: comments, docstrings and layout do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _drop_docstring(node)
    # ast.unparse gives the same text on all supported Python versions, ast.dump does not
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:10]


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        node.body = node.body[1:]
    if not node.body and not isinstance(node, ast.Module):
        node.body = [ast.Pass()]


@cache
def _import_graph() -> Any:
    import grimp

    return grimp.build_graph(PACKAGE, cache_dir=None)


@cache
def _module_path(module: str) -> Path:
    root = Path(__file__).parent
    path = root.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _module_hash(module: str) -> str:
    return source_hash(_module_path(module).read_text(encoding="utf-8"))


@cache
def code_fingerprint(
    module: str, leave_out: frozenset[str] = frozenset(), files: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return sorted `module@hash` strings of everything that `module` can import inside flowkit.

    `leave_out`: modules that this configuration never reaches, such as other encoder families. `files`: data files
    below the package whose text matters, such as page templates.
    """
    graph, closure, queue = _import_graph(), {module}, [module]
    while queue:
        for found in graph.find_modules_directly_imported_by(queue.pop()):
            if found not in closure and found not in leave_out and found != PACKAGE:
                closure.add(found)
                queue.append(found)
    parents = {name.rpartition(".")[0] for name in closure} - {PACKAGE, ""}
    names = sorted((closure | parents) - set(NOT_FINGERPRINTED))
    hashes = [f"{name}@{_module_hash(name)}" for name in names]
    root = Path(__file__).parent
    return (*hashes, *(f"{name}@{file_digest(root / name)[:10]}" for name in sorted(files)))


@dataclass
class RunRecord:
    """What `run.json` says of one execution of a stage. Times and host are here and nowhere else.

    Results that one process made, one after the other or side by side, name the same process; `seconds_before` says
    when it turned to this one, and CPU time and peak memory are those of the process up to this result.
    """

    stage: str
    spec: Mapping[str, Any]
    code: Iterable[str]
    started: float = field(default_factory=time.time)
    rates: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the record with versions, host, elapsed seconds and peak memory filled in."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        job, tasks = os.environ.get("SLURM_JOB_ID"), os.environ.get("WORLD_SIZE", "1")
        return {
            "schema": 1,
            "stage": self.stage,
            "spec": self.spec,
            "code": list(self.code),
            "versions": {"python": platform.python_version(), **_versions()},
            "host": host_facts(),
            **({"slurm_job": job} if job else {}),
            **({"tasks": int(tasks)} if tasks.isdecimal() and tasks != "1" else {}),
            "process": {
                "id": os.getpid(),
                "began": _utc(PROCESS_BEGAN),
                "seconds_before": round(max(0.0, self.started - PROCESS_BEGAN), 3),
            },
            "started": _utc(self.started),
            "seconds": round(time.time() - self.started, 3),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_memory_mb": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1),
            "rates": {name: round(value, 4) for name, value in self.rates.items()},
        }


def host_facts() -> dict[str, Any]:
    """Return what this machine is: names, CPUs, memory, and the GPUs that this process can use.

    What the system does not tell is left out; `accelerator` is None where this process uses none.
    """
    facts = {
        "name": platform.node(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_model": _value_of("model name", Path("/proc/cpuinfo")),
        "memory_gb": _memory_gb(_value_of("MemTotal", Path("/proc/meminfo"))),
    }
    return {
        **{name: value for name, value in facts.items() if value is not None},
        "accelerator": _accelerator(),
    }


def _accelerator() -> dict[str, Any] | None:
    """Return name and number of the GPUs of a process that has loaded torch; others use none."""
    torch = sys.modules.get(
        "torch"
    )  # never imported here: it takes seconds, and half of the stages need it not
    cuda = getattr(torch, "cuda", None)
    try:
        if cuda is None or not cuda.is_available():
            return None
        return {"name": str(cuda.get_device_name(0)), "count": int(cuda.device_count())}
    except RuntimeError:  # a driver that stopped answering must not cost the result that is being recorded
        return {"name": "not answering", "count": 0}


def _value_of(name: str, file: Path) -> str | None:
    """Return the first value of `name` in a file of `name : value` lines, None where there is none."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (
        value.strip() for key, colon, value in (line.partition(":") for line in lines) if key.strip() == name
    )
    return next(found, None)


def _memory_gb(total: str | None) -> float | None:
    """Return `16384 kB` as GB of 2^30 bytes."""
    number = (total or "").removesuffix("kB").strip()
    return round(int(number) / 2**20, 1) if number.isdecimal() else None


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
