"""A plan as plain text: tables that fit 110 columns, estimates marked as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowkit.paths import Places
from flowkit.planning.layout import Rows, bytes_text, hours_text, minutes_text, table_lines
from flowkit.planning.pending import State
from flowkit.planning.plan import MachinePlan, QuotaLine, ReadingLine, StageLine
from flowkit.planning.sizes import Amount
from flowkit.planning.storage import DATA_ROOT, RESULTS, Stored

NOT_MEASURED, UNKNOWN, UNLIMITED = "not measured yet", "unknown", "-"


def plan_lines(plan: MachinePlan) -> Iterator[str]:
    """Yield the lines of a plan; warnings come last."""
    states = ", ".join(f"{plan.count(state)} {state.value}" for state in State if plan.count(state))
    yield f"{plan.plan.config.experiment}: {len(plan.plan.jobs)} jobs, {states}"
    yield ""
    yield from _storage(plan)
    yield ""
    yield from _jobs(plan)
    yield ""
    yield from _cost(plan)
    yield ""
    yield from _reading(plan)
    for warned in plan.warnings:
        yield f"warning: {warned.text}"


def _storage(plan: MachinePlan) -> Iterator[str]:
    places: Places = plan.plan.places
    folders = {DATA_ROOT: places.data_root, RESULTS: places.results}
    rows: Rows = [("storage", "there", "to come", "files")]
    for place, folder in folders.items():
        lines = [line for line in plan.stored if line.place == place]
        rows.append((f"{place}: {folder}", "", "", ""))
        rows += [_stored(line) for line in lines if line.total.files or line.to_come is None]
        rows.append(_sum(lines))
    yield from table_lines(rows)
    yield "~ derived from other tars, or at most. files: with folders, there and to come. Left out: heads, texts,"
    yield "metrics, pages, logs. A change of encoder or extraction keeps the tokens before beside those after it."
    yield from _images(plan)
    if float16 := plan.superfluous:
        size = bytes_text(float16.bytes)
        yield f"Once they are converted to int8, nothing reads the source's float16 tokens: {size} may be deleted."
    yield ""
    if not plan.facts.quotas:
        yield "quotas: none known, the profile has no machine.yaml that names some"
        return
    yield from table_lines([("quota", "takes", "of", "files", "of"), *map(_quota, plan.quotas)])
    for line in plan.quotas:
        if line.quota is not None and line.quota.note:
            yield f"{' and '.join(line.places)}: {line.quota.note}"
    yield "What else lies there is not counted."


def _stored(line: Stored) -> tuple[str, ...]:
    to_come = UNKNOWN if line.to_come is None else bytes_text(line.to_come.bytes)
    mark = "~" if line.is_estimate and line.to_come else ""
    return (
        f"  {line.what}",
        bytes_text(line.done.bytes),
        f"{mark}{to_come}",
        _files(line.total, line.to_come is not None),
    )


def _sum(lines: Sequence[Stored]) -> tuple[str, ...]:
    done, to_come, is_complete = Amount(), Amount(), all(line.to_come is not None for line in lines)
    for line in lines:
        done, to_come = done + line.done, to_come + (line.to_come or Amount())
    mark = "over " if not is_complete else "~" if any(line.is_estimate for line in lines) else ""
    return (
        "  sum",
        bytes_text(done.bytes),
        f"{mark}{bytes_text(to_come.bytes)}",
        _files(done + to_come, is_complete),
    )


def _files(amount: Amount, is_complete: bool) -> str:
    if is_complete:
        return f"{amount.files:,}"
    return f"over {amount.files:,}" if amount.files else UNKNOWN


def _images(plan: MachinePlan) -> Iterator[str]:
    """What to say of data sets whose images nobody has counted."""
    for dataset in plan.plan.datasets:
        if plan.data.images(dataset) is None:
            tars = plan.data.tars(dataset)
            size = bytes_text(sum(tar.bytes for tar in tars))
            yield f"{dataset}: {len(tars)} tars of {size}, nobody has counted their images yet. 1,000 images take"
            yield (
                f"  {bytes_text(1000 * plan.sample_bytes)} of tokens. With a number of yours: "
                f"--set datasets.{dataset}.samples_per_shard=N"
            )
            for line in plan.quotas:
                if DATA_ROOT in line.places and line.quota is not None and line.quota.limit_bytes is not None:
                    room = max(0, line.quota.limit_bytes - line.amount.bytes) // plan.sample_bytes
                    yield f"  The quota of {DATA_ROOT} has room for the tokens of about {room:,} images."


def _quota(line: QuotaLine) -> tuple[str, ...]:
    where, at_least = " and ".join(line.places), "" if line.is_complete else "over "
    takes, files = f"{at_least}{bytes_text(line.amount.bytes)}", _files(line.amount, line.is_complete)
    if line.quota is None:
        return where, takes, "no quota known", files, UNLIMITED
    limit, most = line.quota.limit_bytes, line.quota.files
    where = f"{where} in {', '.join(line.quota.paths)}"
    return (
        where,
        takes,
        UNLIMITED if limit is None else bytes_text(limit),
        files,
        f"{most:,}" if most else UNLIMITED,
    )


def _jobs(plan: MachinePlan) -> Iterator[str]:
    if not plan.to_run:
        yield "jobs: nothing is to run"
        return
    rows: Rows = [("jobs to run", "jobs", "where", "nodes", "GPUs", "cores", "memory", "time limit")]
    rows += [_job(line) for line in plan.stages]
    yield from table_lines(rows)
    slurm = sum(line.jobs for line in plan.stages if not line.is_here)
    here = sum(line.jobs for line in plan.stages if line.is_here)
    yield f"{slurm} Slurm jobs; {here} run here, where Snakemake runs. GPUs, cores and memory are per node."
    if attempts := int(plan.profile.get("retries", 0)):
        yield f"A job that fails is tried {attempts + 1} times, the n-th time with n times the memory and time."
    if own := [job for job in plan.to_run if plan.requests.is_submitted_by_itself(job)]:
        requeues = max(plan.requests.training_of(job.spec.target["run"]).requeues for job in own)
        yield f"A training that reaches its limit saves, is queued again and goes on, {requeues} times at most."
        yield "Where Snakemake runs, a process with one core waits for each training."


def _job(line: StageLine) -> tuple[str, ...]:
    ask = line.ask
    shortest = f"{minutes_text(line.shortest)} to " if line.shortest != ask.minutes else ""
    where = "here" if line.is_here else ask.partition or "Slurm's default"
    asked = (ask.nodes, ask.gpus, ask.cpus, f"{ask.memory_gb} GiB")
    return line.stage, str(line.jobs), where, *map(str, asked), f"{shortest}{minutes_text(ask.minutes)}"


def _cost(plan: MachinePlan) -> Iterator[str]:
    lines = [line for line in plan.stages if not line.is_here]
    if not lines:
        yield "cost: no job of Slurm's is to run"
        return
    rows: Rows = [("cost, each job once", "GPU h", "core h", "SBU", "estimate: h", "SBU", "measured on")]
    rows += [_stage_cost(line) for line in lines]
    total = [
        "sum",
        hours_text(sum(line.gpu_hours for line in lines)),
        hours_text(sum(line.core_hours for line in lines)),
    ]
    costs = [line.sbu for line in lines]
    total.append(UNKNOWN if None in costs else f"{sum(cost or 0 for cost in costs):,.0f}")
    is_measured = all(line.measured == line.jobs for line in lines)
    total += [
        "",
        f"~{sum(line.estimate_sbu for line in lines):,.0f}" if is_measured and None not in costs else "",
        "",
    ]
    yield from table_lines([*rows, tuple(total)], left=(0, 6))
    yield "At most: every job runs once, to its time limit; a training that is queued again costs that each time."
    yield "Estimates hold on machines like those of the measurement; a training's is for its steps, without evaluations"
    yield "on held-out images."
    if not plan.facts.partitions:
        yield "SBU: not known, the profile has no machine.yaml that names what partitions bill."


def _stage_cost(line: StageLine) -> tuple[str, ...]:
    sbu = UNKNOWN if line.sbu is None else f"{line.sbu:,.0f}"
    limits = line.stage, hours_text(line.gpu_hours), hours_text(line.core_hours), sbu
    if not line.measured:
        return *limits, "", "", NOT_MEASURED
    of_all = "" if line.measured == line.jobs else f"{line.measured} of {line.jobs} jobs: "
    estimate = UNKNOWN if line.sbu is None else f"~{line.estimate_sbu:,.1f}"
    hours = hours_text(line.estimate_hours)
    return (
        *limits,
        hours if hours.startswith("<") else f"~{hours}",
        estimate,
        of_all + ", ".join(line.sources),
    )


def _reading(plan: MachinePlan) -> Iterator[str]:
    rows: Rows = [
        ("reading by training", "batch", "a step", "reads", "an epoch", "steps", "steps/s", "rate", "reads/s")
    ]
    rows += [_read(line) for line in plan.reading]
    yield from table_lines(rows)
    if any(line.rate is None for line in plan.reading):
        yield f"Without steps/s the rate is {NOT_MEASURED}: what a step reads times the steps per second."


def _read(line: ReadingLine) -> tuple[str, ...]:
    epoch = UNKNOWN if line.epoch_bytes is None else bytes_text(line.epoch_bytes)
    steps = UNKNOWN if line.steps is None else f"{line.steps:,}"
    told = line.run, f"{line.batch_size:,}", bytes_text(line.step_bytes), f"{line.step_reads:,}", epoch, steps
    if line.rate is None:
        return *told, UNLIMITED, UNLIMITED, UNLIMITED
    speed = 1 / line.rate.seconds_per_step
    return (
        *told,
        f"~{speed:.2f}",
        f"~{bytes_text(line.step_bytes * speed)}/s",
        f"~{line.step_reads * speed:,.0f}",
    )
