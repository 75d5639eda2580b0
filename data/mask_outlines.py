"""Masks as polygons of annotation tools: one outline for each part, holes joined to it, and what that costs."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import count

import numpy as np

from ..processing.mask_reading import fill_rings
from ..processing.segments import mask_to_polygons


@dataclass(frozen=True)
class Outlines:
    """
    Args:
        rings (`list[np.ndarray]`): An outline per part, float64 of shape `(corners, 2)` with rows (x, y) in pixels. A
            hole is joined to it by a bridge without an area: filled by the even-odd rule, the rings give the mask.
        iou (`float`): Of what pycocotools fills them with and the mask; 1 for outlines that follow every pixel.
    """

    rings: list[np.ndarray]
    iou: float


def trace_outlines(pixels: np.ndarray, tolerance: float = 0.0, joined: bool = False) -> Outlines:
    """
    Trace a mask.

    Args:
        pixels (`np.ndarray`): The mask, bool of shape `(height, width)`.
        tolerance (`float`): How far, in pixels, a polygon may leave the outline; 0 follows the edges of the pixels.
        joined (`bool`): Whether all parts become one ring, for formats that have one polygon per object.

    Returns:
        [`Outlines`]: without rings for an empty mask.
    """
    parts = [[_simplified(ring, tolerance) for ring in part] for part in _parts(mask_to_polygons(pixels))]
    if joined:
        parts = [[ring for part in parts for ring in part]] if parts else []
    rings = [_joined(part).astype(np.float64) for part in parts]
    if tolerance <= 0 or not rings:
        return Outlines(rings, 1.0)
    filled = fill_rings(rings, pixels.shape)
    return Outlines(rings, float((filled & pixels).sum() / max(1, (filled | pixels).sum())))


def _parts(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Outlines with their holes: a hole belongs to the smallest outline around the pixel above its first corner."""
    areas = [_signed_area(ring) for ring in rings]
    outer = [index for index, area in enumerate(areas) if area > 0]
    parts = {index: [rings[index]] for index in outer}
    # the smallest first, and of these only where the box is around it: masks of noise have thousands of both
    ordered = sorted(outer, key=lambda other: areas[other])
    least, most = (
        np.array([extreme(rings[other], axis=0) for other in ordered]).reshape(-1, 2) for extreme in (np.min, np.max)
    )
    for index, area in enumerate(areas):
        if area < 0:
            x, y = rings[index][0] + (0.5, -0.5)
            near = np.flatnonzero(((least < (x, y)) & ((x, y) < most)).all(axis=1))
            around = next(ordered[place] for place in near if _is_inside(rings[ordered[place]], x, y))
            parts[around].append(rings[index])
    return list(parts.values())


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring that goes to each of the others, from the corner that is nearest to its first, and comes back the same
    way."""
    if len(rings) == 1:
        return rings[0]
    corners: list[tuple[int, int]] = []
    following: list[int] = []
    rows: dict[int, list[tuple[int, int]]] = {}
    for ring in rings:
        added = [(int(x), int(y)) for x, y in ring]
        start = _nearest(rows, *added[0]) if rows else None
        first = len(corners)
        if start is not None:
            added += [added[0], corners[start]]
        for place, (x, y) in enumerate(added[: len(ring)], start=first):
            insort(rows.setdefault(y, []), (x, place))
        corners += added
        following += range(first + 1, len(corners) + 1)
        if start is not None:
            following[start], following[-1] = first, following[start]
        else:
            following[-1] = -1
    ordered, place = [], 0
    while place >= 0:
        ordered.append(corners[place])
        place = following[place]
    return np.array(ordered)


def _nearest(rows: dict[int, list[tuple[int, int]]], x: int, y: int) -> int:
    """The place of the corner that is nearest to a point, of corners (x, place) in order by their y."""
    nearest, found = np.inf, 0
    for away in count():
        if away * away >= nearest:
            return found
        for row in (rows.get(y - away, ()), rows.get(y + away, ())):
            position = bisect_left(row, (x,))
            for other, place in row[max(0, position - 1) : position + 1]:
                distance = (other - x) ** 2 + away * away
                if distance < nearest:
                    nearest, found = distance, place


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Ramer, Douglas and Peucker's choice of the corners of a ring; what would lose its area stays as it is."""
    if tolerance <= 0 or len(ring) < 4:
        return ring
    # both ends of the two lines that are simplified stay: the first corner and the one that is furthest from it
    middle = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]]).astype(np.float64)
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, middle, -1]] = True
    waiting = [(0, middle), (middle, len(closed) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        furthest = int(distances.argmax())
        if distances[furthest] > tolerance:
            split = first + 1 + furthest
            kept[split] = True
            waiting += [(first, split), (split, last)]
    chosen = closed[:-1][kept[:-1]]
    return chosen if len(chosen) >= 3 and _signed_area(chosen) != 0 else ring


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances of points to the line between two others."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0.0, 1.0) if length else np.zeros(len(points))
    return np.sqrt(((points - start - share[:, None] * along) ** 2).sum(axis=1))


def _signed_area(ring: np.ndarray) -> float:
    """Positive for a ring that runs clockwise as seen on the screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def _is_inside(ring: np.ndarray, x: float, y: float) -> bool:
    """Whether a point lies in a ring of horizontal and vertical edges; only vertical ones to its right count."""
    start, end = ring, np.roll(ring, -1, axis=0)
    crossed = ((start[:, 1] > y) != (end[:, 1] > y)) & (start[:, 0] > x)
    return bool(np.count_nonzero(crossed) % 2)


__all__ = ["Outlines", "trace_outlines"]
