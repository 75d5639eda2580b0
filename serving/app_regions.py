"""Regions that a person draws with a mouse, as the visual prompts that models know."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..processing.visual_prompts import VisualPrompt


# What the region tool is called, and the shape it draws.
TOOLS = {"box": "rectangle", "point": "point", "scribble": "scribble"}
# A cubic curve that is at these shares of its length where the mouse was, in control points: P = _CONTROLS @ Q.
_CONTROLS = np.array([[6, 0, 0, 0], [-5, 18, -9, 2], [2, -9, 18, -5], [0, 0, 0, 6]]) / 6
_MOST_POINTS = 10_000


def read_stroke(tool: str, points: Any, image_size: tuple[int, int]) -> VisualPrompt:
    """
    Args:
        tool (`str`): `box`, `point` or `scribble`.
        points (`list[list[float]]`): Where the mouse went while its button was down, `(x, y)` in pixels of the image.
        image_size (`tuple[int, int]`): (height, width).

    Returns:
        [`VisualPrompt`]: The box between the first point and the last; the last point; or the curve along all points,
        as the model was trained with: a cubic one.

    Raises:
        ValueError: There is no such tool, points are none, or the region has no extent.
    """
    if tool not in TOOLS:
        raise ValueError(f"There is no region tool {tool!r}; there are {', '.join(TOOLS)}.")
    path = _read_points(points, image_size)
    if tool == "point":
        x, y = path[-1].tolist()
        return VisualPrompt("point", box_xyxy=_box_of(path[-1:], image_size, grown=1), points=((x, y),))
    if tool == "box":
        corners = path[[0, -1]]
        if np.ptp(corners, axis=0).min() < 1:
            raise ValueError(
                "This box has no area. Press the button at one corner and release it at the opposite one."
            )
        (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return VisualPrompt("rectangle", box_xyxy=(x1, y1, x2, y2))
    if np.ptp(path, axis=0).max() < 1:
        raise ValueError("This scribble is a single point. Keep the button down while the mouse moves.")
    controls = _CONTROLS @ _evenly(path, 4)
    return VisualPrompt("scribble", box_xyxy=_box_of(path, image_size, grown=1), points=tuple(map(tuple, controls)))


def _read_points(points: Any, image_size: tuple[int, int]) -> np.ndarray:
    """The points within the image, float64 of shape `(points, 2)`."""
    try:
        path = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        path = np.empty(0)
    if path.ndim != 2 or path.shape[-1] != 2 or not 0 < len(path) <= _MOST_POINTS or not np.isfinite(path).all():
        raise ValueError(f"A region is a list of 1 to {_MOST_POINTS} points (x, y) in pixels of the image.")
    height, width = image_size
    return np.clip(path, 0, (width - 1, height - 1))


def _box_of(path: np.ndarray, image_size: tuple[int, int], grown: int) -> tuple[float, ...]:
    """The box around points, with room on all sides, within the image."""
    height, width = image_size
    low, high = np.maximum(path.min(axis=0) - grown, 0), np.minimum(path.max(axis=0) + grown, (width, height))
    return (*low.tolist(), *high.tolist())


def _evenly(path: np.ndarray, count: int) -> Sequence:
    """Points at equal distances along a path."""
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0.0, length[-1], count)
    return np.stack([np.interp(wanted, length, path[:, axis]) for axis in (0, 1)], axis=-1)


__all__ = ["TOOLS", "read_stroke"]
