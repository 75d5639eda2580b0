"""Procedural images of a table with things on it, with the exact visible mask of every thing.

A scene is a pure function of `(split, seed, index, size)`. Random numbers come from the raw words of PCG64 and every
pixel from exactly rounded arithmetic, so the same call gives the same bytes on every platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from .sprites import KINDS, NUM_POSES, VIEWS, Sprite, get_sprite


COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 44, 40),
    "orange": (242, 134, 26),
    "yellow": (246, 218, 62),
    "green": (52, 156, 68),
    "blue": (46, 100, 214),
    "purple": (134, 62, 172),
    "white": (238, 236, 230),
    "black": (42, 42, 46),
}
"""Names of the colours and the sRGB value of a plainly lit surface."""

SIZES: dict[str, float] = {"small": 0.69, "medium": 1.0, "large": 1.46}
"""Names of the three sizes and the scale of the thing."""

SPLITS: tuple[str, ...] = ("train", "validation", "test", "test_unseen")
"""Splits draw from disjoint random streams; `test_unseen` is the one that shows `HELD_OUT_PAIRS`."""

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (kind, tuple(COLOURS)[(3 * position + 1) % len(COLOURS)]) for position, kind in enumerate(KINDS)
)
"""`(kind, colour)` pairs, one per kind, that occur in no scene and in no phrase of the other splits."""

DEFAULT_SIZE = 160
MIN_SIZE, MAX_SIZE = 64, 1024
MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_VISIBLE_FRACTION = 0.6
UNIT_FRACTION = 0.225
"""Pixels per unit of a medium thing, as a fraction of the side of the image."""

FLAT_KINDS = frozenset({"plate", "book", "banana", "key"})
"""Kinds that lie on the table, so that others may stand on them."""

_OBJECT_COUNTS = (2, 3, 3, 4, 4, 5, 5, 6, 6, 7)
_SCALE_JITTER = (0.96, 1.0, 1.04)
_PLACEMENT_TRIES = 14
_SCENE_TRIES = 64
_SURFACES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "wood": ((172, 128, 88), (142, 102, 70), (198, 164, 126), (118, 90, 70)),
    "cloth": ((184, 194, 188), (126, 140, 152), (186, 160, 152), (158, 166, 138), (206, 198, 180)),
    "plain": ((172, 172, 174), (122, 130, 138), (198, 188, 174), (104, 112, 112), (160, 176, 184)),
}
_WALLS = ((214, 208, 196), (190, 200, 206), (206, 192, 184), (168, 176, 170), (150, 154, 166))
_TEXTURES_PER_SURFACE = 6

T = TypeVar("T")


class TabletopRandom:
    """Random numbers that stay the same across platforms and NumPy versions.

    NumPy promises a stable stream for the raw words of a bit generator, but not for the methods of `Generator`; the
    few draws needed here are therefore made from the raw words.

    Args:
        key: Non-negative integers that name the stream.
    """

    def __init__(self, *key: int):
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._words: list[int] = []

    def _word(self) -> int:
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()
        return self._words.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((self._word() >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return ((self._word() >> 32) * count) >> 32

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in random order, as a new list."""
        order = list(options)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


