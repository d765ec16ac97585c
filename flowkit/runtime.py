"""The life of a process: its threads, its parent and the locks it holds.

Two one-thread processes beat one two-thread process here, and torch's default thread count on a busy machine costs
ten times the CPU, so every stage sets its threads before torch is imported. A stage ends when the process that
started it is gone, so that a killed driver leaves nobody at work.
"""

from __future__ import annotations

import fcntl
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowkit.errors import StageError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
ORPHAN_EXIT_CODE = 113
OPEN_FILES = 65_536
_stop_requested = threading.Event()
HAS_PROC = Path("/proc/self/stat").is_file()  # Linux; elsewhere a reused process number cannot be told apart


def set_threads(threads: int) -> None:
    """Give every numeric library `threads` threads. Must run before torch or numpy is imported."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)


def allow_many_open_files() -> None:
    """Raise the soft limit of open files to the hard one: stores of a thousand tars are read at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems name a hard limit that they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def threads() -> int:
    """Return how many threads this process was given, for pools of its own beside those of the numeric libraries."""
    return int(os.environ.get(THREAD_VARIABLES[0], "1"))


def prefer_this_python() -> None:
    """Let `python` in a shell mean the Python of this process, unless something activated later comes first.

    Stages then run with the Python that runs Snakemake, or with that of the conda environment under `--sdm conda`.
    """
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )


def keep_others_from_writing() -> None:
    """Make no file that users outside the group may write, whatever the user's umask says."""
    os.umask(os.umask(0o022) | 0o002)


def process_identity(pid: int) -> str | None:
    """Return a text that is the same as long as process `pid` is the same living one, None when it is gone."""
    if not HAS_PROC:
        return str(pid) if _answers(pid) else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{pid}:{start_ticks}"


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_with(pid: int, poll_seconds: float = 0.5) -> None:
    """End this process soon after process `pid` is gone. Work on disk must be crash-safe; nothing is cleaned up."""
    if pid <= 1:
        return
    identity = process_identity(pid)

    def watch() -> None:
        while identity is not None and process_identity(pid) == identity:
            time.sleep(poll_seconds)
        sys.stderr.write(f"flowkit: process {pid} that started this stage is gone, ending\n")
        sys.stderr.flush()
        os._exit(ORPHAN_EXIT_CODE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextmanager
def exclusive(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the length of a block; the kernel frees it when the process dies.

    Waits up to `wait_seconds` for another holder to end, then raises `StageError` that names its process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StageError(f"{path}: held by process {holder}, wait for it to end or stop it")
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def request_stop() -> None:
    """Ask the work of this process to end at the next point from which it can go on; safe in a signal handler."""
    _stop_requested.set()


def stop_requested() -> bool:
    """Whether the work was asked to end."""
    return _stop_requested.is_set()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
