"""Files that are generated from the configuration models: default YAML, JSON schema and the reference for people.

`python -m flowkit config-files` writes them into `workflow/config/`; a test keeps them in step with the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flowkit.config import Config
from flowkit.datasets import DATASET_KINDS, Archive
from flowkit.sections import Encoder, Encoders

# What the models leave open: the real run that a new user starts from.
DEFAULT_EXPERIMENT: dict[str, Any] = {
    "experiment": "default",
    "datasets": {
        "train": {"kind": "folder", "path": "shards/train"},
        "evaluation": {"kind": "folder", "path": "shards/evaluation"},
    },
    "encoders": {
        "source": {"name": "open_clip:EVA02-L-14/merged2b_s4b_b131k"},
        "target": {"name": "open_clip:ViT-L-14-quickgelu/openai"},
    },
    "runs": {"flow": {}, "regression": {"objective": {"kind": "regression"}}},
}


def config_files() -> dict[str, str]:
    """Return {file name: text} of everything generated."""
    schema = json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    return {"default.yaml": _default_yaml(), "schema.json": schema, "README.md": _reference()}


def write_config_files(folder: Path) -> list[Path]:
    """Write the generated files and return their paths."""
    written = []
    for name, text in config_files().items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _default_yaml() -> str:
    config = Config.model_validate(DEFAULT_EXPERIMENT)
    lines = [
        "# Every setting with its default. Generated from flowkit/sections.py by `python -m flowkit config-files`.",
        "",
    ]
    for name, field in Config.model_fields.items():
        value = config.model_dump(mode="json")[name]
        lines.append(f"# {field.description}")
        if isinstance(annotation := field.annotation, type) and issubclass(annotation, BaseModel):
            lines += [f"{name}:", *_yaml_section(annotation, value)]
        else:
            lines += yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True).splitlines()
        lines.append("")
    return "\n".join(lines)


def _yaml_section(model: type[BaseModel], values: dict[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"  # {field.description}"
        value = yaml.safe_dump(values[name], sort_keys=False, default_flow_style=True, width=1000)
        yield f"  {name}: {value.splitlines()[0]}"


def _reference() -> str:
    lines = [
        "# Configuration reference",
        "",
        "Generated from `flowkit/sections.py` and `flowkit/config.py` by `python -m flowkit config-files`.",
        "An unknown key is an error that names the nearest one.",
        "`demo.yaml` is the demo, `default.yaml` holds every setting, `schema.json` is for editors.",
        "`flowkit check FILE` validates a file without touching data.",
        "",
    ]
    sections: list[tuple[str, type[BaseModel]]] = [
        *((f"datasets.<name> (kind: {kind})", model) for kind, model in DATASET_KINDS.items()),
        ("datasets.<name>.pictures, datasets.<name>.annotations (kind: coco)", Archive),
        ("encoders.source, encoders.target", Encoder),
        ("encoders", Encoders),
    ]
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if name != "encoders" and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            sections.append((name, annotation))
    lines += [*_table("top level", Config)]
    for title, model in sections:
        lines += _table(title, model)
    return "\n".join(lines)


def _table(title: str, model: type[BaseModel]) -> list[str]:
    rows = [f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]
    rows += [
        f"| `{name}` | {_default(field)} | {_meaning(field)} |" for name, field in model.model_fields.items()
    ]
    return [*rows, ""]


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "see below"
    if field.default is PydanticUndefined:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, BaseModel):
        return ", ".join(f"{key} `{item}`" for key, item in value.model_dump().items())
    return f"`{json.dumps(value)}`"


def _meaning(field: FieldInfo) -> str:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    text = field.description or ""
    return f"{text} One of {', '.join(f'`{choice}`' for choice in choices)}." if len(choices) > 1 else text
