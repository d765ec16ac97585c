"""Runs Snakemake as one driver that nobody outlives.

Snakemake leaves its directory locked when it is killed, and its own unlocking does not ask whether another driver is
alive. Here the Snakemake process of a working directory holds a kernel lock while it works (`hold_driver_lock`, called
by the Snakefile), which vanishes with the process: unlocking is safe exactly when that lock is free.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from flowkit.errors import StageError
from flowkit.progress import logger
from flowkit.runtime import ORPHAN_EXIT_CODE, process_identity

LOCK = Path(".snakemake/flowkit-driver.lock")
LOCKS = Path(".snakemake/locks")
ORPHAN_WAIT_SECONDS = 20.0
HELD_BY_PARENT = "FLOWKIT_DRIVER_LOCK_HELD"
PR_SET_PDEATHSIG = 1
_held: list[IO[str]] = []


def hold_driver_lock(*, wait_seconds: float = 0.0) -> None:
    """Mark this process as the driver of the working directory until it ends.

    Waits up to `wait_seconds` for orphans to end; raises `StageError` naming the other driver if it lives on.
    """
    if os.environ.get(HELD_BY_PARENT):
        return
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = LOCK.open("a+")
    deadline = time.monotonic() + wait_seconds
    while not _is_free(file):
        if time.monotonic() > deadline:
            raise StageError(f"{LOCK}: process {_holder(file)} drives this folder, wait for it or stop it")
        time.sleep(0.2)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _held.append(file)


def run_snakemake(arguments: list[str], *, parent: int = 0) -> int:
    """Run `snakemake ARGUMENTS` and return its exit code; it ends when process `parent` or this one is gone."""
    identity = process_identity(parent) if parent > 1 else None
    if parent > 1 and identity is None:
        return ORPHAN_EXIT_CODE
    hold_driver_lock(wait_seconds=ORPHAN_WAIT_SECONDS)
    command = [sys.executable, "-m", "snakemake"]
    environment = {**os.environ, HELD_BY_PARENT: "1"}
    if LOCKS.is_dir() and any(LOCKS.iterdir()):
        logger.info("unlocking, the driver that left the lock is gone")
        unlocked = subprocess.run([*command, "--quiet", "all", "--unlock", *arguments], env=environment)
        if unlocked.returncode:
            return unlocked.returncode
    child = subprocess.Popen([*command, *arguments], preexec_fn=_die_with_parent, env=environment)
    while (code := child.poll()) is None:
        if identity is not None and process_identity(parent) != identity:
            logger.info("process %d that started this workflow is gone, ending", parent)
            child.kill()
        try:
            child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            child.wait()
    return code


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, even by kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