@dataclass(frozen=True)
class TabletopObject:
    """One thing on the table. Positions are pixels of the image.

    Attributes:
        kind: One of `KINDS`.
        colour: A key of `COLOURS`.
        size: A key of `SIZES`.
        pose: Pose of the sprite.
        base_xy: Where the thing touches the table.
        box_xyxy: Box of the whole thing, hidden parts included, right and bottom exclusive.
        area: Pixels of the whole thing, hidden parts included.
        visible_area: Pixels that can be seen.
    """

    kind: str
    colour: str
    size: str
    pose: int
    base_xy: tuple[int, int]
    box_xyxy: tuple[int, int, int, int]
    area: int
    visible_area: int

    @property
    def centre_xy(self) -> tuple[float, float]:
        """Centre of the box."""
        left, top, right, bottom = self.box_xyxy
        return (left + right) / 2, (top + bottom) / 2

    def to_dict(self) -> dict[str, Any]:
        """The object as plain JSON values."""
        return {
            "kind": self.kind,
            "colour": self.colour,
            "size": self.size,
            "pose": self.pose,
            "base_xy": list(self.base_xy),
            "box_xyxy": list(self.box_xyxy),
            "area": self.area,
            "visible_area": self.visible_area,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TabletopObject:
        """The inverse of `to_dict`."""
        tuples = {name: tuple(values[name]) for name in ("base_xy", "box_xyxy")}
        return cls(**{**values, **tuples})


@dataclass(frozen=True, eq=False)
class TabletopScene:
    """An image and all that is known about it.

    Attributes:
        image: `(size, size, 3)` uint8 RGB.
        id_map: `(size, size)` uint8; 0 is the background, `n` the visible part of `objects[n - 1]`.
        objects: From the farthest to the nearest.
        view: A key of `VIEWS`.
        split: Split the scene belongs to.
        seed: Seed of the data set.
        index: Number of the scene in its split.
    """

    image: np.ndarray
    id_map: np.ndarray
    objects: tuple[TabletopObject, ...]
    view: str
    split: str
    seed: int
    index: int

    @property
    def size(self) -> int:
        """Side of the square image in pixels."""
        return self.image.shape[0]

    def mask(self, *positions: int) -> np.ndarray:
        """Visible mask of the union of some objects, `(size, size)` bool.

        Args:
            positions: Positions in `objects`.
        """
        if len(positions) == 1:
            return self.id_map == positions[0] + 1
        lookup = np.zeros(len(self.objects) + 1, dtype=bool)
        lookup[[position + 1 for position in positions]] = True
        return lookup[self.id_map]

    def flipped(self) -> TabletopScene:
        """The scene seen in a mirror (left and right swapped)."""
        objects = []
        for thing in self.objects:
            left, top, right, bottom = thing.box_xyxy
            box = (self.size - right, top, self.size - left, bottom)
            base = (self.size - 1 - thing.base_xy[0], thing.base_xy[1])
            objects.append(replace(thing, base_xy=base, box_xyxy=box))
        return replace(
            self,
            image=np.ascontiguousarray(self.image[:, ::-1]),
            id_map=np.ascontiguousarray(self.id_map[:, ::-1]),
            objects=tuple(objects),
        )

    def dense_labels(self) -> dict[str, np.ndarray]:
        """Per-pixel labels for training an image encoder alone.

        Returns:
            `kind`, `colour` and `size`: `(size, size)` int64, 0 for the background, else 1 + the position in `KINDS`,
            `COLOURS` and `SIZES`. `centre_xy`: `(2, size, size)` float32, offset from the pixel to the centre of its
            thing as a fraction of the side of the image, 0 on the background.
        """
        tables = {"kind": KINDS, "colour": tuple(COLOURS), "size": tuple(SIZES)}
        labels = {}
        for name, values in tables.items():
            lookup = np.array([0, *(1 + values.index(getattr(thing, name)) for thing in self.objects)], dtype=np.int64)
            labels[name] = lookup[self.id_map]
        centres = np.array([(0.0, 0.0), *(thing.centre_xy for thing in self.objects)], dtype=np.float32)
        pixels = np.arange(self.size, dtype=np.float32) + 0.5
        offsets = np.stack([centres[self.id_map, 0] - pixels[None, :], centres[self.id_map, 1] - pixels[:, None]])
        labels["centre_xy"] = np.where(self.id_map[None] > 0, offsets / self.size, 0).astype(np.float32)
        return labels


@dataclass(frozen=True)
class _Placed:
    thing: TabletopObject
    sprite: Sprite
    depth: float
    rgb: tuple[float, ...]

    @property
    def window(self) -> tuple[slice, slice]:
        left, top, right, bottom = self.thing.box_xyxy
        return slice(top, bottom), slice(left, right)


def draw_scene(split: str, index: int, seed: int = 0, size: int = DEFAULT_SIZE) -> TabletopScene:
    """Draw one scene.

    Args:
        split: One of `SPLITS`.
        index: Number of the scene in the split, from 0.
        seed: Seed of the data set, from 0. Splits are disjoint for every seed.
        size: Side of the square image in pixels, 64 to 1024.

    Returns:
        The scene; 2 to 7 objects, of which at least 60 % can be seen.

    Raises:
        ValueError: If an argument is out of its range.
    """
    rng = scene_random(split, index, seed)
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}.")
    view = rng.choice(tuple(VIEWS))
    horizon = round(size * rng.uniform(0.14, 0.27)) if view == "angle" else 0
    mirror = rng.chance(0.5)
    for _ in range(_SCENE_TRIES):
        placed = _place_objects(rng, split, size, view, horizon, mirror)
        placed, id_map = _drop_hidden(placed, size)
        if len(placed) >= MIN_OBJECTS and (split != "test_unseen" or any(_is_held_out(item.thing) for item in placed)):
            break
    else:
        raise RuntimeError(f"No scene could be laid out for split {split!r}, index {index}, seed {seed}, size {size}.")
    image = _render(rng, placed, size, horizon, mirror)
    objects = tuple(
        replace(item.thing, visible_area=int(np.count_nonzero(id_map[item.window] == number)))
        for number, item in enumerate(placed, start=1)
    )
    return TabletopScene(image, id_map, objects, view, split, seed, index)


