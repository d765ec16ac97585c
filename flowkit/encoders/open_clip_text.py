"""What the text side of some open_clip models takes from the hub: a tokenizer, and the config of a text tower.

Most models bring their tokenizer with open_clip. Others name a repository, whose few small files transformers reads
from the hub's cache or fetches; what is not to be had is said as such, and never blamed on the weights. Which
tokenizer it is, and with what settings, is open_clip's matter: nothing in here changes a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import open_clip

from flowkit.errors import EncoderError

Tokenizer = Callable[[list[str]], Any]


def load_tokenizer(name: str, model: str) -> Tokenizer:
    """Return the tokenizer of an open_clip model; raises `EncoderError` if it is not to be had."""
    repository = _text_config(model).get("hf_tokenizer_name")
    with _said_as_it_is(name, f"its tokenizer {repository or ''}".rstrip()):
        return open_clip.get_tokenizer(model)


def demand_text_tower(name: str, model: str) -> None:
    """Raise `EncoderError` if the model's text tower is described on the hub, and that is not to be had."""
    repository = _text_config(model).get("hf_model_name")
    if repository:
        with _said_as_it_is(name, f"the config of its text tower {repository}"):
            from transformers import AutoConfig

            AutoConfig.from_pretrained(repository)


def fetch_text_side(name: str, model: str) -> None:
    """Bring both into the hub's cache, if the model takes them from there."""
    demand_text_tower(name, model)
    if _text_config(model).get("hf_tokenizer_name"):
        load_tokenizer(name, model)


def _text_config(model: str) -> dict[str, Any]:
    return (open_clip.get_model_config(model) or {}).get("text_cfg", {})


@contextmanager
def _said_as_it_is(name: str, part: str) -> Iterator[None]:
    try:
        yield
    except ImportError as fault:
        raise EncoderError(
            f"encoder {name!r}: {part} needs a package that is not installed ({_first_line(fault)}); "
            "run `pip install transformers sentencepiece`"
        ) from None
    except (OSError, ValueError) as fault:
        raise EncoderError(
            f"encoder {name!r}: {part} is neither in the cache of the hub nor to be fetched "
            f"({_first_line(fault)}); run the weights stage where there is internet and share that cache "
            "(HF_HOME), or take a model whose tokenizer comes with open_clip"
        ) from None


def _first_line(fault: Exception) -> str:
    return str(fault).strip().partition("\n")[0]
