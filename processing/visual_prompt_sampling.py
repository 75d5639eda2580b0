"""Visual prompts drawn at random, in the order and the ranges of ViP-LLaVA's training (visual_prompt_generator.py).

Nothing here is published beside a checkpoint.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .regions import Region
from .visual_prompts import (
    ANCHOR,
    COLOR_POOL,
    SHAPES,
    Rgb,
    VisualPrompt,
    color_name,
    describe_shape,
    read_shape,
    scale_length,
)


CONSTANT = "constant"
# A region that is almost a line holds no triangle without an angle of nearly 180 degrees; the original looks
# for one forever.
_MAX_TRIANGLES = 1000


@dataclass(frozen=True)
class PromptRandom:
    """
    The two sources of randomness of the original, which draws positions with NumPy and everything else with Python.

    Args:
        python (`random.Random`): Used for all choices, also those of question texts.
        numpy (`np.random.RandomState`): NumPy's older generator, whose values are fixed for a seed.
    """

    python: random.Random
    numpy: np.random.RandomState

    @classmethod
    def from_seed(cls, seed: int) -> "PromptRandom":
        """Both generators as after `random.seed(seed)` and `numpy.random.seed(seed)`; 0 <= seed < 2**32."""
        return cls(random.Random(seed), np.random.RandomState(seed))


@dataclass(frozen=True)
class PromptStyle:
    """
    A shape and a colour, before there is an image to draw on.

    Args:
        shape (`str`): One of `SHAPES`.
        color (`str` or `tuple[int, int, int]`): A name of `COLOR_POOL`, or RGB that phrases do not name.
    """

    shape: str
    color: str | Rgb

    @property
    def color_name(self) -> str | None:
        """`str`, *optional*: The colour as phrases call it."""
        return color_name(self.color)

    def describe(self, article: bool = True) -> str:
        """See [`describe`]."""
        return describe_shape(self.shape, self.color_name, article)


def sample_color(rng: PromptRandom, unnamed: float = 0.5) -> str | Rgb:
    """A random RGB colour with probability `unnamed`, else a name of the pool."""
    if rng.python.random() < unnamed:
        return _random_rgb(rng)
    return rng.python.choice(list(COLOR_POOL))


def sample_styles(rng: PromptRandom, count: int, shapes: Sequence[str] = SHAPES) -> list[PromptStyle]:
    """Styles for `count` regions that are told apart by shape or by named colour (`get_color_shape`).

    A shape that occurs once is as often named by a colour as not. Ones that occur more often than there are colours
    get random ones without a name.
    """
    drawn = rng.python.choices(list(shapes), k=count)
    often = {shape for shape, times in Counter(drawn).items() if times > 1}
    used: dict[str, list[str]] = {shape: [] for shape in drawn}
    styles = []
    for shape in drawn:
        if shape in often:
            free = [name for name in COLOR_POOL if name not in used[shape]]
            color = rng.python.choice(free) if free else _random_rgb(rng)
        else:
            color = rng.python.choice(list(COLOR_POOL)) if rng.python.choice([True, False]) else _random_rgb(rng)
        if isinstance(color, str):
            used[shape].append(color)
        styles.append(PromptStyle(shape, color))
    return styles


def sample_paired_styles(
    rng: PromptRandom, count: int, shapes: Sequence[str], tell_apart: bool = False
) -> list[PromptStyle]:
    """Styles as `vip_processor` draws them for RefCOCOg and for the relations of Visual Genome.

    Args:
        rng (`PromptRandom`): Source of all choices.
        count (`int`): Number of regions.
        shapes (`Sequence[str]`): What to choose from, for each region on its own.
        tell_apart (`bool`, *optional*, defaults to `False`):
            Whether two regions of the same shape get different named colours. Otherwise all have one colour, named or
            not: the original draws a second one only where it compares them.
    """
    drawn = [rng.python.choice(list(shapes)) for _ in range(count)]
    differ = tell_apart and len(drawn) > 1 and drawn[0] == drawn[1]
    colors: list[str | Rgb] = []
    for _ in drawn:
        if colors and not differ:
            colors.append(colors[0])
            continue
        color = None
        while color is None or color in colors:
            color = sample_color(rng, 0.0 if differ else 0.5)
        colors.append(color)
    return [PromptStyle(shape, color) for shape, color in zip(drawn, colors, strict=True)]


def sample_visual_prompt(
    rng: PromptRandom,
    region: Region,
    image_size: tuple[int, int],
    shape: str | None = None,
    color: str | Rgb | None = None,
    style: str = "",
    alpha: int | None = None,
    base_width: float | None = None,
    anchor: int = ANCHOR,
) -> VisualPrompt:
    """Draw all parameters of a visual prompt (`image_blending`).

    Args:
        rng (`PromptRandom`): Source of all choices; the same state gives the same prompt.
        region (`Region`): What the prompt points at, see [`read_region`].
        image_size (`tuple[int, int]`): (height, width) of the image.
        shape (`str`, *optional*): One of `SHAPES`; drawn by default.
        color (`str` or `tuple[int, int, int]`, *optional*): A name or RGB; drawn by default, after the shape.
        style (`str`, *optional*): `"constant"` fixes the width of rectangles (3) and the radius of points (8).
        alpha (`int`, *optional*): Opacity; by default 96 to 255, of a mask 48 to 128.
        base_width (`float`, *optional*):
            Width of lines in pixels of an image whose longer side is `anchor`, instead of a drawn one.
        anchor (`int`, *optional*, defaults to 336): Side of the model's input.

    Returns:
        [`VisualPrompt`]: With a value for everything its shape is drawn with.

    Raises:
        ValueError: If the region is not one of such an image, or style or shape are unknown.
    """
    if style not in ("", CONSTANT):
        raise ValueError(f"Unknown style {style!r} of visual prompts; it is empty or {CONSTANT!r}.")
    region.check_size(image_size)
    shape = rng.python.choice(SHAPES) if shape is None else read_shape(shape)
    color = sample_color(rng) if color is None else color
    if alpha is None:
        alpha = rng.python.randint(48, 128) if shape == "mask" else rng.python.randint(96, 255)
    part = rng.python.choice(range(region.num_parts)) if region.num_parts else None
    scaled = _Scale(image_size, anchor)

    low, high = _WIDTHS.get(shape, (0, 0))
    values: dict[str, Any] = {}
    if shape == "rectangle" and style == CONSTANT:
        values["width"] = max(scaled(3), 1)
    elif shape in _WIDTHS:
        # Drawn even where a width is given, so that later draws stay the same.
        values["width"] = max(rng.python.randint(scaled(low), scaled(high)), 1)
    if shape in _WIDTHS and base_width is not None:
        values["width"] = max(scaled(base_width), 1)
    if shape in _SAMPLERS:
        values |= _SAMPLERS[shape](rng, region, part, scaled, style)
    return VisualPrompt(
        shape,
        box_xyxy=region.box_xyxy,
        polygons=region.polygons or None,
        mask=region.mask,
        color=color,
        alpha=alpha,
        anchor=anchor,
        **values,
    )


# Smallest and largest width of lines at the anchor's size. A mask has no line, but its width is drawn.
_WIDTHS = {
    "rectangle": (2, 8),
    "ellipse": (2, 8),
    "triangle": (2, 8),
    "scribble": (2, 12),
    "mask": (0, 2),
    "mask contour": (1, 2),
    "arrow": (1, 6),
}


@dataclass(frozen=True)
class _Scale:
    image_size: tuple[int, int]
    anchor: int

    def __call__(self, length: float) -> int:
        return scale_length(length, self.image_size, self.anchor)


def _ellipse(rng: PromptRandom, region: Region, part: int | None, scaled: _Scale, style: str) -> dict[str, Any]:
    return {"size_ratio": rng.python.uniform(1, 1.5)}


def _triangle(rng: PromptRandom, region: Region, part: int | None, scaled: _Scale, style: str) -> dict[str, Any]:
    x1, y1, x2, y2 = region.bounds()
    is_line = x1 == x2 or y1 == y2
    for _ in range(1 if is_line else _MAX_TRIANGLES):
        corners = tuple(_sample_point(rng, region, None) for _ in range(3))
        if not _has_flat_angle(corners):
            break
    return {"points": corners}


def _point(rng: PromptRandom, region: Region, part: int | None, scaled: _Scale, style: str) -> dict[str, Any]:
    constant = style == CONSTANT
    radius = max(scaled(8) if constant else rng.python.randint(scaled(5), scaled(20)), 1)
    round_one = rng.python.random() < 0.5 or constant
    aspect_ratio = 1.0 if round_one else rng.python.uniform(0.5, 2.0)
    x1, y1, x2, y2 = region.bounds(part)
    mean = [(x2 + x1) / 2, (y2 + y1) / 2]
    # An eighth of the sides is the variance, not the standard deviation: points lie close to the centre.
    covariance = [[(x2 - x1) / 8, 0], [0, (y2 - y1) / 8]]
    for _ in range(11):  # the eleventh is taken wherever it lies
        center = tuple(rng.numpy.multivariate_normal(mean, covariance).tolist())
        if region.contains(*center, part):
            break
    return {"radius": radius, "aspect_ratio": aspect_ratio, "points": (center,)}


def _scribble(rng: PromptRandom, region: Region, part: int | None, scaled: _Scale, style: str) -> dict[str, Any]:
    return {"points": tuple(_sample_point(rng, region, part) for _ in range(4))}


def _arrow(rng: PromptRandom, region: Region, part: int | None, scaled: _Scale, style: str) -> dict[str, Any]:
    x1, y1, x2, y2 = region.box_xyxy
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    uniform = rng.python.uniform
    # Of a large region the second bound is the smaller one; `uniform` takes them in any order.
    length = uniform(0.8 * min(x2 - x1, y2 - y1), max(scaled(50), 1))
    angle = uniform(0, 2 * math.pi)
    x += uniform(-0.25, 0.25) * (x2 - x1)
    y += uniform(-0.25, 0.25) * (y2 - y1)
    head_length = max(uniform(0.2, 0.5) * length, scaled(6))
    bend = None
    if rng.python.random() < 0.5:
        bend = (uniform(-5, 5) * scaled(1), uniform(-5, 5) * scaled(1))
    return {
        "points": ((x, y),),
        "angle": angle,
        "length": length,
        "head_length": head_length,
        "head_filled": rng.python.random() < 0.5,
        "bend": bend,
    }


_SAMPLERS = {
    "ellipse": _ellipse,
    "triangle": _triangle,
    "point": _point,
    "scribble": _scribble,
    "arrow": _arrow,
}


def _sample_point(rng: PromptRandom, region: Region, part: int | None) -> tuple[float, float]:
    """A point inside, or after fifty misses anywhere in the bounds."""
    x1, y1, x2, y2 = region.bounds(part)
    for _ in range(51):
        x, y = rng.numpy.uniform(x1, x2), rng.numpy.uniform(y1, y2)
        if region.contains(x, y, part):
            break
    return x, y


def _has_flat_angle(corners: Sequence[tuple[float, float]]) -> bool:
    """Whether an angle is above 150 degrees. Corners that coincide have none."""
    points = np.asarray(corners)
    with np.errstate(all="ignore"):
        for index in range(3):
            first, second, third = (points[(index + shift) % 3] for shift in range(3))
            a, b, c = (np.linalg.norm(side) for side in (third - second, first - third, first - second))
            if np.degrees(np.arccos((a**2 + c**2 - b**2) / (2 * a * c))) > 150:
                return True
    return False


def _random_rgb(rng: PromptRandom) -> Rgb:
    return rng.python.randint(0, 255), rng.python.randint(0, 255), rng.python.randint(0, 255)


__all__ = [
    "CONSTANT",
    "PromptRandom",
    "PromptStyle",
    "sample_color",
    "sample_paired_styles",
    "sample_styles",
    "sample_visual_prompt",
]
