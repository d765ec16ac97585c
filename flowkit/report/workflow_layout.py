"""Where the boxes of the workflow stand: columns from left to right, few crossings, short ways, the longest chain.

A node stands one column after the last of those that it waits for. Ways that pass a column get a lane of their own
there, one for all that leave the same box, so that no arrow runs through a box. The order in a column follows the mean
place of the neighbours; heights are the least squares solution that keeps order and distance. No randomness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from flowkit.report.workflow_nodes import Node

MOST_IN_A_COLUMN = 14
RUN_STAGES = ("train", "sample", "evaluate", "page")
LANE_HEIGHT, GAP = 6.0, 14.0
SWEEPS = 12

Spot = tuple[str, int]
"""A box or a lane of the ways that leave it: name of the node, column."""


@dataclass(frozen=True)
class Layout:
    """Columns and heights (of centres, downwards from 0) of boxes and lanes, and the steps from one to the next."""

    column: Mapping[str, int]
    height: Mapping[Spot, float]
    steps: Sequence[tuple[Spot, Spot]]
    lower_edge: float

    def way(self, source: str, target: str) -> list[tuple[Spot, Spot]]:
        """Return the steps of the way from one box to another."""
        stops = [(source, column) for column in range(self.column[source], self.column[target])]
        return list(pairwise([*stops, (target, self.column[target])]))


def columns_of(after: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Return the column of each node: 0, or one more than the last of those it waits for."""
    columns: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in columns:
            columns[name] = 1 + max((column(one) for one in after[name] if one in after), default=-1)
        return columns[name]

    for name in after:
        column(name)
    return columns


def longest_chain(nodes: Sequence[Node]) -> list[Node]:
    """Return the chain of nodes that wait for one another with the longest time, empty where no time is known.

    Of a node that several processes share, the longest process counts.
    """
    by_name = {node.name: node for node in nodes}
    best: dict[str, tuple[float, list[str]]] = {}

    def chain(name: str) -> tuple[float, list[str]]:
        if name not in best:
            ways = [chain(one) for one in by_name[name].after if one in by_name]
            seconds, names = max(ways, key=lambda way: way[0], default=(0.0, []))
            best[name] = (seconds + (by_name[name].longest or 0.0), [*names, name])
        return best[name]

    seconds, names = max((chain(node.name) for node in nodes), key=lambda way: way[0], default=(0.0, []))
    return [by_name[name] for name in names] if seconds else []


def folded(nodes: Sequence[Node], most: int = MOST_IN_A_COLUMN) -> tuple[list[Node], dict[str, str]]:
    """Return nodes with crowds of one stage in one column as one node, and for each name the one that shows it."""
    columns = columns_of({node.name: node.after for node in nodes})
    crowds = Counter((columns[node.name], node.stage) for node in nodes)
    too_many = set()
    for column in dict.fromkeys(columns.values()):
        here = {crowd: count for crowd, count in crowds.items() if crowd[0] == column}
        for crowd, count in sorted(here.items(), key=lambda item: -item[1]):
            if sum(here.values()) > most and count > 1:
                too_many.add(crowd)
                here[crowd] = 1
    shown_by = {
        node.name: f"{node.stage}/{columns[node.name]}"
        if (columns[node.name], node.stage) in too_many
        else node.name
        for node in nodes
    }
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(shown_by[node.name], []).append(node)
    return [_joined(name, group, shown_by) for name, group in groups.items()], shown_by


def _joined(name: str, group: Sequence[Node], shown_by: Mapping[str, str]) -> Node:
    first = group[0]
    after = tuple(dict.fromkeys(shown_by[one] for node in group for one in node.after if one in shown_by))
    if len(group) == 1:
        return replace(first, after=after)
    results = sum(node.results for node in group)
    known = [node.seconds for node in group if node.seconds is not None]
    return Node(
        name,
        first.stage,
        f"{results} {'runs' if first.stage in RUN_STAGES else 'parts'}",
        after,
        first.folder,
        results=results,
        done=sum(node.done for node in group),
        without_record=[file for node in group for file in node.without_record],
        processes=sum(node.processes for node in group),
        seconds=sum(known) if known else None,
        longest=max((node.longest for node in group if node.longest is not None), default=None),
        ran=[one for node in group for one in node.ran],
    )


