"""Plain text of plans: aligned tables, sizes and times that are short to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

SIZES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MINUTES_PER_DAY, SHORTEST_HOURS = 24 * 60, 0.01
Rows = list[tuple[str, ...]]


def table_lines(rows: Sequence[tuple[str, ...]], *, left: Sequence[int] = (0,)) -> Iterator[str]:
    """Yield aligned lines: the columns in `left` to the left, numbers to the right."""
    cells_of = [row for row in rows if any(row[1:])]  # a heading between rows may be as long as a path is
    widths = [max(len(row[column]) for row in cells_of) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def bytes_text(count: float) -> str:
    """Return bytes with three digits and a unit, for instance 13.2 TB."""
    for size, unit in SIZES:
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B" if count else "0"


def hours_text(hours: float) -> str:
    """Return hours with one digit after the point, two below an hour."""
    if 0 < hours < SHORTEST_HOURS:
        return f"<{SHORTEST_HOURS}"
    return f"{hours:,.1f}" if hours >= 1 or not hours else f"{hours:.2f}"


def minutes_text(minutes: int) -> str:
    """Return minutes as hours:minutes, with days in front where there are some."""
    days, rest = divmod(minutes, MINUTES_PER_DAY)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}" if days else f"{rest // 60}:{rest % 60:02d}"
