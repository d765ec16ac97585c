"""The page on how the results came about: the workflow with its times, settings, versions, machines, and commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.report.data import RunFiles
from flowkit.report.measures import duration
from flowkit.report.rendering import Files, Renderer, figure_files
from flowkit.report.workflow_figure import total_seconds, workflow_figure
from flowkit.report.workflow_layout import longest_chain
from flowkit.report.workflow_nodes import Node
from flowkit.report.workflow_tables import (
    code_table,
    hardware_table,
    settings_of_runs,
    stages_table,
    versions_table,
)

PAGE = "workflow.html"


def workflow_page(
    render: Renderer,
    nodes: Sequence[Node],
    runs: Sequence[RunFiles],
    defaults: Mapping[str, Mapping[str, Any]],
    command: str,
    *,
    pages: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
) -> Files:
    """Return the page, its picture and its data.

    `nodes` come from `read_nodes`, `runs` are those whose settings are compared, with their records; `defaults` are the
    values of the sections that a run overrides. `command` runs the whole workflow. `pages` are the pages of runs,
    `meanings` say in a sentence what a stage does.
    """
    files, figures = figure_files("figures", [workflow_figure(nodes)] if nodes else [])
    modules, code = code_table(nodes)
    page = render(
        "workflow.html.j2",
        figure=figures[0] if figures else None,
        summary=_summary(nodes),
        tiles=_tiles(nodes),
        lost=[file for node in nodes for file in node.without_record],
        stages=stages_table(nodes, pages or {}),
        meanings={stage: text for stage, text in (meanings or {}).items() if _has_stage(nodes, stage)},
        settings=settings_of_runs(runs, defaults),
        versions=versions_table(nodes),
        modules=modules,
        code=code,
        hardware=hardware_table(nodes),
        command=command,
        again=_again(nodes),
    )
    return files | {PAGE: page}


def _has_stage(nodes: Sequence[Node], stage: str) -> bool:
    return any(node.stage == stage for node in nodes)


def _summary(nodes: Sequence[Node]) -> str:
    """Return in a sentence how much is done, where and when."""
    done = sum(node.state == "done" for node in nodes)
    text = (
        f"{done} of {len(nodes)} pieces of work are done"
        if done < len(nodes)
        else f"All {done} pieces of work are done"
    )
    hosts = sorted({host for node in nodes for host in node.hosts})
    if hosts:
        text += f", on {hosts[0]}" if len(hosts) == 1 else f", on {len(hosts)} machines"
    begun = min((node.started for node in nodes if node.started), default=None)
    ended = max((node.ended for node in nodes if node.ended), default=None)
    if begun and ended:
        text += f", the first from {begun:%d %B %Y, %H:%M}, the last until "
        text += f"{ended:%H:%M} UTC" if begun.date() == ended.date() else f"{ended:%d %B %Y, %H:%M} UTC"
    return f"{text}."


def _tiles(nodes: Sequence[Node]) -> list[tuple[str, str, str]]:
    """Return name, value and small print of the few numbers that stand above the picture."""
    if not any(node.seconds is not None for node in nodes):
        return []
    lost = any(node.without_record for node in nodes)
    tiles = [
        ("time of all stages", duration(total_seconds(nodes)), "or more: records are missing" if lost else "")
    ]
    chain = sum(node.longest or 0.0 for node in longest_chain(nodes))
    tiles.append(("longest chain", duration(chain), "with a machine for each process"))
    cpu = [node.cpu_seconds for node in nodes if node.seconds is not None]
    known = [seconds for seconds in cpu if seconds is not None]
    if known:
        tiles.append(
            ("CPU time", duration(sum(known)), "or more: some is unknown" if len(known) < len(cpu) else "")
        )
    memory = [(node.peak_memory_mb, node) for node in nodes if node.peak_memory_mb is not None]
    if memory:
        most, where = max(memory, key=lambda pair: pair[0])
        tiles.append(("peak memory", f"{most / 1024:.1f} GB", f"in {where.title}"))
    return tiles


def _again(nodes: Sequence[Node]) -> tuple[str, str] | None:
    """Return the rule and the folder of the dearest training, as an example of one thing to make anew."""
    made = [node for node in nodes if node.stage == "train" and node.done]
    dearest = max(made, key=lambda node: node.seconds or 0.0, default=None)
    return (dearest.name, shlex.quote(dearest.folder)) if dearest else None
