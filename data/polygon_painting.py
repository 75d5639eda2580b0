"""Polygons painted as OpenCV 4 does, which drew the masks of ReasonSeg: without OpenCV, pixel for pixel.

Corners are whole numbers and stand for pixel centres. Every edge is painted as a line of pixels, then the inside by
the even-odd rule, row by row. So a polygon is about half a pixel larger than pycocotools draws it, two corners are a
line and one is a dot. OpenCV 5 paints other pixels.
"""

from collections.abc import Iterator

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
    starts, ends = np.roll(corners, 1, axis=0), corners
    limits = np.array([width, height])
    inside = ((starts >= 0) & (starts < limits) & (ends >= 0) & (ends < limits)).all(axis=1)
    visible, seen = np.concatenate([starts, ends], axis=1), inside.copy()
    for edge in np.flatnonzero(~inside).tolist():
        clipped = _clip(*visible[edge].tolist(), size)
        if clipped is not None:
            visible[edge], seen[edge] = clipped, True
    columns, rows = _lines(visible[seen])
    mask[rows - top, columns - left] = True
    for row, first, after in _spans(starts, ends, visible, seen, inside, part):
        mask[row, first:after] = True
    return part, mask


def _lines(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of 8-connected lines `(lines, 4)` of `(x1, y1, x2, y2)`, each drawn from its left end."""
    swapped = np.where((ends[:, 0] <= ends[:, 2])[:, None], ends, ends[:, [2, 3, 0, 1]])
    x0, y0, x1, y1 = swapped.T
    across, down = x1 - x0, np.abs(y1 - y0)
    line, step = _counted(np.maximum(across, down) + 1)
    long, short = np.maximum(np.maximum(across, down), 1)[line], np.minimum(across, down)[line]
    # Bresenham's error term in closed form: steps along the short axis after so many along the long one
    aside = (2 * short * step + long - 1) // (2 * long)
    is_wide = (across >= down)[line]
    along_x, along_y = np.where(is_wide, step, aside), np.where(is_wide, aside, step)
    return x0[line] + along_x, y0[line] + along_y * np.where(y1 >= y0, 1, -1)[line]


def _counted(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For lengths 2 and 3: `[0, 0, 1, 1, 1]` and `[0, 1, 0, 1, 2]`."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _clip(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The visible part of an edge by Cohen and Sutherland, in whole pixels; None outside the image."""
    right, bottom = size[1] - 1, size[0] - 1

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
    return None if first | second else (x1, y1, x2, y2)


def _spans(
    starts: np.ndarray,
    ends: np.ndarray,
    visible: np.ndarray,
    seen: np.ndarray,
    inside: np.ndarray,
    part: tuple[slice, slice],
) -> Iterator[tuple[int, int, int]]:
    """(row, first column, column after the last) in a part of the image, from every odd crossing to the next one."""
    (top, bottom), (left, right) = ((side.start, side.stop) for side in part)
    crossing = starts[:, 1] != ends[:, 1]
    use_visible = seen & (visible[:, 1] != visible[:, 3])
    x0, y0, x1, y1 = np.where(use_visible[:, None], visible, np.concatenate([starts, ends], axis=1))[crossing].T
    starts, ends, half = starts[crossing], ends[crossing], np.where(inside[crossing], _HALF, 0)
    rise, run = y1 - y0, (x1 - x0) << _SHIFT
    slope = np.abs(run) // np.abs(rise) * np.sign(run) * np.sign(rise)  # C's division, towards zero
    # from the upper end, which the division makes another line than from the lower one
    falls = starts[:, 1] < ends[:, 1]
    x, y = np.where(falls, x0, x1), np.where(falls, y0, y1)
    # the row of the lower end is left out
    first_row = np.clip(np.minimum(starts[:, 1], ends[:, 1]), top, bottom)
    edge, step = _counted(np.clip(np.maximum(starts[:, 1], ends[:, 1]), top, bottom) - first_row)
    rows = first_row[edge] + step
    crossings = (x[edge] << _SHIFT) + half[edge] + (rows - y[edge]) * slope[edge]
    order = np.lexsort((crossings, rows))
    # a closed outline crosses each row an even number of times
    rows, columns = (rows[order] - top)[::2].tolist(), crossings[order] >> _SHIFT
    first = np.clip(columns[::2], left, right) - left
    after = np.clip(columns[1::2] + 1, left, right) - left
    return zip(rows, first.tolist(), after.tolist(), strict=True)


__all__ = ["LARGEST_COORDINATE", "paint_polygon"]
