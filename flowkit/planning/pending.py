"""Which jobs of a plan will run, found out as Snakemake does it, without asking or changing anything.

A result is current if its manifest is there and it was made from these values by this code. A job that is not current
and is wanted runs, and everything that reads it runs after it. What only finished jobs read is not wanted: its files
may be gone, as on a disk that is emptied after some days. What a failed job left half done is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from flowkit.config import leaves
from flowkit.paths import MANIFEST, RUN_RECORD
from flowkit.provenance import read_json
from flowkit.stages.jobs import Job
from flowkit.stages.session import was_lost, will_be_shown_again

BATCHED = ("fetch", "extract", "convert")
"""Stages that commit tar by tar, so that a job goes on with what is missing."""


ASKED_FOR = ("export",)
"""Stages that rule `all` asks for beside the report, which does not read them."""


class State(Enum):
    """How a job stands."""

    DONE = "done"
    TO_RUN = "to run"
    NOT_NEEDED = "not needed"


def job_states(jobs: Mapping[str, Job], *, wanted: str = "report") -> dict[str, State]:
    """Return the state of every job, given that the results of job `wanted` and of exports are asked for."""
    maker = {folder: job.name for job in jobs.values() for folder in job.folders}
    reads = {job.name: {maker[path] for path in job.inputs if path in maker} for job in jobs.values()}
    missing = {job.name for job in jobs.values() if not all(is_there(job, folder) for folder in job.folders)}
    outdated = {
        job.name
        for job in jobs.values()
        if job.name not in missing and not all(is_current(job, folder) for folder in job.folders)
    }
    lost = {name for name in missing if any(map(was_lost, jobs[name].folders))}
    ends = {wanted, *(name for name, job in jobs.items() if job.spec.stage in ASKED_FOR)}
    running = outdated | lost | (ends & missing)
    while True:
        asked_for = {name for job in running for name in reads[job] & missing}
        reached = {name for name in jobs if name not in missing and reads[name] & running}
        if asked_for | reached <= running:
            break
        running |= asked_for | reached
    idle = {name: State.NOT_NEEDED if name in missing else State.DONE for name in jobs}
    return {name: State.TO_RUN if name in running else state for name, state in idle.items()}


def has_manifest(folder: Path) -> bool:
    """Whether a result was committed."""
    return (folder / MANIFEST).is_file()


def is_there(job: Job, folder: Path) -> bool:
    """Whether Snakemake will find a result: its manifest is there, or hidden until these values are asked for."""
    return has_manifest(folder) or will_be_shown_again(folder, job.tracked)


def is_current(job: Job, folder: Path) -> bool:
    """Whether a committed result was made from the values of `job`, by its code and for its target."""
    record = folder / RUN_RECORD
    if not is_there(job, folder) or not record.is_file():
        return is_there(job, folder)
    made: dict[str, Any] = read_json(record)
    recorded, tracked = {*leaves(made["spec"]["values"]), *made["code"]}, set(job.tracked)
    if job.spec.stage == "fetch":  # a tar does not record which others were listed
        return recorded <= tracked
    is_whole = len(job.folders) > 1 or job.spec.stage in BATCHED
    return recorded == tracked and (is_whole or made["spec"]["target"] == dict(job.spec.target))
