# The plan of the experiment, and the one way in which jobs become rules.
import json
import os
from pathlib import Path

from flowkit.config import load_config
from flowkit.driver import hold_driver_lock
from flowkit.errors import FlowkitError
from flowkit.paths import Places
from flowkit.runtime import prefer_this_python
from flowkit.stages.specs import Plan

prefer_this_python()


def load_plan(settings):
    """Return the plan of a configuration; machine settings come from the profile or the environment."""
    settings = dict(settings)
    machine = {
        key: settings.pop(key, os.environ.get(f"FLOWKIT_{key.upper()}", default))
        for key, default in (
            ("results", "results"),
            ("data_root", None),
            ("shards_per_job", 32),
        )
    }
    overrides = settings.pop("set", ())
    overrides = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    source = settings or Path(workflow.basedir) / "config" / "default.yaml"
    loaded = load_config(source, overrides)
    results = Path(machine["results"])
    places = Places(
        loaded.experiment, results, Path(machine["data_root"] or results / "data")
    )
    return Plan(loaded, places, int(machine["shards_per_job"]))


def jobs_of(stage):
    """Return the jobs of a stage."""
    return [job for job in JOBS.values() if job.spec.stage == stage]


def spec_of(job):
    """Return a params function for the command line; Snakemake does not track functions of the input."""
    return lambda wildcards, input: json.dumps(job.spec.as_dict(), sort_keys=True)


try:
    PLAN = load_plan(config)
    JOBS = PLAN.jobs
except FlowkitError as error:
    raise WorkflowError(str(error))

REPORT_FOLDER = str(PLAN.places.report)
COMMAND = "python -m flowkit {stage} --spec {{params.spec:q}} --threads {{threads}} --parent $PPID > {{log}} 2>&1"


def command(stage):
    """Return the shell command of a stage."""
    return COMMAND.format(stage=stage)
