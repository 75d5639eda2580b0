"""Polygons painted as OpenCV 4 does, which drew the masks of ReasonSeg: without OpenCV, pixel for pixel.

Corners are whole numbers and stand for pixel centres. Every edge is painted as a line of pixels, then the inside by
the even-odd rule, row by row. So a polygon is about half a pixel larger than pycocotools draws it, two corners are a
line and one is a dot. OpenCV 5 paints other pixels.
"""

import numpy as np


# Bits of the fraction with which OpenCV steps along an edge (XY_SHIFT of drawing.cpp), and half a pixel.
_SHIFT = 16
_HALF = 1 << (_SHIFT - 1)
# Corners are 32-bit whole numbers.
LARGEST_COORDINATE = 2**31 - 1


def paint_polygon(corners: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """
    Paint one closed polygon, as `cv2.fillPoly` with 8-connected lines does.

    Args:
        corners (`np.ndarray`): whole numbers `(corners, 2)`, each row `(x, y)` in pixels. They may lie outside.
        size (`tuple[int, int]`): (height, width) of the image.

    Returns:
        `tuple`: the part of the image that the polygon may touch, as an index into an array `(height, width)`, and a
        bool mask of the shape of that part. A polygon outside the image has an empty part.

    Example:
        >>> part, mask = paint_polygon(np.array([[0, 0], [2, 0], [2, 2]]), (4, 4))
        >>> mask.astype(int).tolist()
        [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    """
    height, width = size
    corners = np.asarray(corners, dtype=np.int64)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    if left < 0 or right >= width or top < 0 or bottom >= height:
        left, right = 0, width - 1  # where edges are clipped, rounding turns them a little
    left, top = max(left - 1, 0), max(top, 0)
    right, bottom = min(right + 2, width), min(bottom + 1, height)
    part = (slice(top, max(top, bottom)), slice(left, max(left, right)))
    mask = np.zeros((max(bottom - top, 0), max(right - left, 0)), dtype=bool)
    if not mask.size:
        return part, mask
    crossings = []
    for start, end in zip(np.roll(corners, 1, axis=0).tolist(), corners.tolist(), strict=True):
        visible = _clip(start, end, size)
        if visible is not None:
            columns, rows = _line(*visible)
            mask[rows - top, columns - left] = True
        crossings.append(_crossings(start, end, visible, height))
    _fill(mask, crossings, top, left)
    return part, mask


def _line(start: tuple[int, int], end: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of an 8-connected line, always drawn from its left end."""
    (x0, y0), (x1, y1) = (start, end) if start[0] <= end[0] else (end, start)
    across, down = x1 - x0, abs(y1 - y0)
    long, short = max(across, down), min(across, down)
    steps = np.arange(long + 1)
    # Bresenham's error term in closed form: steps along the short axis after so many along the long one
    aside = (2 * short * steps + long - 1) // (2 * long) if long else steps
    along_x, along_y = (steps, aside) if across >= down else (aside, steps)
    return x0 + along_x, y0 + along_y * (1 if y1 >= y0 else -1)


def _clip(start: list[int], end: list[int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The visible part of an edge by Cohen and Sutherland, in whole pixels; None outside the image."""
    right, bottom = size[1] - 1, size[0] - 1
    (x1, y1), (x2, y2) = start, end

    def outside(x: int, y: int) -> int:
        return (x < 0) + 2 * (x > right) + 4 * (y < 0) + 8 * (y > bottom)

    first, second = outside(x1, y1), outside(x2, y2)
    if not first & second and first | second:
        # each step uses the ends as the step before has moved them
        if first & 12:
            bound = 0 if first < 8 else bottom
            x1, y1 = x1 + int(float(bound - y1) * (x2 - x1) / (y2 - y1)), bound
            first = (x1 < 0) + 2 * (x1 > right)
        if second & 12:
            bound = 0 if second < 8 else bottom
            x2, y2 = x2 + int(float(bound - y2) * (x2 - x1) / (y2 - y1)), bound
            second = (x2 < 0) + 2 * (x2 > right)
        if not first & second and first | second:
            if first:
                bound = 0 if first == 1 else right
                x1, y1, first = bound, y1 + int(float(bound - x1) * (y2 - y1) / (x2 - x1)), 0
            if second:
                bound = 0 if second == 1 else right
                x2, y2, second = bound, y2 + int(float(bound - x2) * (y2 - y1) / (x2 - x1)), 0
    return None if first | second else ((x1, y1), (x2, y2))


def _crossings(
    start: list[int], end: list[int], visible: tuple[tuple[int, int], tuple[int, int]] | None, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the image that an edge crosses, its lowest one left out, and where, in 65536ths of a pixel."""
    if start[1] == end[1]:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    inside = visible is not None and visible == (tuple(start), tuple(end))
    if inside or visible is None or visible[0][1] == visible[1][1]:
        (x0, y0), (x1, y1) = start, end
    else:
        (x0, y0), (x1, y1) = visible
    half = _HALF if inside else 0
    rise, run = y1 - y0, (x1 - x0) << _SHIFT
    slope = abs(run) // abs(rise) * (1 if (run >= 0) == (rise >= 0) else -1)  # C's division, towards zero
    # from its upper end, which the division makes another line than from its lower one
    x, y = (x0, y0) if start[1] < end[1] else (x1, y1)
    rows = np.arange(max(min(start[1], end[1]), 0), max(0, min(max(start[1], end[1]), height)))
    return rows, (x << _SHIFT) + half + (rows - y) * slope


def _fill(mask: np.ndarray, crossings: list[tuple[np.ndarray, np.ndarray]], top: int, left: int) -> None:
    """Paint from every odd crossing of a row to the next one, both ends included."""
    rows = np.concatenate([of_edge for of_edge, _ in crossings])
    places = np.concatenate([of_edge for _, of_edge in crossings])
    order = np.lexsort((places, rows))
    rows, columns = rows[order] - top, (places[order] >> _SHIFT) - left
    # a closed outline crosses each row an even number of times
    first, last = columns[0::2], columns[1::2]
    rows, width = rows[0::2], mask.shape[1]
    seen = (first < width) & (last >= 0)
    rows, first, last = rows[seen], np.maximum(first[seen], 0), np.minimum(last[seen], width - 1)
    changes = np.zeros((mask.shape[0], width + 1), dtype=np.int32)
    np.add.at(changes, (rows, first), 1)
    np.add.at(changes, (rows, last + 1), -1)
    mask |= np.cumsum(changes[:, :-1], axis=1) > 0


__all__ = ["LARGEST_COORDINATE", "paint_polygon"]
