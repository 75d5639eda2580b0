"""The shapes of visual prompts, drawn with every parameter given (visual_prompt_generator.py of ViP-LLaVA).

Coordinates are pixels of the picture (x, y), angles radians; `color` is RGBA, 0..255. A canvas is RGBA and
transparent; drawing replaces its pixels, so that lines which cross themselves do not get denser.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


Point = tuple[float, float]
Color = tuple[int, int, int, int]


def draw_rectangle(canvas: ImageDraw.ImageDraw, box_xyxy: Sequence[float], color: Color, width: int) -> None:
    """The outline of a box; its lines lie inside the box."""
    x1, y1, x2, y2 = box_xyxy
    canvas.rectangle([(x1, y1), (x2, y2)], outline=color, width=width)


def draw_ellipse(
    canvas: ImageDraw.ImageDraw, box_xyxy: Sequence[float], color: Color, width: int, size_ratio: float
) -> None:
    """The outline of the ellipse in a box whose sides are first multiplied by `size_ratio`, about the centre."""
    x1, y1, x2, y2 = box_xyxy
    x, y = (x2 + x1) / 2, (y2 + y1) / 2
    width_of_box, height_of_box = (x2 - x1) * size_ratio, (y2 - y1) * size_ratio
    bounds = [x - width_of_box / 2, y - height_of_box / 2, x + width_of_box / 2, y + height_of_box / 2]
    canvas.ellipse(bounds, outline=color, width=width)


def draw_triangle(canvas: ImageDraw.ImageDraw, corners: Sequence[Point], color: Color, width: int) -> None:
    """The outline of a triangle, rounded where lines meet."""
    first, second, third = corners
    canvas.line([first, second, third, first], fill=color, width=width, joint="curve")


def draw_point(canvas: ImageDraw.ImageDraw, center: Point, color: Color, radius: float, aspect_ratio: float) -> None:
    """A filled ellipse with the radii `radius * aspect_ratio` and `radius / aspect_ratio`."""
    x, y = center
    x_radius, y_radius = radius * aspect_ratio, radius / aspect_ratio
    canvas.ellipse([x - x_radius, y - y_radius, x + x_radius, y + y_radius], outline=color, fill=color)


def draw_scribble(
    canvas: ImageDraw.ImageDraw, control_points: Sequence[Point], color: Color, width: int, num_steps: int
) -> None:
    """A cubic Bezier curve through `num_steps` places."""
    t = np.linspace(0, 1, num_steps)[:, None]
    first, second, third, fourth = np.asarray(control_points, dtype=np.float64)
    curve = (1 - t) ** 3 * first + 3 * (1 - t) ** 2 * t * second + 3 * (1 - t) * t**2 * third + t**3 * fourth
    canvas.line([tuple(place) for place in curve.tolist()], fill=color, width=width)


def draw_arrow(
    canvas: ImageDraw.ImageDraw,
    tip: Point,
    color: Color,
    width: int,
    angle: float,
    length: float,
    head_length: float,
    head_filled: bool,
    bend: Point | None,
) -> None:
    """
    An arrow whose tail lies in direction `angle` of its tip.

    Args:
        tip: Where it points to.
        length: Of shaft and head together: the shaft, which ends at the tip, is `length - head_length` long.
        head_length: Of both sides of the head, which stand 60 degrees off the shaft.
        head_filled: Whether the head is a triangle instead of two lines.
        bend: How far the middle of the shaft is moved; `None` draws it straight, in one line.
    """
    x, y = tip
    tail = (x + (length - head_length) * math.cos(angle), y + (length - head_length) * math.sin(angle))
    shaft = [tip, tail]
    if bend is not None:
        shaft.insert(1, ((x + tail[0]) / 2 + bend[0], (y + tail[1]) / 2 + bend[1]))
    canvas.line(shaft, fill=color, width=width)
    sides = [
        (x + head_length * math.cos(angle + turn), y + head_length * math.sin(angle + turn))
        for turn in (math.pi / 3, -math.pi / 3)
    ]
    head = [sides[0], tip, sides[1]]
    if head_filled:
        canvas.polygon(head, fill=color)
    else:
        canvas.line(head, fill=color, width=width)


def fill_polygons(canvas: ImageDraw.ImageDraw, polygons: Sequence[np.ndarray], color: Color) -> None:
    """Every polygon, filled on its own, so that one inside another makes no hole."""
    for polygon in polygons:
        canvas.polygon([tuple(corner) for corner in polygon.tolist()], fill=color)


def outline_polygons(canvas: ImageDraw.ImageDraw, polygons: Sequence[np.ndarray], color: Color, width: int) -> None:
    """The outline of every polygon, `2 * width + 1` pixels wide: one pixel, at all shifts of up to `width`."""
    for polygon in polygons:
        for dx in range(-width, width + 1):
            for dy in range(-width, width + 1):
                canvas.polygon([tuple(corner) for corner in (polygon + np.array([dx, dy])).tolist()], outline=color)


def fill_mask(canvas: ImageDraw.ImageDraw, mask: np.ndarray, color: Color) -> None:
    """Exactly the pixels of a mask, with its holes."""
    canvas.bitmap((0, 0), Image.fromarray(mask.astype(np.uint8) * 255), fill=color)


def outline_mask(canvas: ImageDraw.ImageDraw, mask: np.ndarray, color: Color, width: int) -> None:
    """The outlines of a mask, those of holes included, as wide as [`outline_polygons`] draws them."""
    padded = np.pad(mask, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    line = Image.fromarray((mask & ~surrounded).astype(np.uint8) * 255)
    canvas.bitmap((0, 0), line.filter(ImageFilter.MaxFilter(2 * width + 1)), fill=color)


__all__ = [
    "draw_arrow",
    "draw_ellipse",
    "draw_point",
    "draw_rectangle",
    "draw_scribble",
    "draw_triangle",
    "fill_mask",
    "fill_polygons",
    "outline_mask",
    "outline_polygons",
]
