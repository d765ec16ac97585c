"""The classes of a data set, for zero-shot classification: their prompts, and which of them an image shows.

demo   colour x shape; images with two objects show none, because a prompt could join the colour of one with the
       shape of the other
solids the 8 colours; views of objects with several colours show none, because not every view shows each of them
coco   the 80 categories of COCO 2017; an image shows those of its instance annotations

A prediction is a hit if it is among the classes that the image shows; images that show none are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from flowkit.errors import StageError


def class_texts(kind: str, has_instances: bool) -> tuple[list[str], list[str]]:
    """Return names and prompts of the classes of a kind of data set; both are empty if it has none.

    `has_instances`: the tars of a COCO say which categories are in its images.
    """
    if kind == "demo":
        from flowkit.shards import demo_shapes

        return demo_shapes.class_prompts()
    if kind == "solids":
        from flowkit.shards import demo_solids

        return demo_solids.class_prompts()
    if kind == "coco" and has_instances:
        from flowkit.shards import coco_categories

        return coco_categories.class_prompts()
    return [], []


def image_class_names(kind: str, attributes_json_texts: Iterable[str | None]) -> list[tuple[str, ...]]:
    """Return the names of the classes that each image shows, given the attributes of its sample as JSON.

    To be asked of data sets of which `class_texts` returns some. Raises `StageError` if samples of COCO do not say
    what they show, `ShardError` if samples are not of the demo set or the solids.
    """
    if kind == "demo":
        from flowkit.shards.demo_shapes import image_classes

        return [_only(image_classes(_attributes(text))) for text in attributes_json_texts]
    if kind == "solids":
        from flowkit.shards import demo_solids

        return [_only(demo_solids.image_classes(_attributes(text))) for text in attributes_json_texts]
    if kind == "coco":
        return [_categories(_attributes(text)) for text in attributes_json_texts]
    return [() for _ in attributes_json_texts]


def _only(names: tuple[str, ...]) -> tuple[str, ...]:
    return names if len(names) == 1 else ()


def _attributes(text: str | None) -> dict[str, Any]:
    return dict(json.loads(text)) if text else {}


def _categories(attributes: dict[str, Any]) -> tuple[str, ...]:
    if "categories" not in attributes:
        raise StageError(
            f"image {attributes.get('image_id', 'without id')}: its sample does not say which categories it shows; "
            "run stages shards and extract again with datasets.NAME.instances, or set it to null"
        )
    return tuple(attributes["categories"])
