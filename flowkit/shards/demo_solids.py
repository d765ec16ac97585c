"""The demo data in three dimensions: captioned objects of one or two solids, drawn from a seed, seen from V angles.

An object is one or two solids (5 shapes, the 8 colours of the demo, 2 sizes; plain, striped or two-sided), one above
or beside the other, on one of 3 backgrounds. View v is taken from azimuth + 360 v / V degrees, rounded down to whole
ones, all from the same elevation. Where the circle begins is drawn for each object, and no caption tells it. The light
stands still beside the object, so a side is brighter in some views than in others.

What only some views show: a two-sided solid has a second colour on one side alone, seen in three to six of eight
views; of two solids beside each other the nearer one covers the other, and may leave less than a tenth of a small one
behind a large one. Caption and attributes tell all of it: what one view cannot know, the others of its object do.

`draw(seed, index, views)` is a pure function, as in `demo_shapes`; the scene does not depend on the number of views.
The demo towers know the words for colours, sizes, `striped`, `above`, `below` and backgrounds. The solids' names, `and`
and `beside` are unknown to them and share one id, which no training ever saw: their text towers tell objects apart by
colour and arrangement, not by shape.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flowkit.errors import ConfigError, ShardError
from flowkit.shards.demo_rays import SOLIDS, Solid, half_height, look
from flowkit.shards.demo_shapes import BACKGROUNDS, COLOURS, SIZES, TONE_JITTER, Dice, demand_open_seed, toned
from flowkit.shards.tar_writer import plan_tars, write_tar

TEXTURES = ("plain", "striped", "two-sided")
RELATIONS = ("above", "below", "beside")
ELEVATION, ELEVATION_JITTER = 20, 5  # degrees
PLACE_JITTER = 1  # canvas pixels, along each axis
GAP = 1  # canvas pixels on each side of the middle between two solids beside each other
VIEWS_MAX = 360  # whole degrees


@dataclass(frozen=True)
class Body:
    """One solid in words, and how it is turned; `side` is the second colour of a two-sided one."""

    shape: str
    colour: str
    size: str
    texture: str
    side: str | None
    yaw: int

    def words(self) -> str:
        """Return for instance `small red striped cube` or `large red and blue cone`."""
        colours = self.colour if self.side is None else f"{self.colour} and {self.side}"
        texture = "striped " if self.texture == "striped" else ""
        return f"{self.size} {colours} {texture}{self.shape}"


@dataclass(frozen=True)
class Scene:
    """What all views of an object show; `jitter` holds the offsets (x, y, z) and tone shifts that no caption tells."""

    bodies: tuple[Body, ...]
    relation: str | None
    background: str
    azimuth: int
    elevation: int
    jitter: tuple[int, ...]


@dataclass(frozen=True)
class Views:
    """One object as pixels uint8 [V, 32, 32, 3], with its caption and its attributes (JSON values)."""

    pixels_VHWC: np.ndarray
    caption: str
    attributes: dict[str, object]


def scene(seed: int, index: int) -> Scene:
    """Return what object `index` of the series `seed` is."""
    dice = Dice(seed, index)
    bodies = tuple(_body(dice) for _ in range(1 + dice.below(2)))
    return Scene(
        bodies=bodies,
        relation=dice.pick(RELATIONS) if len(bodies) == 2 else None,
        background=dice.pick(tuple(BACKGROUNDS)),
        azimuth=dice.below(360),
        elevation=ELEVATION + dice.around_zero(ELEVATION_JITTER),
        jitter=(
            *(dice.around_zero(PLACE_JITTER) for _ in range(6)),
            *(dice.around_zero(TONE_JITTER) for _ in range(9)),
        ),
    )


def _body(dice: Dice) -> Body:
    shape, colour, size = dice.pick(SOLIDS), dice.pick(tuple(COLOURS)), dice.pick(tuple(SIZES))
    texture = dice.pick(TEXTURES)
    side = dice.pick(tuple(name for name in COLOURS if name != colour))
    return Body(shape, colour, size, texture, side if texture == "two-sided" else None, dice.below(360))


def view_azimuths(azimuth: int, views: int) -> tuple[int, ...]:
    """Return the degrees that V views are taken from, evenly spaced from that of view 0 on."""
    return tuple((azimuth + 360 * view // views) % 360 for view in range(views))


def render(what: Scene, azimuth: int) -> np.ndarray:
    """Return the image uint8 [32, 32, 3] of a scene from an azimuth in degrees, at the elevation of the scene."""
    solids = tuple(
        Solid(
            shape=body.shape,
            size=SIZES[body.size],
            center=center,
            yaw=body.yaw,
            colour=toned(COLOURS[body.colour], tones),
            striped=body.texture == "striped",
            side=None if body.side is None else toned(COLOURS[body.side], tones),
        )
        for body, center, tones in zip(
            what.bodies, _centers(what), (what.jitter[6:9], what.jitter[9:12]), strict=False
        )
    )
    background = toned(BACKGROUNDS[what.background], what.jitter[12:15])
    return look(background, solids, azimuth=azimuth, elevation=what.elevation)


def _centers(what: Scene) -> list[tuple[float, float, float]]:
    """Return where the solids stand, so that the middle of all of them is near the origin."""
    shifts = (what.jitter[0:3], what.jitter[3:6])
    if what.relation is None:
        places = [(0.0, 0.0)]
    elif what.relation == "beside":
        first, second = (SIZES[body.size] + GAP for body in what.bodies)
        places = [(float(second), 0.0), (-float(first), 0.0)]
    else:
        first_half, second_half = (half_height(body.shape, SIZES[body.size]) for body in what.bodies)
        upwards = 1.0 if what.relation == "above" else -1.0
        places = [(0.0, upwards * second_half), (0.0, -upwards * first_half)]
    return [
        (x + shift_x, float(shift_y), z + shift_z)
        for (x, z), (shift_x, shift_y, shift_z) in zip(places, shifts, strict=False)
    ]


def draw(seed: int, index: int, views: int) -> Views:
    """Return object `index` of the series `seed` from `views` sides, the same on every call and machine."""
    what = scene(seed, index)
    pixels = np.stack([render(what, azimuth) for azimuth in view_azimuths(what.azimuth, views)])
    return Views(pixels, caption(what), _attributes(what))


def caption(what: Scene) -> str:
    """Return for instance `a small red cube above a large blue striped cone on a gray background`."""
    bodies = f" {what.relation} ".join(f"a {body.words()}" for body in what.bodies)
    return f"{bodies} on a {what.background} background"


def image_classes(attributes: dict[str, object]) -> tuple[str, ...]:
    """Return the class names (colours) of an object in the order of the caption, each once, with those of sides."""
    objects = attributes.get("objects")
    if not isinstance(objects, list) or not all("side_colour" in one for one in objects):
        raise ShardError(
            f"attributes {attributes!r} have no list 'objects' with side_colour: the sample is not of the solids"
        )
    colours = [colour for one in objects for colour in (one["colour"], one["side_colour"]) if colour]
    return tuple(dict.fromkeys(colours))


def class_prompts() -> tuple[list[str], list[str]]:
    """Return the 8 colours and their prompts (`red`, `a red circle`).

    Shapes are no classes, because the demo towers know no solid's name; `circle` stands for all of them.
    """
    return list(COLOURS), [f"a {colour} circle" for colour in COLOURS]


def write_solids(folder: Path, *, objects: int, objects_per_shard: int, views: int, seed: int) -> list[Path]:
    """Write the series `seed` as webdataset tars `folder/00000.tar` ...; return their paths.

    A sample is one object: KEY.0.png ... KEY.<V - 1>.png, KEY.txt, KEY.json. The bytes are the same on every run: the
    png files are stored without compression, which no version of a library can change; each tar gets its name only when
    it is complete. Raises `ConfigError` for counts below 1, views outside 2 to 360 or a reserved seed, `ShardError` if
    the folder holds tars that are not part of the set.
    """
    if objects < 1 or objects_per_shard < 1:
        raise ConfigError(
            f"objects = {objects}, objects_per_shard = {objects_per_shard}: both must be at least 1; raise them"
        )
    if not 2 <= views <= VIEWS_MAX:
        raise ConfigError(f"views = {views} is not between 2 and {VIEWS_MAX}; choose another number")
    demand_open_seed(seed)
    plan = plan_tars(folder, objects, objects_per_shard)
    for tar, indices in plan:
        write_tar(tar, (_record(seed, index, views) for index in indices))
    return [tar for tar, _ in plan]


def _record(seed: int, index: int, views: int) -> dict[str, str | bytes]:
    drawn = draw(seed, index, views)
    images = {f"{view}.png": _png(pixels) for view, pixels in enumerate(drawn.pixels_VHWC)}
    return {
        "__key__": f"{index:08d}",
        **images,
        "txt": drawn.caption.encode(),
        "json": json.dumps({"attributes": drawn.attributes}, sort_keys=True).encode(),
    }


def _png(pixels: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", compress_level=0)
    return png.getvalue()


def _attributes(what: Scene) -> dict[str, object]:
    objects = [
        {
            "shape": body.shape,
            "colour": body.colour,
            "size": body.size,
            "texture": body.texture,
            "side_colour": body.side,
        }
        for body in what.bodies
    ]
    return {
        "objects": objects,
        "relation": what.relation,
        "background": what.background,
        "azimuth": what.azimuth,
        "elevation": what.elevation,
    }
