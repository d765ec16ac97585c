"""The jobs of an experiment as a small graph that the report draws: a few kilobytes of JSON for any number of tars.

    {"name": "extract_train_demo_eva", "stage": "extract", "label": "demo-eva · train",
     "after": ["shards_train", "weights_demo_eva"], "folders": [pattern, ...]}

Jobs that share out one work by tars or runs are one node, so machine settings such as `shards_per_job` change nothing.
A pattern is a result folder, `data:` below the data root or `results:` below the results, or a numbered row of them:
`{"before": "data:features/train/x/", "first": 0, "last": 12, "digits": 5, "after": ""}`. Edges that others imply are
left out. `flowkit.report.workflow_nodes` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from flowkit.paths import Places
from flowkit.stages.jobs import Job

SHARED_WORK: dict[str, tuple[str, ...]] = {
    "fetch": ("dataset",),
    "extract": ("dataset", "encoder"),
    "convert": ("dataset", "encoder"),
    "page": (),
}
"""Stages whose jobs are parts of one work, and what of their target tells such works apart."""
NOT_SHOWN = ("report",)
"""The graph is part of the report, so there is nothing to say yet of how that was made."""
NAMES_IN_A_LABEL = 3

_BATCH = re.compile(r"_[0-9]{4,}$")
_DIGEST = re.compile(r"-[0-9a-f]{8}$")
_NUMBER = re.compile(r"[0-9]+")


def nodes_of(jobs: Mapping[str, Job], places: Places) -> list[dict[str, Any]]:
    """Return the nodes, in the order of the jobs; `jobs` are by rule name, each after those it depends on."""
    works: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs.values():
        if job.spec.stage not in NOT_SHOWN:
            works.setdefault(_work(job), []).append(job)
    names = {work: _name(members) for work, members in works.items()}
    makers = {
        folder: names[work] for work, members in works.items() for job in members for folder in job.folders
    }
    after = {
        names[work]: {makers[read] for job in members for read in job.inputs if read in makers}
        - {names[work]}
        for work, members in works.items()
    }
    needed = without_implied(after)
    labels = _labels({names[work]: members for work, members in works.items()})
    return [
        {
            "name": names[work],
            "stage": members[0].spec.stage,
            "label": labels[names[work]],
            "after": [name for name in names.values() if name in needed[names[work]]],
            "folders": patterns([_place(folder, places) for job in members for folder in job.folders]),
        }
        for work, members in works.items()
    ]


def without_implied(after: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the edges of a graph without those that a longer way implies; raises `ValueError` for a circle."""
    earlier: dict[str, set[str]] = {}

    def all_before(name: str, way: tuple[str, ...]) -> set[str]:
        if name in way:
            raise ValueError(f"{' -> '.join((*way, name))}: jobs wait for one another")
        if name not in earlier:
            direct = after[name]
            earlier[name] = direct.union(*(all_before(one, (*way, name)) for one in direct))
        return earlier[name]

    for name in after:
        all_before(name, ())
    return {
        name: {one for one in direct if not any(one in earlier[other] for other in direct)}
        for name, direct in after.items()
    }


def patterns(folders: Iterable[str]) -> list[str | dict[str, Any]]:
    """Return folders as few patterns: three or more whose last names differ in one number, without a gap, are one."""
    beside: dict[str, list[str]] = {}
    for folder in folders:
        parent, _, name = folder.rpartition("/")
        beside.setdefault(f"{parent}/", []).append(name)
    return [pattern for parent, names in beside.items() for pattern in _patterns_of(parent, names)]


def _patterns_of(parent: str, names: Sequence[str]) -> Iterator[str | dict[str, Any]]:
    place = _counting_place(names)
    alike: dict[tuple[str, str, int], list[int]] = {}
    for name in names:
        before, digits, after = _split_at_number(name, place)
        if not digits:
            yield parent + name
        else:
            alike.setdefault((parent + before, after, len(digits)), []).append(int(digits))
    for (before, after, width), numbers in alike.items():
        for row in _without_gaps(sorted(numbers)):
            if len(row) > 2:
                ends = {"first": row[0], "last": row[-1], "digits": width}
                yield {"before": before, **ends, "after": after}
            else:
                yield from (f"{before}{number:0{width}d}{after}" for number in row)


def _counting_place(names: Sequence[str]) -> int:
    """Return which of the numbers in each name counts: of `00003-of-00100` the first."""
    places = range(max(len(_NUMBER.findall(name)) for name in names))

    def kinds(place: int) -> int:
        parts = (_split_at_number(name, place) for name in names)
        return len({(before, after) for before, _, after in parts})

    return min(reversed(places), key=kinds, default=0)


def _split_at_number(name: str, place: int) -> tuple[str, str, str]:
    """Return a name as what is before, in, and after one of its numbers; all before where it has too few."""
    found = [match for number, match in enumerate(_NUMBER.finditer(name)) if number == place]
    if not found:
        return name, "", ""
    return name[: found[0].start()], found[0].group(), name[found[0].end() :]


def _without_gaps(numbers: Sequence[int]) -> Iterator[list[int]]:
    for _, row in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        yield [number for _, number in row]


def _work(job: Job) -> tuple[str, ...]:
    stage, target = job.spec.stage, job.spec.target
    if stage not in SHARED_WORK:
        return (stage, job.name)
    return (stage, *(target.get(key, "") for key in SHARED_WORK[stage]))


def _name(members: Sequence[Job]) -> str:
    """Return the name of a node: of its rule, or what the rules of its batches have in common."""
    first = members[0]
    if not SHARED_WORK.get(first.spec.stage, ("one job",)):
        return first.spec.stage
    return first.name if len(members) == 1 else _BATCH.sub("", first.name)


def _place(folder: Path, places: Places) -> str:
    """Return where a result lies without the roots, which are of one machine."""
    if folder.is_relative_to(places.experiment_folder):
        return f"results:{folder.relative_to(places.results).as_posix()}"
    return f"data:{folder.relative_to(places.data_root).as_posix()}"


def _labels(works: Mapping[str, Sequence[Job]]) -> dict[str, str]:
    """Return what each node works on; encoders that share a name keep the digest of their settings."""
    short = {name: _label(members) for name, members in works.items()}
    taken = [(members[0].spec.stage, short[name]) for name, members in works.items()]
    return {
        name: short[name]
        if taken.count((members[0].spec.stage, short[name])) == 1
        else _label(members, keep_digest=True)
        for name, members in works.items()
    }


def _label(members: Sequence[Job], *, keep_digest: bool = False) -> str:
    target = members[0].spec.target
    if (run := target.get("run")) is not None:
        return run
    for key, what in (("runs", "runs"), ("baselines", "closed forms"), ("ceilings", "kinds")):
        if key in target:
            names = [name for job in members for name in job.spec.target[key].split(",")]
            return ", ".join(names) if len(names) <= NAMES_IN_A_LABEL else f"{len(names)} {what}"
    parts = [target[key] for key in ("encoder", "dataset") if key in target]
    if "encoder" in target and not keep_digest:
        parts[0] = _DIGEST.sub("", parts[0])
    return " · ".join(parts)