def scene_random(split: str, index: int, seed: int, stream: int = 0) -> TabletopRandom:
    """The random stream of a scene (`stream` 0) or of something that belongs to it.

    Raises:
        ValueError: If the split does not exist or a number is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if index < 0 or seed < 0 or stream < 0:
        raise ValueError(f"index, seed and stream must not be negative, got {index}, {seed} and {stream}.")
    return TabletopRandom(SPLITS.index(split), seed, index, stream)


def _is_held_out(thing: TabletopObject) -> bool:
    return (thing.kind, thing.colour) in HELD_OUT_PAIRS


def _draw_looks(rng: TabletopRandom, split: str, others: list[_Placed]) -> tuple[str, str, str]:
    """Kind, colour and size of a new thing; often alike to an earlier one, so that phrases have to tell them apart."""
    size = rng.choice(tuple(SIZES))
    if split == "test_unseen" and rng.chance(0.5):
        kind, colour = rng.choice(sorted(HELD_OUT_PAIRS))
        return kind, colour, size
    while True:
        kind, colour = rng.choice(KINDS), rng.choice(tuple(COLOURS))
        alike = rng.uniform()
        if others and alike < 0.32:
            kind = rng.choice(others).thing.kind
        elif others and alike < 0.5:
            colour = rng.choice(others).thing.colour
        if (kind, colour) not in HELD_OUT_PAIRS:
            return kind, colour, size


def _place_objects(rng: TabletopRandom, split: str, size: int, view: str, horizon: int, mirror: bool) -> list[_Placed]:
    """Choose things and put them where they do not hide each other too much; sorted from far to near."""
    placed: list[_Placed] = []
    for _ in range(rng.choice(_OBJECT_COUNTS)):
        kind, colour, size_name = _draw_looks(rng, split, placed)
        scale = SIZES[size_name] * rng.choice(_SCALE_JITTER)
        unit_eighths = round(8 * size * UNIT_FRACTION * scale)
        pose = rng.below(NUM_POSES[kind])
        sprite = get_sprite(kind, pose, unit_eighths, view, mirror)
        rgb = _vary(rng, COLOURS[colour])
        height, width = sprite.mask.shape
        origin_y, origin_x = sprite.origin_yx
        # A crowded table may overlap more, but most things stand free.
        limit = 0.42 if rng.chance(0.4) else 0.04
        x_range = (origin_x + 1, size - width + origin_x - 1)
        # A thing that stands may rise above the edge of the table; one that lies may not.
        lowest = horizon + origin_y if kind in FLAT_KINDS else max(horizon + round(0.07 * size), origin_y)
        y_range = (lowest + 1, size - height + origin_y - 1)
        if x_range[0] >= x_range[1] or y_range[0] >= y_range[1]:
            continue
        for _ in range(_PLACEMENT_TRIES):
            x = x_range[0] + rng.below(x_range[1] - x_range[0])
            y = y_range[0] + rng.below(y_range[1] - y_range[0])
            left, top = x - origin_x, y - origin_y
            box = (left, top, left + width, top + height)
            if all(_box_overlap(box, other.thing.box_xyxy) <= limit for other in placed):
                area = int(np.count_nonzero(sprite.mask))
                thing = TabletopObject(kind, colour, size_name, pose, (x, y), box, area, area)
                # What lies flat is drawn before what stands on it.
                depth = y - (unit_eighths / 32 if kind in FLAT_KINDS else 0)
                placed.append(_Placed(thing, sprite, depth, rgb))
                break
    return sorted(placed, key=lambda item: item.depth)


def _vary(rng: TabletopRandom, rgb: tuple[int, int, int]) -> tuple[float, ...]:
    """A colour a little lighter or darker, with a slight cast."""
    lightness = rng.uniform(-9, 9)
    return tuple(channel + lightness + rng.uniform(-4, 4) for channel in rgb)


def _box_overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Shared area of two boxes as a fraction of the smaller one."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / min(areas)


def _drop_hidden(placed: list[_Placed], size: int) -> tuple[list[_Placed], np.ndarray]:
    """Remove things that are hidden too much, and number the visible pixels of those that stay."""
    while True:
        id_map = np.zeros((size, size), dtype=np.uint8)
        for number, item in enumerate(placed, start=1):
            id_map[item.window][item.sprite.mask] = number
        counts = np.bincount(id_map.ravel(), minlength=len(placed) + 1)
        fractions = [counts[number] / item.thing.area for number, item in enumerate(placed, start=1)]
        if not placed or min(fractions) >= MIN_VISIBLE_FRACTION:
            return placed, id_map
        worst = fractions.index(min(fractions))
        placed = placed[:worst] + placed[worst + 1 :]


def _render(rng: TabletopRandom, placed: list[_Placed], size: int, horizon: int, mirror: bool) -> np.ndarray:
    canvas = _draw_background(rng, size, horizon)
    darkness = np.float32(rng.uniform(0.34, 0.6))
    for item in placed:
        _draw_shadow(canvas, item, darkness)
        sprite = item.sprite
        window = canvas[:, *item.window]
        paint = sprite.tint * _as_column(item.rgb)
        paint += sprite.fixed
        np.minimum(paint, np.float32(255.0), out=paint)
        window *= 1.0 - sprite.alpha
        window += paint
    canvas *= _light(rng, size, mirror)
    canvas *= _as_column([rng.uniform(0.965, 1.035) for _ in range(3)])
    field = _noise_field(size)
    y, x = rng.below(32), rng.below(32)
    canvas += field[y : y + size, x : x + size] * np.float32(rng.uniform(0.2, 1.3))
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(np.rint(canvas).astype(np.uint8).transpose(1, 2, 0))


def _as_column(rgb: Sequence[float]) -> np.ndarray:
    """A colour that multiplies `(3, height, width)`; planes make NumPy's inner loops long and fast."""
    return np.array(rgb, dtype=np.float32)[:, None, None]


