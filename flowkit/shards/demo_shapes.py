"""The demo data: small captioned pictures of coloured shapes, drawn from a seed.

An image shows one or two objects (4 shapes, 8 colours, 2 sizes, plain or striped) on one of 3 backgrounds;
two objects stand in one of 4 relations. `draw(seed, index)` is a pure function: the scene comes from the raw
bits of a Philox counter keyed by (seed, index), the pixels from integer arithmetic. Seeds of
`RESERVED_SEEDS_FROM` and above belong to the demo towers: no data set shares a series with their training.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from flowkit.errors import ConfigError, ShardError
from flowkit.shards.demo_raster import CANVAS_PIXELS, Mark, paint
from flowkit.shards.tar_writer import plan_tars, write_tar

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (235, 225, 60),
    "green": (40, 160, 60),
    "cyan": (60, 210, 220),
    "blue": (40, 70, 220),
    "purple": (140, 50, 170),
    "pink": (245, 150, 190),
}
SIZES = {"small": 9, "large": 13}  # radius on the 64 px canvas
TEXTURES = ("plain", "striped")
BACKGROUNDS = {"black": (15, 15, 15), "gray": (125, 125, 125), "white": (240, 240, 240)}
RELATIONS = {
    "left of": (0, -16),
    "right of": (0, 16),
    "above": (-16, 0),
    "below": (16, 0),
}  # (y, x) of the first
VOCABULARY = tuple(
    sorted({"a", "on", "background", "striped", "left", "right", "of", "above", "below"}
           .union(SHAPES, COLOURS, SIZES, BACKGROUNDS))
)  # fmt: skip

PLACE_JITTER = 2  # canvas pixels
TONE_JITTER = 8  # grey levels
RESERVED_SEEDS_FROM = 2**32
HARD_NEGATIVE_GROUP = len(SHAPES)


@dataclass(frozen=True)
class Thing:
    """One object in words."""

    shape: str
    colour: str
    size: str
    texture: str

    def words(self) -> str:
        """Return for instance `small red striped circle`."""
        texture = "striped " if self.texture == "striped" else ""
        return f"{self.size} {self.colour} {texture}{self.shape}"


@dataclass(frozen=True)
class Scene:
    """What an image shows; `jitter` holds the offsets (y, x) and tone shifts that no caption tells."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    jitter: tuple[int, ...]


@dataclass(frozen=True)
class Drawing:
    """One image with its caption and its attributes (JSON values)."""

    image: Image.Image
    caption: str
    attributes: dict[str, object]


class Dice:
    """Choices from the raw bits of Philox keyed by (seed, index): the same with every numpy version."""

    def __init__(self, seed: int, index: int) -> None:
        if not (0 <= seed < 2**64 and 0 <= index < 2**64):
            raise ValueError(f"seed {seed} and index {index} must be between 0 and 2**64 - 1")
        key = np.array([seed, index], dtype=np.uint64)
        self._bits = iter(np.random.Philox(key=key).random_raw(64).tolist())

    def below(self, count: int) -> int:
        """Return a number from 0 to count - 1."""
        return next(self._bits) % count

    def pick(self, options: tuple[str, ...]) -> str:
        """Return one of the options."""
        return options[self.below(len(options))]

    def around_zero(self, reach: int) -> int:
        """Return a number from -reach to reach."""
        return self.below(2 * reach + 1) - reach


def scene(seed: int, index: int) -> Scene:
    """Return what image `index` of the series `seed` shows."""
    dice = Dice(seed, index)
    things = tuple(
        Thing(dice.pick(SHAPES), dice.pick(tuple(COLOURS)), dice.pick(tuple(SIZES)), dice.pick(TEXTURES))
        for _ in range(1 + dice.below(2))
    )
    relation = dice.pick(tuple(RELATIONS)) if len(things) == 2 else None
    background = dice.pick(tuple(BACKGROUNDS))
    places = tuple(dice.around_zero(PLACE_JITTER) for _ in range(4))
    tones = tuple(dice.around_zero(TONE_JITTER) for _ in range(9))
    return Scene(things, relation, background, places + tones)