def lay_out(nodes: Sequence[Node], box_heights: Mapping[str, float]) -> Layout:
    """Return where boxes of these heights and the ways between them go."""
    after = {node.name: node.after for node in nodes}
    column = columns_of(after)
    steps: dict[tuple[Spot, Spot], None] = {}
    layout = Layout(column, {}, [], 0.0)
    for node in nodes:
        for source in node.after:
            steps |= dict.fromkeys(layout.way(source, node.name))
    spots = dict.fromkeys([(node.name, column[node.name]) for node in nodes])
    spots |= dict.fromkeys(spot for step in steps for spot in step)
    found: dict[int, list[Spot]] = {}
    for spot in spots:
        found.setdefault(spot[1], []).append(spot)
    order = _ordered([found[number] for number in sorted(found)], list(steps))
    sizes = {spot: box_heights[spot[0]] if column[spot[0]] == spot[1] else LANE_HEIGHT for spot in spots}
    heights = _heights(order, list(steps), sizes)
    top = min((heights[spot] - sizes[spot] / 2 for spot in spots), default=0.0)
    moved = {spot: height - top for spot, height in heights.items()}
    lower = max((moved[spot] + sizes[spot] / 2 for spot in spots), default=0.0)
    return replace(layout, height=moved, steps=list(steps), lower_edge=lower)


def _neighbours(steps: Iterable[tuple[Spot, Spot]]) -> tuple[dict[Spot, list[Spot]], dict[Spot, list[Spot]]]:
    before: dict[Spot, list[Spot]] = {}
    behind: dict[Spot, list[Spot]] = {}
    for source, target in steps:
        before.setdefault(target, []).append(source)
        behind.setdefault(source, []).append(target)
    return before, behind


def _ordered(columns: list[list[Spot]], steps: Sequence[tuple[Spot, Spot]]) -> list[list[Spot]]:
    """Return the columns in the order with the fewest crossings that sweeps to and fro come by."""
    before, behind = _neighbours(steps)
    best, fewest = columns, _crossings(columns, steps)
    for sweep in range(SWEEPS):
        columns = [*columns]
        if sweep % 2 == 0:
            for number in range(1, len(columns)):
                columns[number] = _by_middle(columns[number], columns[number - 1], before)
        else:
            for number in range(len(columns) - 2, -1, -1):
                columns[number] = _by_middle(columns[number], columns[number + 1], behind)
        crossings = _crossings(columns, steps)
        if crossings < fewest:
            best, fewest = columns, crossings
    return best


def _by_middle(
    column: Sequence[Spot], beside: Sequence[Spot], neighbours: Mapping[Spot, Sequence[Spot]]
) -> list[Spot]:
    """Return a column by the mean place of its neighbours in the column beside it; what has none stays about there."""
    place = {spot: index for index, spot in enumerate(beside)}
    middles = {}
    for index, spot in enumerate(column):
        near = [place[one] for one in neighbours.get(spot, ())]
        middles[spot] = sum(near) / len(near) if near else index * len(beside) / len(column)
    return sorted(column, key=middles.__getitem__)


def _crossings(columns: Sequence[Sequence[Spot]], steps: Sequence[tuple[Spot, Spot]]) -> int:
    place = {spot: index for column in columns for index, spot in enumerate(column)}
    crossings = 0
    for number in range(len(columns) - 1):
        here = [(place[source], place[target]) for source, target in steps if source[1] == number]
        crossings += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in combinations(here, 2))
    return crossings


def _heights(
    columns: Sequence[Sequence[Spot]], steps: Sequence[tuple[Spot, Spot]], sizes: Mapping[Spot, float]
) -> dict[Spot, float]:
    """Return the heights of all centres: each as near to its neighbours as the others in its column let it be."""
    before, behind = _neighbours(steps)
    heights: dict[Spot, float] = {}
    for column in columns:
        heights |= zip(
            column, _kept_apart([0.0] * len(column), [sizes[spot] for spot in column]), strict=True
        )
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            wanted = []
            for spot in column:
                near = [heights[one] for one in (*before.get(spot, ()), *behind.get(spot, ()))]
                wanted.append(sum(near) / len(near) if near else heights[spot])
            heights |= zip(column, _kept_apart(wanted, [sizes[spot] for spot in column]), strict=True)
    return heights


def _kept_apart(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return the centres nearest to those wanted (least squares) that keep the order and a gap between the boxes."""
    offsets = [0.0]
    for upper, lower in pairwise(sizes):
        offsets.append(offsets[-1] + (upper + lower) / 2 + GAP)
    pools: list[tuple[float, int]] = []
    for place, offset in zip(wanted, offsets, strict=False):
        pools.append((place - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (upper, above), (lower, below) = pools[-2:]
            pools[-2:] = [((upper * above + lower * below) / (above + below), above + below)]
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]
