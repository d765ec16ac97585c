"""Data that a page loads with a script element: a page opened from a file may not read other files in any other way.

A data file is one line of plain ASCII, `flowkit.data({...});`. Everything outside ASCII and the signs that mean
something to HTML are written as `\\uXXXX`, so that no word of a stranger can end the script. Keys of objects are ours;
words of strangers are values only (a key `__proto__` would not be one).
"""

from __future__ import annotations

import json
from typing import Any

from flowkit.errors import ReportError

_BEGIN, _END = b"flowkit.data(", b");\n"
_SPECIAL = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&"})


def data_script(value: Any) -> bytes:
    """Return the file that hands `value` to the page; raises `ValueError` for a number that is not finite."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return _BEGIN + text.translate(_SPECIAL).encode("ascii") + _END


def read_data_script(content: bytes) -> Any:
    """Return the value in a data file; raises `ReportError` for anything else."""
    if not (content.startswith(_BEGIN) and content.endswith(_END)):
        raise ReportError(f"this is no data of the report, write it again: {content[:40]!r}")
    try:
        return json.loads(content[len(_BEGIN) : -len(_END)])
    except ValueError as error:
        raise ReportError(f"data of the report are damaged ({error}), write them again") from error


def shortened(value: float, digits: int) -> float:
    """Return a number with so many significant digits."""
    return float(f"{value:.{digits}g}")
