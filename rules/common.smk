# The plan of the experiment, and the one way in which jobs become rules.
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from snakemake.cli import get_profile_dir

from flowkit.config import load_config
from flowkit.driver import hold_driver_lock
from flowkit.errors import FlowkitError
from flowkit.machine import (
    as_environment,
    named_profile,
    split_machine_settings,
    with_profile,
)
from flowkit.paths import Places
from flowkit.runtime import keep_others_from_writing, prefer_this_python
from flowkit.slurm.failures import Failures
from flowkit.slurm.job_requests import JobRequests
from flowkit.stages.jobs import made_otherwise, pack_spec
from flowkit.stages.specs import Plan

prefer_this_python()
keep_others_from_writing()

FAILURES = Failures()
logger.addHandler(FAILURES)


def load_plan(settings):
    """Return the plan of a configuration and the resources of its jobs; machine settings come from profile or environment."""
    profile = named_profile(sys.argv, os.environ)
    found = get_profile_dir(profile) if profile else None
    settings = with_profile(settings, found[1] if found else None)
    os.environ.update(as_environment(settings))
    machine, values, overrides = split_machine_settings(settings, os.environ)
    loaded = load_config(
        values or Path(workflow.basedir) / "config" / "default.yaml", overrides
    )
    places = Places(loaded.experiment, machine.results, machine.data_root)
    requests = JobRequests(machine.stages, machine.training, machine.account)
    return Plan(loaded, places, machine.shards_per_job), requests


def jobs_of(*stages):
    """Return the jobs of some stages."""
    return [job for job in JOBS.values() if job.spec.stage in stages]


def spec_of(job):
    """Return a params function for the command line; Snakemake does not track functions of the input."""
    return lambda wildcards, input: pack_spec(
        json.dumps(job.spec.as_dict(), sort_keys=True)
    )


def jobs_of_run(job):
    """Return a params function for how a run is trained, which is the machine's and not tracked."""
    jobs = json.dumps(asdict(REQUESTS.training_of(job.spec.target["run"])))
    return lambda wildcards, input: jobs


try:
    PLAN, REQUESTS = load_plan(config)
    JOBS = PLAN.jobs
    MADE_OTHERWISE = made_otherwise(JOBS.values())
except FlowkitError as error:
    raise WorkflowError(str(error))

REPORT_FOLDER = str(PLAN.places.report)
KEY_FIGURES_FOLDER = str(PLAN.places.key_figures)


# A stage ends when Snakemake, the parent of its shell, is gone. The text must not depend on a loop's variable: shell
# commands are put together when a job runs.
CALL = "python -m flowkit {params.stage} --spec {params.spec:q} --threads {threads} --parent $PPID"
COMMAND = CALL + " > {log} 2>&1"
TRAIN_COMMAND = CALL + " --jobs {params.jobs:q} > {log} 2>&1"
