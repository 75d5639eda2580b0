"""Sprites of the tabletop world: ten kinds of things, each with its own silhouette, painted once and cached.

A sprite is painted on a supersampled grid from ellipses, polygons and strokes that are evaluated with exactly rounded
operations only (no trigonometry, no font, no library rasteriser) and averaged with integer sums, so every platform
gets the same bytes. The colour of the thing is left open (`tint`), which lets eight colours share one sprite.

Coordinates of the painting functions are in units of the thing: x to the right, y downwards, (0, 0) where the thing
touches the table. `tilt` is the ratio of the minor to the major axis of a circle that lies on the table (1 would be a
view from straight above) and `rise` is the height on the image of one unit of height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, sqrt

import numpy as np


KINDS: tuple[str, ...] = ("cup", "bottle", "plate", "bowl", "ball", "box", "book", "banana", "key", "lamp")
VIEWS: dict[str, float] = {"angle": 0.38, "above": 0.6}
"""The two camera views and their tilt."""

NUM_POSES: dict[str, int] = {
    "cup": 2,
    "bottle": 2,
    "plate": 1,
    "bowl": 1,
    "ball": 2,
    "box": 4,
    "book": 4,
    "banana": 6,
    "key": 8,
    "lamp": 1,
}
"""Number of poses each kind can be drawn in (side of the handle, direction on the table, ...)."""

SUPERSAMPLING = 4
TINT_LEVELS = 256

# Unit vectors with exact short decimals stand in for angles, because sine and cosine differ in the last bit between
# platforms.
_DIRECTIONS = ((1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.0, 1.0), (-0.6, 0.8), (-0.8, 0.6), (0.28, 0.96), (0.96, 0.28))

_METAL = (150, 152, 158)
_CAP = (92, 84, 78)
_PAPER = (240, 236, 222)
_GLOW = (255, 240, 190)


@dataclass(frozen=True, eq=False)
class Sprite:
    """A thing ready to be put on an image, in every colour.

    Attributes:
        alpha: `(height, width)` float32 in [0, 1], the part of each pixel that the thing covers.
        tint: `(height, width)` float32, brightness by which the thing's colour is multiplied, times `alpha`.
        fixed: `(3, height, width)` float32 in [0, 255], parts with a colour of their own, times `alpha`.
        mask: `(height, width)` bool, pixels that belong to the thing (at least half covered).
        origin_yx: Row and column of the sprite at which the thing touches the table.
        shadow: `(shadow height, shadow width)` float32 in [0, 1], darkness of the soft shadow.
        shadow_origin_yx: Row and column of the shadow at which the thing touches the table.
    """

    alpha: np.ndarray
    tint: np.ndarray
    fixed: np.ndarray
    mask: np.ndarray
    origin_yx: tuple[int, int]
    shadow: np.ndarray
    shadow_origin_yx: tuple[int, int]


class SpritePainter:
    """A supersampled canvas in the units of one thing; later paint covers earlier paint.

    Args:
        unit: Pixels per unit of the thing.
        extent: `(left, top, right, bottom)` of the canvas in units.
        view: Name of the camera view, a key of `VIEWS`.
    """

    def __init__(self, unit: float, extent: tuple[float, float, float, float], view: str):
        left, top, right, bottom = extent
        self.unit = unit
        self.tilt = VIEWS[view]
        self.rise = sqrt(1.0 - self.tilt * self.tilt)
        self.origin = (ceil(-top * unit) + 1, ceil(-left * unit) + 1)
        self.size = (self.origin[0] + ceil(bottom * unit) + 1, self.origin[1] + ceil(right * unit) + 1)
        height, width = (side * SUPERSAMPLING for side in self.size)
        self.y = (((np.arange(height) + 0.5) / SUPERSAMPLING - self.origin[0]) / unit)[:, None]
        self.x = (((np.arange(width) + 0.5) / SUPERSAMPLING - self.origin[1]) / unit)[None, :]
        self.covered = np.zeros((height, width), dtype=bool)
        self.shadowed = np.zeros((height, width), dtype=bool)
        self.tint = np.zeros((height, width))
        self.fixed = np.zeros((height, width, 3), dtype=np.int64)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
        """Inside of an axis-parallel ellipse, bool grid."""
        return ((self.x - x) / radius_x) ** 2 + ((self.y - y) / radius_y) ** 2 <= 1.0

    def box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        """Inside of an axis-parallel rectangle, bool grid."""
        return (self.x >= left) & (self.x <= right) & (self.y >= top) & (self.y <= bottom)

    def polygon(self, *points: tuple[float, float]) -> np.ndarray:
        """Inside of a convex polygon given in either direction, bool grid."""
        inside = np.ones(self.covered.shape, dtype=bool)
        turn = 0.0
        for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
            turn += (x1 - x0) * (y2 - y1) - (y1 - y0) * (x2 - x1)
        sign = 1.0 if turn >= 0 else -1.0
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            inside &= sign * ((x1 - x0) * (self.y - y0) - (y1 - y0) * (self.x - x0)) >= 0
        return inside

    def trunk(self, profile: list[tuple[float, float]]) -> np.ndarray:
        """Body of revolution from the side: `(y, half width)` pairs from top to bottom, joined by straight lines."""
        inside = np.zeros(self.covered.shape, dtype=bool)
        for (top, upper), (bottom, lower) in pairwise(profile):
            half_widths = upper + (lower - upper) * ((self.y - top) / (bottom - top))
            inside |= (np.abs(self.x) <= half_widths) & (self.y >= top) & (self.y <= bottom)
        return inside

    def paint(self, where: np.ndarray, tint: float | np.ndarray) -> None:
        """Paint with the thing's own colour times `tint` (1 is the plain colour; clipped to [0, 1.6])."""
        self.covered |= where
        self.tint[where] = np.broadcast_to(np.clip(tint, 0.0, 1.6), where.shape)[where]
        self.fixed[where] = 0

    def paint_fixed(self, where: np.ndarray, rgb: tuple[int, int, int], brightness: float = 1.0) -> None:
        """Paint with a colour that does not depend on the thing's colour."""
        self.covered |= where
        self.tint[where] = 0.0
        self.fixed[where] = [int(channel * brightness) for channel in rgb]

    def gloss(self, where: np.ndarray, amount: int) -> None:
        """Add a white reflection of `amount` (0..255) on paint that is already there."""
        where = where & self.covered
        self.tint[where] *= 1.0 - amount / 255.0
        self.fixed[where] += amount

    def cast(self, where: np.ndarray) -> None:
        """Mark the part of the table that lies in the shadow of the thing."""
        self.shadowed |= where

    def cast_shifted(self, x: float, y: float) -> None:
        """Cast the silhouette painted so far, moved by `(x, y)` units: the shadow of a flat thing."""
        rows, columns = round(y * self.unit * SUPERSAMPLING), round(x * self.unit * SUPERSAMPLING)
        self.shadowed |= np.roll(self.covered, (rows, columns), axis=(0, 1))

    def finish(self, mirror: bool) -> Sprite:
        """Average the supersamples and cut the sprite to its bounding box."""
        levels = np.rint(self.tint * TINT_LEVELS).astype(np.int64)
        # Integer sums do not depend on the order in which a platform adds them up.
        samples = SUPERSAMPLING * SUPERSAMPLING
        alpha = (_block_sums(self.covered.astype(np.int64)) / samples).astype(np.float32)
        tint = (_block_sums(levels) / (samples * TINT_LEVELS)).astype(np.float32)
        fixed = (_block_sums(np.clip(self.fixed, 0, 255)) / samples).astype(np.float32)
        shadow, pad = _soften(_block_sums(self.shadowed.astype(np.int64)), radius=max(1, round(self.unit * 0.07)))
        shadow = (shadow / samples).astype(np.float32)
        rows = np.flatnonzero(alpha.any(axis=1))
        columns = np.flatnonzero(alpha.any(axis=0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        alpha, tint, fixed = alpha[window], tint[window], fixed[window].transpose(2, 0, 1)
        origin = (self.origin[0] - int(rows[0]), self.origin[1] - int(columns[0]))
        shadow_origin = (self.origin[0] + pad, self.origin[1] + pad)
        if mirror:
            alpha, tint, fixed, shadow = (array[..., ::-1] for array in (alpha, tint, fixed, shadow))
            origin = (origin[0], alpha.shape[1] - 1 - origin[1])
            shadow_origin = (shadow_origin[0], shadow.shape[1] - 1 - shadow_origin[1])
        return Sprite(
            alpha=np.ascontiguousarray(alpha),
            tint=np.ascontiguousarray(tint),
            fixed=np.ascontiguousarray(fixed),
            mask=np.ascontiguousarray(alpha >= 0.5),
            origin_yx=origin,
            shadow=np.ascontiguousarray(shadow),
            shadow_origin_yx=shadow_origin,
        )


def _block_sums(values: np.ndarray) -> np.ndarray:
    """Sum over the supersamples of each pixel."""
    height, width = (side // SUPERSAMPLING for side in values.shape[:2])
    rows = values.reshape(height, SUPERSAMPLING, -1).sum(axis=1)
    return rows.reshape(height, width, SUPERSAMPLING, *values.shape[2:]).sum(axis=2)


def _soften(counts: np.ndarray, radius: int) -> tuple[np.ndarray, int]:
    """Blur integer counts with two box filters; returns the padded result and the width of the padding."""
    pad = 2 * radius
    side = 2 * radius + 1
    blurred = np.pad(counts, pad)
    for _ in range(2):
        for axis in (0, 1):
            padded = np.pad(blurred, [(radius + 1, radius) if a == axis else (0, 0) for a in (0, 1)])
            total = np.cumsum(padded, axis=axis)
            length = blurred.shape[axis]
            blurred = np.take(total, np.arange(side, side + length), axis) - np.take(total, np.arange(length), axis)
    return blurred / float(side**4), pad


def _round_shade(x: np.ndarray, radius: float) -> np.ndarray:
    """Brightness around an upright body lit from the left."""
    across = x / radius
    return 1.06 - 0.22 * across - 0.22 * across * across


def _paint_cup(p: SpritePainter, pose: int) -> None:
    side = 1.0 if pose == 0 else -1.0
    height, top, foot = 0.68 * p.rise, 0.37, 0.27
    handle = p.ellipse(side * 0.4, -height * 0.54, 0.25, 0.25) & ~p.ellipse(side * 0.4, -height * 0.54, 0.14, 0.14)
    p.paint(handle, 0.82 if side > 0 else 0.95)
    body = p.trunk([(-height, top), (0.0, foot)]) | p.ellipse(0, 0, foot, foot * p.tilt)
    p.paint(body, _round_shade(p.x, top))
    p.paint(p.ellipse(0, -height, top, top * p.tilt), 1.2)
    p.paint(p.ellipse(0, -height + 0.01, top * 0.86, top * 0.84 * p.tilt), 0.42 + 0.25 * (p.x / top))
    p.gloss(p.ellipse(-0.18, -height * 0.42, 0.035, height * 0.26), 90)
    p.cast(p.ellipse(0.2, 0.0, 0.5, 0.3 * p.tilt + 0.06))


def _paint_bottle(p: SpritePainter, pose: int) -> None:
    radius, neck = 0.235, 0.085
    shoulder, throat, top = -0.72 * p.rise, -0.98 * p.rise, -1.26 * p.rise
    profile = [(top, neck), (throat, neck), (shoulder - 0.06 * p.rise, radius * 0.86), (shoulder, radius), (0, radius)]
    body = p.trunk(profile) | p.ellipse(0, 0, radius, radius * p.tilt)
    p.paint(body, _round_shade(p.x, radius))
    label = body & p.box(-radius, -0.5 * p.rise, radius, -0.2 * p.rise)
    if pose == 1:
        p.paint(label, 1.35 * _round_shade(p.x, radius))
    cap = p.trunk([(top - 0.03, neck * 1.25), (top + 0.11 * p.rise, neck * 1.25)])
    p.paint_fixed(cap | p.ellipse(0, top - 0.03, neck * 1.25, neck * 1.25 * p.tilt), _CAP)
    p.gloss(p.box(-0.15, -0.66 * p.rise, -0.095, -0.08 * p.rise), 110)
    p.cast(p.ellipse(0.28, 0.0, 0.52, 0.22 * p.tilt + 0.05))


def _paint_plate(p: SpritePainter, pose: int) -> None:
    del pose
    radius = 0.62
    lift = 0.07
    p.paint(p.ellipse(0, 0.0, radius * 0.9, radius * 0.9 * p.tilt), 0.6)
    p.paint(p.ellipse(0, -lift + 0.025, radius, radius * p.tilt), 0.72)
    p.paint(p.ellipse(0, -lift, radius, radius * p.tilt), 1.08 - 0.1 * p.x)
    p.paint(p.ellipse(0, -lift + 0.012, radius * 0.68, radius * 0.68 * p.tilt), 0.7 + 0.25 * p.x)
    p.paint(p.ellipse(0, -lift + 0.035, radius * 0.63, radius * 0.61 * p.tilt), 0.95)
    p.gloss(p.ellipse(-0.38, -lift - 0.25 * p.tilt, 0.11, 0.05 * p.tilt + 0.01), 120)
    p.cast(p.ellipse(0.1, 0.02, radius * 0.95, radius * 0.95 * p.tilt + 0.04))


def _paint_bowl(p: SpritePainter, pose: int) -> None:
    del pose
    radius, height = 0.52, 0.42 * p.rise
    p.paint(p.ellipse(0, -0.02, 0.24, 0.24 * p.tilt), 0.55)
    # The wall hangs below the rim like the lower half of an ellipse.
    wall = p.ellipse(0, -height, radius, height + 0.12 * p.tilt) & (p.y >= -height)
    p.paint(wall, _round_shade(p.x, radius) - 0.25 * (p.y / height + 1.0))
    p.paint(p.ellipse(0, -height, radius, radius * p.tilt), 1.22)
    p.paint(p.ellipse(0, -height + 0.01, radius * 0.89, radius * 0.87 * p.tilt), 0.5 + 0.3 * (p.x / radius))
    p.gloss(p.ellipse(-0.3, -height * 0.5, 0.05, 0.1 * p.rise), 80)
    p.cast(p.ellipse(0.15, 0.0, 0.55, 0.36 * p.tilt + 0.05))


def _paint_ball(p: SpritePainter, pose: int) -> None:
    radius = 0.39
    centre = -radius * (0.55 + 0.45 * p.rise)
    disc = p.ellipse(0, centre, radius, radius)
    away = ((p.x + 0.14) / radius) ** 2 + ((p.y - centre + 0.16) / radius) ** 2
    p.paint(disc, 1.18 - 0.36 * away)
    lean = 0.5 if pose == 0 else -0.5
    band = p.y - centre + lean * p.x - 0.9 * (p.x * p.x)
    p.paint(disc & (np.abs(band - 0.1) <= 0.045), 0.62 - 0.16 * away + 0.2)
    p.gloss(p.ellipse(-0.15, centre - 0.17, 0.085, 0.065), 190)
    p.cast(p.ellipse(0.17, 0.0, 0.42, 0.32 * p.tilt + 0.04))


def _paint_box(p: SpritePainter, pose: int) -> None:
    side = 1.0 if pose % 2 == 0 else -1.0
    half, height = (0.38, 0.62 * p.rise) if pose < 2 else (0.32, 0.8 * p.rise)
    depth_x, depth_y = side * 0.24, -0.62 * p.tilt
    near, far = side * half, side * half + depth_x
    p.paint(p.polygon((near, 0), (far, depth_y), (far, depth_y - height), (near, -height)), 0.55 if side > 0 else 0.74)
    p.paint(p.box(-half, -height, half, 0), 0.92 - 0.1 * (p.x / half))
    back = -height + depth_y
    p.paint(p.polygon((-half, -height), (half, -height), (half + depth_x, back), (-half + depth_x, back)), 1.24)
    p.paint(p.polygon((-0.07, -height), (0.07, -height), (0.07 + depth_x, back), (-0.07 + depth_x, back)), 0.85)
    p.paint(p.box(-0.07, -height, 0.07, -height * 0.72), 0.66)
    p.cast(p.polygon((-half + 0.05, 0.03), (half + 0.16, 0.03), (half + 0.42, depth_y), (-half + 0.1, depth_y)))


def _paint_book(p: SpritePainter, pose: int) -> None:
    side = 1.0 if pose % 2 == 0 else -1.0
    half, depth, shear = (0.5, 0.94, 0.44) if pose < 2 else (0.38, 1.15, 0.34)
    thick = 0.15 * p.rise
    lean, far = side * shear, -depth * (0.35 + 0.55 * p.tilt)
    # The lower cover, the block of pages and the upper cover, as seen on the two near edges.
    near, far_x = side * half, side * half + lean
    p.paint(p.polygon((near, 0), (far_x, far), (far_x, far - thick), (near, -thick)), 0.55)
    page_top, page_foot = -thick * 0.78, -thick * 0.2
    side_pages = p.polygon((near, page_foot), (far_x, far + page_foot), (far_x, far + page_top), (near, page_top))
    p.paint_fixed(side_pages, _PAPER, 0.72)
    p.paint(p.box(-half, -thick, half, 0), 0.62)
    p.paint_fixed(p.box(-half + 0.03, page_top, half, page_foot), _PAPER)
    cover = p.polygon((-half, -thick), (half, -thick), (half + lean, far - thick), (-half + lean, far - thick))
    p.paint(cover, 1.1 - 0.12 * p.x)

    def on_cover(across: float, along: float) -> tuple[float, float]:
        return across * half + along * lean, along * far - thick

    title = [on_cover(a, b) for a, b in ((-0.5, 0.62), (0.5, 0.62), (0.5, 0.8), (-0.5, 0.8))]
    p.paint_fixed(p.polygon(*title), _PAPER, 0.95)
    spine = [on_cover(a, b) for a, b in ((-1.0, 0.0), (-0.84, 0.0), (-0.84, 1.0), (-1.0, 1.0))]
    p.paint(p.polygon(*spine), 0.72)
    p.cast_shifted(0.1, 0.05)


def _paint_banana(p: SpritePainter, pose: int) -> None:
    cos, sin = _DIRECTIONS[(0, 1, 2, 3, 4, 5)[pose]]
    # The crescent is drawn on the table plane: turn, then squash by part of the tilt because the fruit has height.
    squash = 0.62 + 0.3 * p.tilt
    y = (p.y + 0.34 * squash) / squash
    along, across = cos * p.x + sin * y, cos * y - sin * p.x
    across = across - 0.16
    outer = along**2 + (across + 0.38) ** 2
    inner = along**2 / (0.86 * 0.86) + (across + 0.74) ** 2
    crescent = (outer <= 0.62 * 0.62) & (inner >= 0.66 * 0.66) & (across >= -0.5)
    p.paint(crescent, 0.62 + 0.9 * np.clip(0.62 - np.sqrt(outer), 0.0, 0.5) + 0.2 - 0.22 * (p.x + y))
    p.paint(crescent & (outer >= 0.5 * 0.5), 0.72 - 0.15 * (p.x + y))
    ends = crescent & (across <= -0.36)
    p.paint_fixed(ends, (74, 56, 38))
    p.cast_shifted(0.07, 0.06)


def _paint_key(p: SpritePainter, pose: int) -> None:
    cos, sin = _DIRECTIONS[pose]
    squash = 0.68 + 0.25 * p.tilt
    y = (p.y + 0.3 * squash) / squash
    along, across = cos * p.x + sin * y + 0.06, cos * y - sin * p.x
    ring = along + 0.36
    distance = ring * ring + across * across
    head = (distance <= 0.27 * 0.27) & (distance >= 0.125 * 0.125)
    shaft = (along >= -0.12) & (along <= 0.66) & (np.abs(across) <= 0.075)
    bits = ((along >= 0.3) & (along <= 0.42)) | ((along >= 0.53) & (along <= 0.66))
    teeth = bits & (across >= 0.0) & (across <= 0.24)
    p.paint(head | shaft | teeth, 0.98 - 0.35 * p.x)
    p.paint(shaft & (across > 0.02), 0.74)
    p.paint(head & (distance <= 0.165 * 0.165), 0.68)
    p.gloss(head & (distance >= 0.22 * 0.22) & (p.x < -0.1), 90)
    p.cast_shifted(0.05, 0.06)


def _paint_lamp(p: SpritePainter, pose: int) -> None:
    del pose
    foot, crown, rim = 0.28, -1.2 * p.rise, -0.66 * p.rise
    p.paint(p.ellipse(0, 0, foot, foot * p.tilt), 0.42)
    p.paint(p.ellipse(0, -0.05, foot, foot * p.tilt), 0.72 - 0.3 * p.x)
    p.paint_fixed(p.box(-0.045, rim, 0.045, -0.05), _METAL, 0.8)
    p.paint_fixed(p.box(-0.045, rim, -0.01, -0.05), _METAL, 1.2)
    wide, narrow = 0.47, 0.2
    shade = p.trunk([(crown, narrow), (rim, wide)])
    p.paint(shade | p.ellipse(0, rim, wide, wide * p.tilt * 0.4), _round_shade(p.x, wide) + 0.08)
    p.paint_fixed(p.ellipse(0, crown, narrow, narrow * p.tilt * 0.6), _GLOW)
    p.gloss(p.polygon((-0.22, rim), (-0.15, rim), (-0.08, crown), (-0.12, crown)), 70)
    p.cast(p.ellipse(0.22, 0.0, 0.52, 0.24 * p.tilt + 0.05))


_PAINTERS: dict[str, tuple[Callable[[SpritePainter, int], None], tuple[float, float, float, float]]] = {
    "cup": (_paint_cup, (-0.75, -0.95, 0.85, 0.35)),
    "bottle": (_paint_bottle, (-0.45, -1.4, 0.9, 0.35)),
    "plate": (_paint_plate, (-0.75, -0.6, 0.85, 0.6)),
    "bowl": (_paint_bowl, (-0.65, -0.85, 0.85, 0.45)),
    "ball": (_paint_ball, (-0.5, -0.95, 0.75, 0.4)),
    "box": (_paint_box, (-0.8, -1.3, 1.0, 0.25)),
    "book": (_paint_book, (-1.05, -1.2, 1.15, 0.25)),
    "banana": (_paint_banana, (-0.85, -1.0, 0.9, 0.6)),
    "key": (_paint_key, (-0.85, -1.0, 0.9, 0.6)),
    "lamp": (_paint_lamp, (-0.6, -1.4, 0.9, 0.35)),
}


@lru_cache(maxsize=4096)
def get_sprite(kind: str, pose: int, unit_eighths: int, view: str, mirror: bool) -> Sprite:
    """Paint a sprite, or return the one painted before.

    Args:
        kind: One of `KINDS`.
        pose: Which pose, from 0 to `NUM_POSES[kind] - 1`.
        unit_eighths: Pixels per unit of the thing, in eighths of a pixel.
        view: A key of `VIEWS`.
        mirror: Mirror the thing together with the light that falls on it (light from the right).

    Raises:
        ValueError: If the kind, the view or the pose does not exist, or the unit is not positive.
    """
    if kind not in _PAINTERS:
        raise ValueError(f"There is no kind {kind!r}; choose one of {', '.join(KINDS)}.")
    if view not in VIEWS:
        raise ValueError(f"There is no view {view!r}; choose one of {', '.join(VIEWS)}.")
    if not 0 <= pose < NUM_POSES[kind]:
        raise ValueError(f"A {kind} has the poses 0 to {NUM_POSES[kind] - 1}, got {pose}.")
    if unit_eighths < 1:
        raise ValueError(f"unit_eighths must be at least 1, got {unit_eighths}.")
    paint, extent = _PAINTERS[kind]
    painter = SpritePainter(unit_eighths / 8.0, extent, view)
    paint(painter, pose)
    return painter.finish(mirror)
