"""Ray caster of the demo solids: shaded convex bodies under parallel projection, 64 px canvas averaged to 32 px.

    camera at azimuth a, elevation e:  right = (-sin a, cos a, 0), up = (-sin e cos a, -sin e sin a, cos e),
                                       back  = (cos e cos a, cos e sin a, sin e), from the object to the camera
    ray of the canvas point (X, Y):    p(s) = X right + Y up + s back; the largest s inside a solid is what is seen

A solid is what lies inside all of its surfaces, each a plane n . p <= k or a quadric A s^2 + 2 B s + C <= 0 along
the ray, so a ray is inside between the last entry and the first exit. Lengths are canvas pixels, z points up.

The pixels are the same on every machine: + - * / and the square root of float64, one operation at a time, are rounded
in one way by IEEE 754, and nothing else is used - no powers, sums over arrays, matrix products or trigonometry.
Cosines of whole degrees are whole multiples of 2^-20, further from a tie in rounding than any library's error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowkit.shards.demo_raster import CANVAS_PIXELS, STRIPE_PIXELS, box_average

SOLIDS = ("cube", "sphere", "cone", "cylinder", "pyramid")
COSINE_UNIT = 2**20
COSINES = tuple(round(math.cos(math.radians(degree)) * COSINE_UNIT) for degree in range(360))
LIGHT = (2 / 3, 1 / 3, 2 / 3)
"""Direction to the light, which stands still beside the object while the camera goes round."""
AMBIENT, DIFFUSE = 0.6, 0.4
DARK_STRIPE = 0.45
"""Brightness of every second stripe: less dark than in two dimensions, where nothing lies in the shade."""
SIDE_COSINE = 0.7
"""The other colour of a two-sided solid is where its normal has at least this component along its own x axis."""

Vector = tuple[float, float, float]
Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]
Lengths = np.ndarray | float
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Solid:
    """One body: its size is half its extent, `yaw` turns it about its own axis, `side` is the colour of its x side."""

    shape: str
    size: float
    center: Vector
    yaw: int
    colour: Colour
    striped: bool
    side: Colour | None


@dataclass(frozen=True)
class Camera:
    """Directions right, up and back of a camera at whole degrees of azimuth and elevation."""

    right: Vector
    up: Vector
    back: Vector

    @classmethod
    def at(cls, azimuth: int, elevation: int) -> Camera:
        cos_a, sin_a = cosine(azimuth), cosine(azimuth - 90)
        cos_e, sin_e = cosine(elevation), cosine(elevation - 90)
        return cls(
            right=(-sin_a, cos_a, 0.0),
            up=(-sin_e * cos_a, -sin_e * sin_a, cos_e),
            back=(cos_e * cos_a, cos_e * sin_a, sin_e),
        )


@dataclass(frozen=True)
class Crossing:
    """Where rays enter and leave one surface (s, arrays or numbers), and the normal where they leave."""

    enter: Lengths
    leave: Lengths
    normal: tuple[Lengths, Lengths, Lengths]


@dataclass(frozen=True)
class Hit:
    """What rays see of a solid, arrays of the canvas: s towards the camera (-inf: nothing), normal, height z."""

    depth: np.ndarray
    normal: Vectors
    height: np.ndarray


def cosine(degrees: int) -> float:
    """Return the cosine of whole degrees to 2^-20, the same on every machine."""
    return COSINES[degrees % 360] / COSINE_UNIT


def half_height(shape: str, size: float) -> float:
    """Return how far a solid reaches above and below its centre; raises `ValueError` for an unknown shape."""
    if shape not in _HALF_HEIGHT:
        raise ValueError(f"solid {shape!r} is unknown; expected one of {', '.join(SOLIDS)}")
    return _HALF_HEIGHT[shape] * size


def look(background: Colour, solids: tuple[Solid, ...], *, azimuth: int, elevation: int) -> np.ndarray:
    """Return the image uint8 [32, 32, 3] of solids from a camera at whole degrees.

    The elevation must lie between 1 and 60: from higher up, rays would be steeper than the side of a cone.
    """
    if not 1 <= elevation <= 60:
        raise ValueError(f"elevation {elevation} is not between 1 and 60 degrees")
    canvas = np.empty((CANVAS_PIXELS, CANVAS_PIXELS, 3), dtype=np.uint8)
    canvas[:] = background
    nearest = np.full((CANVAS_PIXELS, CANVAS_PIXELS), -np.inf)
    camera = Camera.at(azimuth, elevation)
    for solid in solids:
        hit = cast(solid, azimuth, elevation)
        depth = hit.depth + _dot(camera.back, solid.center)
        seen = depth > nearest
        canvas[seen] = _colours(solid, hit)[seen]
        nearest[seen] = depth[seen]
    return box_average(canvas)


def cast(solid: Solid, azimuth: int, elevation: int) -> Hit:
    """Return what the rays of the canvas see of a solid, in its own frame: moved to its centre, turned by its yaw."""
    world, camera = Camera.at(azimuth, elevation), Camera.at(azimuth - solid.yaw, elevation)
    steps = np.arange(CANVAS_PIXELS) - (CANVAS_PIXELS - 1) / 2
    x = (steps - _dot(world.right, solid.center))[None, :]
    y = (-steps - _dot(world.up, solid.center))[:, None]
    start = tuple(x * right + y * up for right, up in zip(camera.right, camera.up, strict=True))
    first, *others = _surfaces(solid, (start[0], start[1], start[2]), camera.back)
    shape = start[0].shape
    enter: np.ndarray = np.broadcast_to(first.enter, shape)
    leave: np.ndarray = np.broadcast_to(first.leave, shape)
    normal: list[np.ndarray] = [np.broadcast_to(one, shape) for one in first.normal]
    for one in others:
        enter = np.maximum(enter, one.enter)
        is_nearer = one.leave < leave
        leave = np.where(is_nearer, one.leave, leave)
        normal = [np.where(is_nearer, new, old) for new, old in zip(one.normal, normal, strict=True)]
    depth = np.where(enter <= leave, leave, -np.inf)
    height = start[2] + np.where(enter <= leave, leave, 0.0) * camera.back[2]
    return Hit(depth, (normal[0], normal[1], normal[2]), height)


def _surfaces(solid: Solid, start: Vectors, back: Vector) -> Iterator[Crossing]:
    """Yield where rays start + s back cross the surfaces of a solid."""
    size, top = solid.size, half_height(solid.shape, solid.size)
    if solid.shape == "sphere":
        yield _round_wall(start, back, radius=size, slope=0.0, rise=1.0)
        return
    if solid.shape in ("cube", "pyramid"):
        edge = _BASE[solid.shape] * size
        # through the top of a cube's wall at (edge, 0), through the tip of a pyramid at (0, top)
        across, rise = (1.0, 0.0) if solid.shape == "cube" else (2 * top, edge)
        length = math.sqrt(across * across + rise * rise)
        reach = edge if solid.shape == "cube" else rise * top / length
        for cos_side, sin_side in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            outwards = (cos_side * across / length, sin_side * across / length, rise / length)
            yield _plane(start, back, outwards, reach)
    else:
        radius = _BASE[solid.shape] * size
        yield (
            _round_wall(start, back, radius=radius, slope=0.0, rise=0.0)
            if solid.shape == "cylinder"
            else _round_wall(start, back, radius=radius / 2, slope=radius / (2 * top), rise=0.0)
        )
    yield _plane(start, back, (0.0, 0.0, 1.0), top)
    yield _plane(start, back, (0.0, 0.0, -1.0), top)


def _plane(start: Vectors, back: Vector, outwards: Vector, reach: float) -> Crossing:
    """Return where rays cross the plane outwards . p = reach; what counts as inside lies below it."""
    room = reach - _dot(outwards, start)
    facing = _dot(outwards, back)
    if facing > 0:
        return Crossing(-np.inf, room / facing, outwards)
    if facing < 0:
        return Crossing(room / facing, np.inf, outwards)
    return Crossing(np.where(room >= 0, -np.inf, np.inf), np.inf, outwards)


def _round_wall(start: Vectors, back: Vector, *, radius: float, slope: float, rise: float) -> Crossing:
    """Return where rays cross x^2 + y^2 + rise z^2 = (radius - slope z)^2.

    Cylinder: slope = rise = 0. Cone: `radius` is that of the middle. Sphere: slope 0, rise 1.
    """
    x, y, z = start
    flat = rise - slope * slope
    a = back[0] * back[0] + back[1] * back[1] + flat * (back[2] * back[2])
    b = x * back[0] + y * back[1] + (flat * z + slope * radius) * back[2]
    c = x * x + y * y + flat * (z * z) + (2 * slope * radius) * z - radius * radius
    under_root = b * b - a * c
    root = np.sqrt(np.maximum(under_root, 0.0))
    is_hit = under_root >= 0
    enter, leave = np.where(is_hit, (-b - root) / a, np.inf), np.where(is_hit, (root - b) / a, -np.inf)
    at = np.where(is_hit, leave, 0.0)
    x, y, z = x + at * back[0], y + at * back[1], z + at * back[2]
    up = flat * z + slope * radius
    length = np.sqrt(np.maximum(x * x + y * y + up * up, 1e-9))
    return Crossing(enter, leave, (x / length, y / length, up / length))


def _colours(solid: Solid, hit: Hit) -> np.ndarray:
    """Return uint8 [64, 64, 3]: colour, stripes and the other side, in the light that falls on them."""
    # the light stands in the frame of all solids
    cos_yaw, sin_yaw = cosine(solid.yaw), cosine(solid.yaw - 90)
    light = (LIGHT[0] * cos_yaw + LIGHT[1] * sin_yaw, LIGHT[1] * cos_yaw - LIGHT[0] * sin_yaw, LIGHT[2])
    brightness = AMBIENT + DIFFUSE * np.maximum(_dot(light, hit.normal), 0.0)
    if solid.striped:
        is_dark = np.floor((hit.height + CANVAS_PIXELS) / STRIPE_PIXELS) % 2 == 1
        brightness = np.where(is_dark, brightness * DARK_STRIPE, brightness)
    is_side = hit.normal[0] > SIDE_COSINE
    side = solid.side or solid.colour
    levels = [
        np.where(is_side, other, own) * brightness for own, other in zip(solid.colour, side, strict=True)
    ]
    return np.stack(levels, axis=-1).astype(np.uint8)


def _dot(one: Vector, other: Vectors | Vector) -> np.ndarray | float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


_HALF_HEIGHT = {"cube": 0.75, "sphere": 1.0, "cone": 1.0, "cylinder": 0.95, "pyramid": 0.95}
_BASE = {"cube": 0.75, "cone": 0.95, "cylinder": 0.7, "pyramid": 0.85}
"""Half the edge, or the radius, at the widest place."""
