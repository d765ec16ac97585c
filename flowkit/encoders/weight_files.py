"""The files that hold an encoder's weights: one file, or a folder of numbered shards as the hub has them.

A folder is read through its `pytorch_model.bin.index.json` where it has one, else by the numbers in the names; a shard
that is not there is an error and not a smaller model. Needs no torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from flowkit.errors import EncoderError

SHARD_INDEX = "pytorch_model.bin.index.json"
_SHARD = re.compile(r"pytorch_model-(\d{5})-of-(\d{5})\.bin")


def weight_files(path: Path) -> list[Path]:
    """Return the files of weights at `path`, in name order: the file itself, or the shards of a folder.

    Raises `EncoderError` if there is nothing, no shard in the folder, or one is missing.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise EncoderError(f"weights {path} do not exist; fetch them first, or correct the path")
    index = path / SHARD_INDEX
    names = _named_in(index) if index.is_file() else _numbered_in(path)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise EncoderError(
            f"{path} lacks {missing[0]} ({len(missing)} of {len(names)} shards); fetch the folder again"
        )
    return [path / name for name in names]


def _named_in(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as fault:
        raise EncoderError(f"{index} is not an index of shards ({fault!r}); fetch it again") from None
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strange or not names:
        raise EncoderError(
            f"{index} names {strange[0]!r}, expected names of files beside it"
            if strange
            else f"{index} names no shard"
        )
    return names


def _numbered_in(folder: Path) -> list[str]:
    found = [match for file in folder.iterdir() if (match := _SHARD.fullmatch(file.name))]
    totals = {match[2] for match in found}
    if len(totals) != 1:
        raise EncoderError(
            f"{folder} holds {len(totals) or 'no'} sets of pytorch_model-NNNNN-of-NNNNN.bin, expected one; "
            "name the folder of the shards, or the .pt file"
        )
    total = totals.pop()
    return [f"pytorch_model-{number:05d}-of-{total}.bin" for number in range(1, int(total) + 1)]
