"""Masks that people give, polygons and soft edges included: what annotation tools write, and arrays of targets."""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .image_loading import binary_mask, mask_array
from .regions import check_mask_size, read_mask_pixels


# How far outside 0..1 soft edges may lie: resizing rounds.
_ROUNDING = 1e-4
# How far corners may lie outside the image, as a share of its side: tools overshoot a little, and it is cut off.
# What reaches further belongs to an image of another size, or to one that is turned.
_OVERSHOOT = 0.05
_LEAST_OVERSHOOT = 2.0

Ring = np.ndarray


class EmptyMaskError(ValueError):
    """What was given has no area: no pixel of the image belongs to it."""


def read_mask(mask: Any, image_size: tuple[int, int] | None = None, what: str = "The mask") -> np.ndarray:
    """As [`read_mask_pixels`], and also polygons in pixels of the image, `[[x1, y1, x2, y2, x3, y3, ...], ...]`, see
    [`fill_polygons`], which need `image_size`.

    Raises:
        ImportError: Polygons were given and pycocotools is not installed.

    Example:
        >>> read_mask({"size": [2, 2], "counts": [1, 2, 1]}).tolist()
        [[False, True], [True, False]]
    """
    if image_size is None or not isinstance(mask, (list, tuple)):
        return read_mask_pixels(mask, image_size, what)
    try:
        looks_like_pixels = np.shape(mask) == tuple(image_size)
    except ValueError:  # lists of different lengths
        looks_like_pixels = False
    if looks_like_pixels:
        raise ValueError(
            f"{what} is a list of rows as long as the image's. Lists are polygons: give pixels as an array."
        )
    return fill_polygons(mask, image_size, what)


def read_soft_mask(mask: Any, image_size: tuple[int, int] | None = None, what: str = "The mask") -> np.ndarray:
    """As [`read_mask`], for targets whose edges may be soft: arrays may also hold floating-point values in 0..1.

    Returns:
        `np.ndarray`: float32 in 0..1, of shape `(height, width)`, contiguous.
    """
    if not isinstance(mask, (np.ndarray, torch.Tensor)):
        return read_mask(mask, image_size, what).astype(np.float32)
    read = soft_mask(mask, what)
    check_mask_size(read.shape, image_size, what)
    return read


def soft_mask(values: Any, what: str = "The mask") -> np.ndarray:
    """As [`read_soft_mask`], for arrays and tensors of any size."""
    values = mask_array(values, what)
    if values.dtype.kind == "f" and values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING:
        return np.clip(values, 0.0, 1.0).astype(np.float32, order="C")
    return binary_mask(values, what).astype(np.float32)


# ---- polygons -------------------------------------------------------------------------------------------------------


def read_polygons(polygons: Any, what: str = "The mask") -> list[list[Ring]]:
    """Bring polygons of every usual form to arrays.

    Args:
        polygons (`Sequence`):
            `[x1, y1, x2, y2, ...]`, `[[x1, y1, ...], ...]` as in COCO, `[[x, y], ...]`, `[[[x, y], ...], ...]` or
            arrays `(corners, 2)`: outlines of the parts of a mask. One level deeper, a list for each part that holds
            its outline and then its holes: `[[[x1, y1, ...], [x1, y1, ...]], ...]`, or the same with pairs.
        what (`str`, *optional*): The mask, as the error message names it.

    Returns:
        `list[list[np.ndarray]]`: For each part its outline and its holes, float64 of shape `(corners, 2)`; how many
        corners they have is not checked.

    Raises:
        ValueError: It is no list of numbers in one of these forms.
    """
    if not _is_list(polygons):
        raise ValueError(f"{what} is of type {type(polygons).__name__}, not a list of polygons.")
    depth = _depth(polygons)
    if depth == 1:
        return [[_ring(polygons, what)]]
    if depth == 2:
        if _lengths(polygons) == {2}:
            return [[_ring(polygons, what)]]
        return [[_ring(part, what)] for part in polygons]
    # of three levels the innermost are pairs, or whole rings
    if depth == 3 and all(_lengths(part) == {2} for part in polygons):
        return [[_ring(part, what)] for part in polygons]
    if depth in (3, 4):
        return [
            [_ring(ring, what) for ring in part] if _is_list(part) and len(part) else [_ring(part, what)]
            for part in polygons
        ]
    raise ValueError(
        f"{what} is an empty list of polygons. Give at least one, [[x1, y1, x2, y2, x3, y3, ...]] in pixels."
        if depth == 0
        else f"{what} is a list of {depth} levels. Give polygons as [[x1, y1, x2, y2, x3, y3, ...]] in pixels."
    )