def _draw_background(rng: TabletopRandom, size: int, horizon: int) -> np.ndarray:
    """A wall (only in the angle view) and the table, `(3, size, size)` float32."""
    surface = rng.choice(tuple(_SURFACES))
    texture = _texture(surface, rng.below(_TEXTURES_PER_SURFACE), size)
    y, x = rng.below(texture.shape[0] - size), rng.below(texture.shape[1] - size)
    crop = texture[y : y + size, x : x + size]
    if rng.chance(0.5):
        crop = crop[:, ::-1]
    canvas = crop * _as_column(_vary(rng, rng.choice(_SURFACES[surface])))
    if horizon:
        canvas[:, :horizon] = _as_column(_vary(rng, rng.choice(_WALLS)))
        edge = max(1, size // 80)
        canvas[:, horizon - edge : horizon] *= np.float32(0.8)
        canvas[:, horizon : horizon + edge] *= np.float32(1.12)
    return canvas


def _draw_shadow(canvas: np.ndarray, item: _Placed, darkness: np.float32) -> None:
    shadow = item.sprite.shadow
    size = canvas.shape[1]
    top = item.thing.base_xy[1] - item.sprite.shadow_origin_yx[0]
    left = item.thing.base_xy[0] - item.sprite.shadow_origin_yx[1]
    rows = slice(max(0, top), min(size, top + shadow.shape[0]))
    columns = slice(max(0, left), min(size, left + shadow.shape[1]))
    part = shadow[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[:, rows, columns] *= 1.0 - darkness * part


def _light(rng: TabletopRandom, size: int, mirror: bool) -> np.ndarray:
    """Brightness of the light over the image, `(size, size)` float32: stronger on the side the light comes from."""
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    across = np.float32(rng.uniform(0.0, 0.22)) * (ramp if mirror else -ramp)
    along = np.float32(rng.uniform(-0.14, 0.1)) * ramp
    return (np.float32(rng.uniform(0.9, 1.08)) + across)[None, :] + along[:, None]


@lru_cache(maxsize=8)
def _noise_field(size: int) -> np.ndarray:
    """Grain of the camera, `(size + 32, size + 32)` float32, roughly normal with a deviation of about 4."""
    words = np.random.PCG64(np.random.SeedSequence((9001, size))).random_raw((size + 32) ** 2)
    total = sum(((words >> np.uint64(8 * byte)) & np.uint64(255)).astype(np.int64) for byte in range(4))
    return ((total - 510) / 37.0).astype(np.float32).reshape(size + 32, size + 32)


@lru_cache(maxsize=64)
def _texture(surface: str, number: int, size: int) -> np.ndarray:
    """Brightness of a piece of table, larger than the image, `(1.5 size, 1.5 size)` float32 around 1."""
    side = size + size // 2
    rng = TabletopRandom(9002, tuple(_SURFACES).index(surface), number)
    if surface == "wood":
        # Long grain: noise that changes slowly along the planks and fast across them.
        grain = 0.07 * _value_noise(rng, side, size / 90, size / 2.5) + 0.05 * _value_noise(rng, side, size / 34, size)
        planks = np.ones((side, 1))
        height = round(size * rng.uniform(0.2, 0.4))
        for top in range(rng.below(height), side, height):
            planks[top:] = rng.uniform(0.93, 1.07)
            planks[top : top + max(1, size // 110)] = 0.7
        texture = planks * (1.0 + grain)
    elif surface == "cloth":
        step = max(2, round(size * rng.uniform(0.05, 0.12)))
        contrast = rng.choice((0.0, 0.05, 0.09))
        stripes = (np.arange(side) // step) % 2
        checks = 1.0 - contrast * (stripes[:, None] + stripes[None, :])
        weave = 0.03 * ((np.arange(side)[:, None] + np.arange(side)[None, :]) % 2)
        texture = checks - weave + 0.04 * _value_noise(rng, side, size / 12, size / 12)
    else:
        texture = 1.0 + 0.05 * _value_noise(rng, side, size / 4, size / 4)
    return texture.astype(np.float32)


def _value_noise(rng: TabletopRandom, side: int, scale_y: float, scale_x: float) -> np.ndarray:
    """Smooth random surface in [-1, 1] whose bumps are `scale_y` by `scale_x` pixels, `(side, side)` float64."""
    rows, columns = int(side / scale_y) + 2, int(side / scale_x) + 2
    knots = np.array([[rng.uniform(-1, 1) for _ in range(columns)] for _ in range(rows)])
    y, x = np.arange(side) / scale_y, np.arange(side) / scale_x
    row, column = y.astype(np.int64), x.astype(np.int64)
    blend_y, blend_x = (y - row)[:, None], (x - column)[None, :]
    upper = knots[row][:, column] * (1 - blend_x) + knots[row][:, column + 1] * blend_x
    lower = knots[row + 1][:, column] * (1 - blend_x) + knots[row + 1][:, column + 1] * blend_x
    return upper * (1 - blend_y) + lower * blend_y
