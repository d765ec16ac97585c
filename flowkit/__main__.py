"""The command line: one command per stage, and a few about the experiment as a whole.

Every stage runs by itself, with the same code and the same outputs as in the workflow: a rule passes `--spec JSON`
(printed in its log, pastable), a person passes `--config FILE` and what to select. Threads are set before any numeric
library is imported, so this module imports none.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flowkit import driver
from flowkit.config import demand_own_place, load_config
from flowkit.config_files import write_config_files
from flowkit.errors import ConfigError, FlowkitError, ShardError, StageError
from flowkit.machine import machine_of
from flowkit.paths import Places
from flowkit.progress import Progress, logger, set_up_logging
from flowkit.results import key_figures
from flowkit.runtime import allow_many_open_files, end_with, keep_others_from_writing, set_threads
from flowkit.slurm.settings import HERE, TrainingJobs
from flowkit.stages.fingerprint import code_of
from flowkit.stages.jobs import STAGES, pack_spec, unpack_spec
from flowkit.stages.session import Spec
from flowkit.stages.specs import Plan

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LETTERS_IN_A_LOG = 4000
"""A longer spec is printed packed; both forms can be pasted."""
NETWORK_STAGES = ("fetch", "weights")
"""All other stages run with the hub's libraries switched to offline."""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration of the experiment.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given again.")]
ResultsOption = Annotated[
    Path | None, typer.Option("--results", help="Folder of all results; FLOWKIT_RESULTS, or results.")
]
DataRootOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of shards and features; FLOWKIT_DATA_ROOT, or <results>/data."),
]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Snakemake profile whose machine settings hold here too.")
]


def _plan(
    config: Path,
    overrides: list[str] | None,
    profile: Path | None = None,
    results: Path | None = None,
    data_root: Path | None = None,
) -> Plan:
    loaded = load_config(config, tuple(overrides or ()))
    machine = machine_of(profile, results=results, data_root=data_root)
    places = Places(loaded.experiment, machine.results, machine.data_root)
    return Plan(loaded, places, machine.shards_per_job)


def _add_stage(stage: str, help_text: str) -> None:
    @app.command(stage, help=help_text)
    def command(
        context: typer.Context,
        spec: Annotated[str | None, typer.Option(help="What to do, as JSON; rules pass this.")] = None,
        config: Annotated[Path | None, typer.Option(help="YAML configuration, instead of --spec.")] = None,
        overrides: SetOption = None,
        run: Annotated[str | None, typer.Option(help="Only this run or baseline.")] = None,
        dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
        encoder: Annotated[str | None, typer.Option(help="Only this encoder (folder name).")] = None,
        profile: ProfileOption = None,
        results: ResultsOption = None,
        data_root: DataRootOption = None,
        threads: Annotated[int, typer.Option(min=1, help="Threads of every numeric library.")] = 1,
        jobs: Annotated[str | None, typer.Option(help="Training only: how it is submitted, as JSON.")] = None,
        to: Annotated[
            Path | None,
            typer.Option("--to", help="Export only: write <run>/ into this folder, and no result."),
        ] = None,
        parent: Annotated[int, typer.Option(help="End when this process ends.")] = 0,
    ) -> None:
        set_threads(threads)
        allow_many_open_files()
        end_with(parent)
        if stage not in NETWORK_STAGES:
            os.environ["HF_HUB_OFFLINE"] = "1"
        if (spec is None) == (config is None):
            raise ConfigError(f"flowkit {stage}: give either --spec JSON or --config FILE")
        if spec is not None:
            specs = [spec_from_json(stage, spec)]
        else:
            has_own_data = _is_given(context, "data_root")
            demand_own_place(stage, overrides, has_own_data=has_own_data, leaves_result=to is None)
            plan = _plan(config or Path(), overrides, profile, results, data_root)
            chosen = plan.select(stage, run=run, dataset=dataset, encoder=encoder)
            specs = [replace(job.spec, by_hand=tuple(job.tracked)) for job in chosen]
        if to is not None:
            _write_into(to, stage, specs)
            return
        failed: list[FlowkitError] = []
        for one in specs:
            spec_text = pack_spec(json.dumps(one.as_dict(), sort_keys=True), most=LETTERS_IN_A_LOG)
            logger.info("flowkit %s --threads %d --spec '%s'", stage, threads, spec_text)
            try:
                _run_stage(one, _training_jobs(one, jobs, profile), threads)
            except ShardError as error:
                if (
                    stage != "fetch" or len(specs) == 1
                ):  # what can be fetched is fetched, whatever else is missing
                    raise
                logger.error("%s", error)
                failed.append(error)
        if failed:
            raise ShardError("\n".join(map(str, failed)))


