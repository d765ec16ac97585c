"""A plan as plain text: tables that fit 110 columns, estimates marked as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowkit.paths import Places
from flowkit.planning.pending import State
from flowkit.planning.plan import MachinePlan, QuotaLine, ReadingLine, StageLine
from flowkit.planning.sizes import Amount
from flowkit.planning.storage import DATA_ROOT, RESULTS, Stored

NOT_MEASURED, UNKNOWN, UNLIMITED = "not measured yet", "unknown", "-"
SIZES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MINUTES_PER_DAY, SHORTEST_HOURS = 24 * 60, 0.01
Rows = list[tuple[str, ...]]


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
    yield from _table(rows)
    yield "~ derived from other tars, or at most. files: with folders, there and to come. Left out: heads, texts,"
    yield "metrics, pages, logs. A change of encoder or extraction keeps the tokens before beside those after it."
    yield from _images(plan)
    if float16 := plan.superfluous:
        size = _bytes(float16.bytes)
        yield f"Once they are converted to int8, nothing reads the source's float16 tokens: {size} may be deleted."
    yield ""
    if not plan.facts.quotas:
        yield "quotas: none known, the profile has no machine.yaml that names some"
        return
    yield from _table([("quota", "takes", "of", "files", "of"), *map(_quota, plan.quotas)])
    for line in plan.quotas:
        if line.quota is not None and line.quota.note:
            yield f"{' and '.join(line.places)}: {line.quota.note}"
    yield "What else lies there is not counted."


def _stored(line: Stored) -> tuple[str, ...]:
    to_come = UNKNOWN if line.to_come is None else _bytes(line.to_come.bytes)
    mark = "~" if line.is_estimate and line.to_come else ""
    return (
        f"  {line.what}",
        _bytes(line.done.bytes),
        f"{mark}{to_come}",
        _files(line.total, line.to_come is not None),
    )


def _sum(lines: Sequence[Stored]) -> tuple[str, ...]:
    done, to_come, is_complete = Amount(), Amount(), all(line.to_come is not None for line in lines)
    for line in lines:
        done, to_come = done + line.done, to_come + (line.to_come or Amount())
    mark = "over " if not is_complete else "~" if any(line.is_estimate for line in lines) else ""
    return "  sum", _bytes(done.bytes), f"{mark}{_bytes(to_come.bytes)}", _files(done + to_come, is_complete)


def _files(amount: Amount, is_complete: bool) -> str:
    if is_complete:
        return f"{amount.files:,}"
    return f"over {amount.files:,}" if amount.files else UNKNOWN


def _images(plan: MachinePlan) -> Iterator[str]:
    """What to say of data sets whose images nobody has counted."""
    for dataset in plan.plan.datasets:
        if plan.data.images(dataset) is None:
            tars = plan.data.tars(dataset)
            size = _bytes(sum(tar.bytes for tar in tars))
            yield f"{dataset}: {len(tars)} tars of {size}, nobody has counted their images yet. 1,000 images take"
            yield (
                f"  {_bytes(1000 * plan.sample_bytes)} of tokens. With a number of yours: "
                f"--set datasets.{dataset}.samples_per_shard=N"
            )
            for line in plan.quotas:
                if DATA_ROOT in line.places and line.quota is not None and line.quota.limit_bytes is not None:
                    room = max(0, line.quota.limit_bytes - line.amount.bytes) // plan.sample_bytes
                    yield f"  The quota of {DATA_ROOT} has room for the tokens of about {room:,} images."


def _quota(line: QuotaLine) -> tuple[str, ...]:
    where, at_least = " and ".join(line.places), "" if line.is_complete else "over "
    takes, files = f"{at_least}{_bytes(line.amount.bytes)}", _files(line.amount, line.is_complete)
    if line.quota is None:
        return where, takes, "no quota known", files, UNLIMITED
    limit, most = line.quota.limit_bytes, line.quota.files
    where = f"{where} in {', '.join(line.quota.paths)}"
    return (
        where,
        takes,
        UNLIMITED if limit is None else _bytes(limit),
        files,
        f"{most:,}" if most else UNLIMITED,
    )


def _jobs(plan: MachinePlan) -> Iterator[str]:
    if not plan.to_run:
        yield "jobs: nothing is to run"
        return
    rows: Rows = [("jobs to run", "jobs", "where", "nodes", "GPUs", "cores", "memory", "time limit")]
    rows += [_job(line) for line in plan.stages]
    yield from _table(rows)
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
    shortest = f"{_minutes(line.shortest)} to " if line.shortest != ask.minutes else ""
    where = "here" if line.is_here else ask.partition or "Slurm's default"
    asked = (ask.nodes, ask.gpus, ask.cpus, f"{ask.memory_gb} GiB")
    return line.stage, str(line.jobs), where, *map(str, asked), f"{shortest}{_minutes(ask.minutes)}"


def _cost(plan: MachinePlan) -> Iterator[str]:
    lines = [line for line in plan.stages if not line.is_here]
    if not lines:
        yield "cost: no job of Slurm's is to run"
        return
    rows: Rows = [("cost, each job once", "GPU h", "core h", "SBU", "estimate: h", "SBU", "measured on")]
    rows += [_stage_cost(line) for line in lines]
    total = [
        "sum",
        _hours(sum(line.gpu_hours for line in lines)),
        _hours(sum(line.core_hours for line in lines)),
    ]
    costs = [line.sbu for line in lines]
    total.append(UNKNOWN if None in costs else f"{sum(cost or 0 for cost in costs):,.0f}")
    is_measured = all(line.measured == line.jobs for line in lines)
    total += [
        "",
        f"~{sum(line.estimate_sbu for line in lines):,.0f}" if is_measured and None not in costs else "",
        "",
    ]
    yield from _table([*rows, tuple(total)], left=(0, 6))
    yield "At most: every job runs once, to its time limit; a training that is queued again costs that each time."
    yield "Estimates hold on machines like those of the measurement; a training's is for its steps, without evaluations"
    yield "on held-out images."
    if not plan.facts.partitions:
        yield "SBU: not known, the profile has no machine.yaml that names what partitions bill."


def _stage_cost(line: StageLine) -> tuple[str, ...]:
    sbu = UNKNOWN if line.sbu is None else f"{line.sbu:,.0f}"
    limits = line.stage, _hours(line.gpu_hours), _hours(line.core_hours), sbu
    if not line.measured:
        return *limits, "", "", NOT_MEASURED
    of_all = "" if line.measured == line.jobs else f"{line.measured} of {line.jobs} jobs: "
    estimate = UNKNOWN if line.sbu is None else f"~{line.estimate_sbu:,.1f}"
    hours = _hours(line.estimate_hours)
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
    yield from _table(rows)
    if any(line.rate is None for line in plan.reading):
        yield f"Without steps/s the rate is {NOT_MEASURED}: what a step reads times the steps per second."


def _read(line: ReadingLine) -> tuple[str, ...]:
    epoch = UNKNOWN if line.epoch_bytes is None else _bytes(line.epoch_bytes)
    steps = UNKNOWN if line.steps is None else f"{line.steps:,}"
    told = line.run, f"{line.batch_size:,}", _bytes(line.step_bytes), f"{line.step_reads:,}", epoch, steps
    if line.rate is None:
        return *told, UNLIMITED, UNLIMITED, UNLIMITED
    speed = 1 / line.rate.seconds_per_step
    return *told, f"~{speed:.2f}", f"~{_bytes(line.step_bytes * speed)}/s", f"~{line.step_reads * speed:,.0f}"


def _table(rows: Sequence[tuple[str, ...]], *, left: Sequence[int] = (0,)) -> Iterator[str]:
    """Yield aligned lines: the columns in `left` to the left, numbers to the right."""
    cells_of = [row for row in rows if any(row[1:])]  # a heading between rows may be as long as a path is
    widths = [max(len(row[column]) for row in cells_of) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _bytes(count: float) -> str:
    for size, unit in SIZES:
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B" if count else "0"


def _hours(hours: float) -> str:
    if 0 < hours < SHORTEST_HOURS:
        return f"<{SHORTEST_HOURS}"
    return f"{hours:,.1f}" if hours >= 1 or not hours else f"{hours:.2f}"


def _minutes(minutes: int) -> str:
    days, rest = divmod(minutes, MINUTES_PER_DAY)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}" if days else f"{rest // 60}:{rest % 60:02d}"