def fill_polygons(
    polygons: Any, image_size: tuple[int, int], what: str = "The mask", inner: str = "refuse"
) -> np.ndarray:
    """Draw polygons as pycocotools does.

    Parts are united. A part that lies inside another and runs the other way round is a hole of it, as in what
    [`mask_to_polygons`] returns; one that runs the same way could be a mistake or a hole, and is refused.

    Args:
        polygons (`Sequence`): See [`read_polygons`]; x to the right, y downwards, in pixels of the image.
        image_size (`tuple[int, int]`): (height, width) of the image.
        what (`str`, *optional*): The mask, as the error message names it.
        inner (`str`, *optional*, defaults to `"refuse"`):
            What a part inside another is, where that is known: `"hole"` or `"fill"` (it belongs to the mask),
            whichever way round it runs.

    Returns:
        `np.ndarray`: bool, of shape `(height, width)`, with at least one pixel set.

    Raises:
        EmptyMaskError: They have no area in this image.
        ValueError: They are no polygons of this image, or may mean two things.
        ImportError: pycocotools is not installed.
    """
    parts = read_polygons(polygons, what)
    for ring in (ring for part in parts for ring in part):
        if len(ring) < 3:
            raise EmptyMaskError(
                f"{what} has a polygon of {len(ring)} corners ({ring.ravel().tolist()}). One with an area has 3 or "
                "more; a box is no mask."
            )
        check_bounds(ring, image_size, what)
    if all(len(part) == 1 for part in parts):
        outlines = [part[0] for part in parts]
        mask = fill_rings(outlines, image_size) if inner == "fill" else _fill_nested(outlines, image_size, what, inner)
    else:
        mask = np.zeros(image_size, dtype=bool)
        for outline, *holes in parts:
            filled = fill_rings([outline], image_size)
            for hole in holes:
                filled &= ~fill_rings([hole], image_size)
            mask |= filled
    if not mask.any():
        raise EmptyMaskError(f"{what} has polygons that cover no pixel of the image.")
    return mask


def check_bounds(ring: Ring, image_size: tuple[int, int], what: str, overshoot: float = _OVERSHOOT) -> None:
    """
    Raises:
        ValueError: A corner lies further outside the image than `overshoot`, a share of its side (or 2 pixels).
    """
    sides = np.array(image_size[::-1], dtype=np.float64)
    margin = np.maximum(_LEAST_OVERSHOOT, sides * overshoot)
    low, high = ring.min(axis=0), ring.max(axis=0)
    if (low < -margin).any() or (high > sides + margin).any():
        raise ValueError(
            f"{what} has a polygon from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), and the image is "
            f"{image_size[1]} x {image_size[0]} pixels (width x height). Give x and y in pixels of the upright image."
        )


def fill_rings(rings: Sequence[Ring], image_size: tuple[int, int]) -> np.ndarray:
    """Draw the union of polygons of 3 or more corners; bool, of shape `(height, width)`."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("Polygons need the package pycocotools. Install it: pip install pycocotools") from error
    encoded = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *image_size)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)


def _fill_nested(rings: Sequence[Ring], image_size: tuple[int, int], what: str, inner_is: str) -> np.ndarray:
    """Unite outlines; those inside another and the other way round are holes, islands in these are filled again."""
    boxes = [(ring.min(axis=0), ring.max(axis=0)) for ring in rings]
    inside = [
        [
            outer != inner and bool((boxes[inner][0] >= low).all() and (boxes[inner][1] <= high).all())
            for outer, (low, high) in enumerate(boxes)
        ]
        for inner in range(len(rings))
    ]
    if not any(map(any, inside)):
        return fill_rings(rings, image_size)
    masks = [fill_rings([ring], image_size) for ring in rings]
    areas = [int(mask.sum()) for mask in masks]
    order = sorted(range(len(rings)), key=lambda index: -areas[index])
    drawn, is_hole = np.zeros(image_size, dtype=bool), [False] * len(rings)
    for number, inner in enumerate(order):
        around = [
            outer
            for outer in order[:number]
            if inside[inner][outer] and 0 < areas[inner] < areas[outer] and not (masks[inner] & ~masks[outer]).any()
        ]
        if around:
            nearest = around[-1]
            if inner_is == "refuse" and _runs_clockwise(rings[inner]) == _runs_clockwise(rings[nearest]):
                raise ValueError(
                    f"{what} has a polygon inside another (number {inner + 1} in number {nearest + 1}). If it is a "
                    "hole, write [[outline, hole]] in place of [outline, hole], or use RLE; if not, leave it out."
                )
            is_hole[inner] = not is_hole[nearest]
        drawn[masks[inner]] = not is_hole[inner]
    return drawn


def _runs_clockwise(ring: Ring) -> bool:
    """Whether the outline runs clockwise as seen on the screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) > 0


def _ring(numbers: Any, what: str) -> Ring:
    try:
        ring = np.asarray(numbers)
    except ValueError:  # lists of different lengths
        ring = np.empty(0, dtype=object)
    if ring.ndim == 1 and ring.size % 2 == 0 and ring.dtype.kind in "iuf":
        ring = ring.reshape(-1, 2)
    is_ring = ring.ndim == 2 and ring.shape[1] == 2 and (ring.dtype.kind in "iuf" or not ring.size)
    if not is_ring or not np.isfinite(ring.astype(np.float64)).all():
        raise ValueError(
            f"{what} has the polygon {reprlib.repr(numbers)}. A polygon is an even number of finite numbers, [x1, y1, "
            "x2, y2, x3, y3, ...], and all polygons of a mask are nested alike."
        )
    return ring.astype(np.float64)


def _depth(value: Any) -> int:
    """Levels of lists above the first number; an array has one for each of its dimensions."""
    deepest, waiting = 0, [(value, 0)]  # in place of a recursion, as lists may be nested as deeply as JSON has it
    while waiting:
        part, above = waiting.pop()
        if isinstance(part, np.ndarray):
            deepest = max(deepest, above + part.ndim if part.size else above)
        elif _is_list(part) and part:
            deepest = max(deepest, above + 1)
            if _is_list(part[0]):
                waiting += [(each, above + 1) for each in part]
    return deepest


def _lengths(rings: Any) -> set[int]:
    return {len(ring) if _is_list(ring) else 0 for ring in rings} if _is_list(rings) else set()


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


__all__ = [
    "EmptyMaskError",
    "check_bounds",
    "fill_polygons",
    "fill_rings",
    "read_mask",
    "read_polygons",
    "read_soft_mask",
    "soft_mask",
]