def _training_jobs(spec: Spec, text: str | None, profile: Path | None) -> TrainingJobs:
    if text is not None:
        return TrainingJobs.of(json.loads(text))
    machine = machine_of(profile)
    return TrainingJobs.of(machine.training, run=spec.target.get("run", ""), account=machine.account)


def _run_stage(spec: Spec, jobs: TrainingJobs, threads: int) -> None:
    """Run a stage in this process, or a training in a job of its own where the machine says so."""
    if spec.stage == "train" and jobs.executor != HERE:
        from flowkit.slurm.training import train_in_job

        train_in_job(spec, jobs, threads=threads)
    else:
        importlib.import_module(f"flowkit.stages.{spec.stage}").run(spec)


def _write_into(folder: Path, stage: str, specs: list[Spec]) -> None:
    if stage != "export":
        raise ConfigError(f"flowkit {stage}: --to goes with flowkit export alone")
    for path in importlib.import_module("flowkit.stages.export_into").run_into(specs, folder):
        typer.echo(str(path))


def _is_given(context: typer.Context, option: str) -> bool:
    """True if an option stands on the command line itself and does not come from the environment or a default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def spec_from_json(stage: str, text: str) -> Spec:
    """Return the spec of a `--spec` argument; raises `ConfigError` if it is not one of this stage."""
    try:
        raw: dict[str, Any] = json.loads(unpack_spec(text))
        roots, values = raw["roots"], raw["values"]
        places = Places(raw["experiment"], Path(roots["results"]), Path(roots["data_root"]))
        made_for, target = raw["stage"], raw["target"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--spec: not a spec ({error!r}), copy it from the log of the rule") from None
    if made_for != stage:
        raise ConfigError(f"--spec: made for stage {made_for}, this is {stage}")
    return Spec(stage, target, values, places, code_of(stage, values))


for _stage, _help in STAGES.items():
    _add_stage(_stage, _help)


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: SetOption = None,
    profile: ProfileOption = None,
    results: ResultsOption = None,
    data_root: DataRootOption = None,
) -> None:
    """Validate a configuration and say what would run; lists a hub repository if this data root has no list."""
    plan = _plan(config, overrides, profile, results, data_root)
    loaded = plan.config
    typer.echo(f"{config}: valid. experiment={loaded.experiment} runs={','.join(plan.all_runs)}")
    typer.echo(f"translate {loaded.encoders.source.name} -> {loaded.encoders.target.name}")
    for dataset in plan.datasets:
        typer.echo(f"data set {dataset}: {len(plan.tars(dataset))} tars")
    typer.echo(f"{len(plan.jobs)} rules: {' '.join(plan.jobs)}")


@app.command("plan")
def plan_machine(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: SetOption = None,
    profile: ProfileOption = None,
    results: ResultsOption = None,
    data_root: DataRootOption = None,
    images: Annotated[
        str | None, typer.Option(help="As if the training set had so many images: 5M, 500M, 120k, 7828.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Numbers for programs instead of text.")] = False,
) -> None:
    """Say before anything is submitted what would run and what it takes: storage, jobs, hours, SBU, reading.

    With --images: what that many images would take, whether or not they are there, and what to do about it. The exit
    code is 1 if a quota is exceeded, by what is configured, or a job asks for what no node has.
    """
    from flowkit.planning import commands

    plan = _plan(config, overrides, profile, results, data_root)
    said = commands.plan(plan, profile) if images is None else commands.plan_of_images(plan, profile, images)
    typer.echo(json.dumps(said.document, indent=1, default=str) if as_json else "\n".join(said.lines))
    if not said.fits:
        raise typer.Exit(1)


@app.command()
def verify(
    stores: Annotated[
        list[Path], typer.Argument(help="Token stores, or folders that hold some at any depth.", exists=True)
    ],
) -> None:
    """Check every record, index and table of token stores; each damaged store is an error that names the file."""
    from flowkit.errors import StoreError
    from flowkit.features.verify import find_stores, verify_stores

    found = find_stores(stores)
    for folder in found.deleted:
        logger.info("store=%s skipped=deleted_after_conversion_to_int8", folder)
    progress, damages = Progress("verify", len(found.stores), "store"), []
    for folder, result in verify_stores(found.stores):
        if isinstance(result, StoreError):
            logger.error("store=%s damaged: %s", folder, result)
            damages.append(str(result))
        else:
            logger.info("store=%s encoder=%s samples=%d rejects=%d records=%d", folder, result.encoder,
                        result.samples, result.rejects, result.records)  # fmt: skip
        progress.advance()
    progress.close()
    deleted = f", {len(found.deleted)} were deleted after their conversion to int8" if found.deleted else ""
    damaged = f", {len(damages)} are damaged" if damages else ""
    typer.echo(f"{len(found.stores) - len(damages)} stores are whole{deleted}{damaged}")
    if damages:
        raise StoreError("\n".join(damages))


@app.command("config-files")
def write_files(
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path("workflow/config"),
) -> None:
    """Write the default configuration, the JSON schema and the reference from the models."""
    for path in write_config_files(folder):
        typer.echo(str(path))


@app.command()
def results(
    config: ConfigOption = Path("workflow/config/demo.yaml"),
    profile: ProfileOption = None,
    results: ResultsOption = None,
) -> None:
    """Print the key figures of a finished experiment, its verdicts, and where the report is."""
    machine = machine_of(profile, results=results)
    folder = Places(load_config(config).experiment, machine.results, machine.data_root).experiment_folder
    for line in key_figures(folder):
        typer.echo(line)


@app.command("open")
def open_report(
    context: typer.Context,
    config: ConfigOption = Path("workflow/config/demo.yaml"),
    profile: ProfileOption = None,
    results: ResultsOption = None,
    every: Annotated[bool, typer.Option("--all", help="The index of all experiments.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the reports on this machine, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0 is a free one.")] = 0,
) -> None:
    """Open the report of an experiment in the browser, or say how to look at it on a machine without one."""
    from flowkit import opening
    from flowkit.report.experiments import experiments_page, write_experiments_index

    machine = machine_of(profile, results=results)
    folder, made_by = machine.results, opening.workflow_command(config, profile, results)
    if every:
        door = opening.door_to_all(folder, write_experiments_index, made_by)
    else:
        report = Places(load_config(config).experiment, folder, machine.data_root).report
        door = opening.door_to_report(report, made_by)
    if serve:
        index = partial(experiments_page, folder)
        opening.serve(folder, index, port=port, path=door.path, say=typer.echo)
    else:
        again = shlex.join([*context.command_path.split(), *sys.argv[2:], "--serve"])
        for line in opening.open_page(door, again):
            typer.echo(line)


@app.command()
def why(
    rule: Annotated[str, typer.Argument(help="Rule name, for instance train_flow.")],
    config: ConfigOption = Path("workflow/config/demo.yaml"),
    overrides: SetOption = None,
    profile: ProfileOption = None,
    results: ResultsOption = None,
    data_root: DataRootOption = None,
) -> None:
    """Print the configuration leaves and the modules whose change makes a rule run again."""
    jobs = _plan(config, overrides, profile, results, data_root).jobs
    if rule not in jobs:
        raise ConfigError(f"{rule}: no such rule, this experiment has {', '.join(jobs)}")
    for tracked in jobs[rule].tracked:
        typer.echo(tracked)


@app.command()
def status(
    config: ConfigOption = Path("workflow/config/demo.yaml"),
    overrides: SetOption = None,
    profile: ProfileOption = None,
    results: ResultsOption = None,
) -> None:
    """Print how the trainings of an experiment stand: job, state, step, rate, time to go, last figures."""
    from flowkit.planning.data_facts import DataFacts
    from flowkit.planning.storage import training_steps
    from flowkit.slurm.status import status_lines

    plan = _plan(config, overrides, profile, results)
    data = DataFacts(plan)
    for line in status_lines(plan.places, {run: training_steps(data, run) for run in plan.config.runs}):
        typer.echo(line)


@app.command()
def cancel(
    run: Annotated[str, typer.Argument(help="The run whose training job is cancelled.")],
    config: ConfigOption = Path("workflow/config/demo.yaml"),
    overrides: SetOption = None,
    profile: ProfileOption = None,
    results: ResultsOption = None,
) -> None:
    """Cancel the training job of a run; what it has saved stays, and the same run goes on from there."""
    from flowkit.slurm.handle import JobFolder
    from flowkit.slurm.training import cancel as cancel_training

    plan = _plan(config, overrides, profile, results)
    if run not in plan.config.runs:
        raise ConfigError(f"{run}: no such run, this experiment has {', '.join(plan.config.runs)}")
    job = cancel_training(JobFolder(plan.places.train(run) / "state"))
    if job is None:
        raise StageError(
            f"{run}: experiment {plan.places.experiment} has no job under way; --config names another one"
        )
    typer.echo(f"job {job} is cancelled")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    parent: Annotated[int, typer.Option(help="End the workflow when this process ends.")] = 0,
) -> None:
    """Run Snakemake with the given arguments: one driver at a time, unlocked only when no driver lives."""
    raise typer.Exit(driver.run_snakemake(context.args, parent=parent))


def main() -> None:
    """Run the command line; errors that a user can act on are one line and exit code 1."""
    set_up_logging()
    keep_others_from_writing()
    try:
        app()
    except FlowkitError as error:
        _end(str(error))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _end(f"{error.filename or 'the disk'}: {error.strerror}; make room or free files, then start again")


def _end(message: str) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"flowkit: error: {line}\n")
    sys.stderr.flush()
    os._exit(1)  # prefetch threads may still hold work; nothing is left to clean up


if __name__ == "__main__":
    main()
