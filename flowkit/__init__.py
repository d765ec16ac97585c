"""flowkit translates the image tokens of one encoder into those of another.

`flowkit.load(folder)` returns a trained translator; everything else is reached through its own module. Nothing inside
the package imports this file, and it imports nothing until `load` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from flowkit.translator import Translator

__version__ = "0.1.0"


def load(folder: str | Path) -> Translator:
    """Return the translator saved in `folder`, ready for `generate(condition, ...)`.

    `folder` is a checkpoint folder or a run's `train/` folder, whose manifest names the checkpoint.
    Raises `CheckpointError` if it is missing, damaged or of an unknown architecture.
    """
    import json
    from pathlib import Path

    from flowkit.translator import Translator

    folder = Path(folder)
    manifest = folder / "manifest.json"
    if manifest.is_file():
        folder = folder / json.loads(manifest.read_text(encoding="utf-8"))["content"]
    return Translator.load(folder)
