"""Outlines of a mask as polygons."""

import numpy as np

from .mask_values import binary_mask


# Unit steps (dx, dy) of the four directions in which an outline runs, numbered clockwise: right, down, left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the outlines of a mask along the edges of its pixels.

    The polygons describe the mask exactly: filled by the even-odd rule they give it back, and their signed areas sum
    up to its number of pixels. Outer outlines run clockwise as seen on the screen and have positive area, outlines of
    holes run the other way. Pixels that touch only at a corner belong to different outlines.

    Args:
        mask (`np.ndarray`): of shape `(height, width)`: bool, 0 and 1, or 0 and 255.

    Returns:
        `list[np.ndarray]`: one int64 array of shape `(corners, 2)` per outline, each row `(x, y)` in pixels, where
        pixel (row, column) covers `x` from column to column + 1 and `y` from row to row + 1. The first corner is the
        topmost, then leftmost one and is not repeated at the end; outlines are ordered by it.

    Raises:
        ValueError: The mask has another shape or other values.

    Example:
        >>> mask_to_polygons(np.array([[False, True, True]]))[0].tolist()
        [[1, 0], [3, 0], [3, 1], [1, 1]]
    """
    padded = np.pad(binary_mask(mask), 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    # Every edge between a pixel inside and one outside, directed so that the inside lies on its right hand
    edges: dict[tuple[int, int], dict[int, None]] = {}
    for direction, present, offset in (
        (0, inside & ~above, (0, 0)),
        (1, ~inside & left, (0, 0)),
        (2, ~inside & above, (1, 0)),
        (3, inside & ~left, (0, 1)),
    ):
        rows, columns = np.nonzero(present)
        for x, y in zip((columns + offset[0]).tolist(), (rows + offset[1]).tolist(), strict=True):
            edges.setdefault((x, y), {})[direction] = None
    polygons = []
    for start in sorted(edges, key=lambda corner: (corner[1], corner[0])):
        while edges[start]:
            polygons.append(np.array(_trace(edges, start), dtype=np.int64))
    return polygons


def _trace(edges: dict[tuple[int, int], dict[int, None]], start: tuple[int, int]) -> list[tuple[int, int]]:
    """Follow one outline from `start` back to it, taking its edges away; return the corners where it turns."""
    direction = min(edges[start])
    corner, corners = start, [start]
    while True:
        del edges[corner][direction]
        corner = (corner[0] + _STEPS[direction][0], corner[1] + _STEPS[direction][1])
        # Turn right first: where two pixels touch at a corner this stays with the present one
        turn = next((turn for turn in (1, 0, 3) if (direction + turn) % 4 in edges[corner]), None)
        if turn is None:
            return corners
        direction = (direction + turn) % 4
        if turn:
            corners.append(corner)


__all__ = ["mask_to_polygons"]
