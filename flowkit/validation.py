"""Validation of configuration sections: strict scalars, and errors of one line that name key, value and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError

from flowkit.errors import ConfigError


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


Whole = Annotated[int, Strict()]
Number = Annotated[float, BeforeValidator(_no_switch)]
Switch = Annotated[bool, Strict()]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversion of text to whole numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=Section)


def validated(
    model: type[ModelT], raw: Mapping[str, Any], *, kinds: Mapping[str, type[Section]], prefix: str = ""
) -> ModelT:
    """Return the section that `raw` describes, or raise `ConfigError` with one line per problem.

    `kinds` are the models behind the tags of a tagged union; `prefix` stands in front of every key in a message.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_describe(model, item, kinds, prefix) for item in error.errors())
        ) from None


def _describe(model: type[BaseModel], item: Any, kinds: Mapping[str, type[Section]], prefix: str) -> str:
    """Return one line for one validation problem: key, value, what is expected, the nearest key."""
    location = [str(part) for part in item["loc"] if part not in kinds]
    where = prefix + ".".join(location) if location else "config"
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1], kinds)
        return f"{where}: unknown key{nearest(location[-1], known) or '; known here: ' + ', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{where}: missing, it has no default"
    if isinstance(item["input"], (dict, BaseModel)):
        return f"{where}: {message}"
    return f"{where}={item['input']!r}: {message}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known word nearest to a mistyped one, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{found[0]}'?" if found else ""


def _fields_at(
    model: type[BaseModel], location: tuple[Any, ...], kinds: Mapping[str, type[Section]]
) -> list[str]:
    """Return the keys that exist at a place of the model, following the sections named in `location`."""
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if part in kinds:
            model = kinds[part]
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