def render(what: Scene) -> Drawing:
    """Return the picture of a scene with its caption and attributes."""
    middle = CANVAS_PIXELS // 2
    step_y, step_x = RELATIONS[what.relation] if what.relation else (0, 0)
    marks = []
    for number, thing in enumerate(what.things):
        side = 1 if number == 0 else -1
        shift_y, shift_x = what.jitter[2 * number : 2 * number + 2]
        marks.append(
            Mark(
                shape=thing.shape,
                radius=SIZES[thing.size],
                center_yx=(middle + side * step_y + shift_y, middle + side * step_x + shift_x),
                colour=toned(COLOURS[thing.colour], what.jitter[4 + 3 * number : 7 + 3 * number]),
                striped=thing.texture == "striped",
            )
        )
    pixels = paint(toned(BACKGROUNDS[what.background], what.jitter[10:13]), tuple(marks))
    return Drawing(Image.fromarray(pixels), caption(what), _attributes(what))


def draw(seed: int, index: int) -> Drawing:
    """Return image `index` of the series `seed`: 32 x 32 RGB, the same on every call and machine."""
    return render(scene(seed, index))


def caption(what: Scene) -> str:
    """Return for instance `a small red circle above a large blue striped cross on a gray background`."""
    things = f" {what.relation} ".join(f"a {thing.words()}" for thing in what.things)
    return f"{things} on a {what.background} background"


def hard_negatives(seed: int, index: int) -> list[Drawing]:
    """Return four drawings equal in everything but the shape of one object, one for each shape."""
    base = scene(seed, index)
    changed = index % len(base.things)
    group = []
    for shape in SHAPES:
        things = list(base.things)
        things[changed] = replace(things[changed], shape=shape)
        group.append(render(replace(base, things=tuple(things))))
    return group


def image_classes(attributes: dict[str, object]) -> tuple[str, ...]:
    """Return the class names (`red circle`) of the objects of an image, in the order of the caption."""
    objects = attributes.get("objects")
    if not isinstance(objects, list):
        raise ShardError(
            f"attributes {attributes!r} have no list 'objects': the sample is not of the demo set"
        )
    return tuple(f"{thing['colour']} {thing['shape']}" for thing in objects)


def class_prompts() -> tuple[list[str], list[str]]:
    """Return the 32 colour x shape class names and their prompts (`red circle`, `a red circle`)."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    return names, [f"a {name}" for name in names]


def write_shards(folder: Path, *, images: int, images_per_shard: int, seed: int) -> list[Path]:
    """Write the series `seed` as webdataset tars `folder/00000.tar` ... (png, txt, json); return their paths.

    The bytes are the same on every run; each tar gets its name only when it is complete. Raises `ConfigError`
    for counts below 1 or a reserved seed, `ShardError` if the folder holds tars that are not part of the set.
    """
    if images < 1 or images_per_shard < 1:
        raise ConfigError(
            f"images = {images}, images_per_shard = {images_per_shard}: both must be at least 1; raise them"
        )
    demand_open_seed(seed)
    plan = plan_tars(folder, images, images_per_shard)
    for tar, indices in plan:
        write_tar(tar, (_record(seed, index) for index in indices))
    return [tar for tar, _ in plan]


def _record(seed: int, index: int) -> dict[str, str | bytes]:
    drawing = draw(seed, index)
    png = io.BytesIO()
    drawing.image.save(png, format="PNG")
    return {
        "__key__": f"{index:08d}",
        "png": png.getvalue(),
        "txt": drawing.caption.encode(),
        "json": json.dumps({"attributes": drawing.attributes}, sort_keys=True).encode(),
    }


def _attributes(what: Scene) -> dict[str, object]:
    objects = [
        {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "texture": thing.texture}
        for thing in what.things
    ]
    return {"objects": objects, "relation": what.relation, "background": what.background}


def demand_open_seed(seed: int) -> None:
    """Raise `ConfigError` for the seed of a series that no data set may draw."""
    if not 0 <= seed < RESERVED_SEEDS_FROM:
        raise ConfigError(f"demo seed {seed} is not between 0 and {RESERVED_SEEDS_FROM - 1}; choose another")


def toned(colour: tuple[int, int, int], shifts: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a colour with a shift of grey levels for each channel, kept within 0 to 255."""
    red, green, blue = (min(255, max(0, level + shift)) for level, shift in zip(colour, shifts, strict=True))
    return red, green, blue
