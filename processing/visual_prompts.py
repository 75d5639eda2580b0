"""Visual prompts: drawn on an image so that a vision-language model can be asked about a region of it.

The shapes, their sizes and the words for them are those ViP-LLaVA was trained with (visual_prompt_generator.py of the
original). Nothing here needs that model: `draw_visual_prompts` gives an image and `describe` a phrase that any
vision-language processor takes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .colors import read_color
from .image_loading import MAX_IMAGE_PIXELS, ImageSource, load_rgb_image
from .regions import Region, read_region


# Preposition and noun by which the model knows each shape.
SHAPE_WORDS = {
    "rectangle": ("within", "rectangle"),
    "ellipse": ("within", "ellipse"),
    "triangle": ("with", "triangle"),
    "point": ("at", "point"),
    "scribble": ("with", "scribble"),
    "mask contour": ("with", "mask contour"),
    "mask": ("with", "mask"),
    "arrow": ("pointed to by", "arrow"),
}
SHAPES = tuple(SHAPE_WORDS)
# The colours the model was trained to hear by name; the values are CSS's.
COLOR_POOL = {
    "red": (255, 0, 0),
    "lime": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "fuchsia": (255, 0, 255),
    "aqua": (0, 255, 255),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "gold": (255, 215, 0),
}
# Side of the published models' input: all sizes below are pixels of an image whose longer side is this.
ANCHOR = 336
# Without a sampler: the command line of the original, and the middle of what training saw.
DEFAULT_ALPHA = 128
_DEFAULT_WIDTH = 3
_DEFAULT_RADIUS = 8
_DEFAULT_SIZE_RATIO = 1.25
_DEFAULT_ARROW_LENGTH = 50
_DEFAULT_HEAD_SHARE = 0.35
_SCRIBBLE_STEPS = 1000

# "<bbox>", "<bbox0>", "<region 0>"; without a number it means the only prompt there is.
_PLACEHOLDER = re.compile(r"<(?:bbox|region)\s*(\d*)>")

Rgb = tuple[int, int, int]
Rgba = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class VisualPrompt:
    r"""
    The region it points at, and every parameter of its drawing. What is `None` is filled in for the image when it is
    drawn, always in the same way; training samples all of it.

    Args:
        shape (`str`):
            `"rectangle"`, `"ellipse"`, `"triangle"`, `"point"`, `"scribble"`, `"mask-contour"`, `"mask"` or `"arrow"`.
        box_xyxy, polygons, mask, rle (*optional*):
            The region, see [`read_region`]: a box, or one of the others, or a box and one of them.
        color (`str` or `tuple[int, int, int]`, *optional*):
            A name (those of `COLOR_POOL` are the ones ViP-LLaVA knows) that the phrase will say, or "#rrggbb" or RGB
            in 0..255, which it will not. By default a colour of the pool that tells the prompt from the others.
        alpha (`int`, *optional*): 0 (invisible) to 255 (opaque); 128 by default.
        width (`int`, *optional*):
            Of lines, in pixels of this image, at least 1 (0 for a mask contour of one pixel); 3 at the anchor's size
            by default.
        radius (`float`, *optional*): Of a point, in pixels of this image; 8 at the anchor's size by default.
        aspect_ratio (`float`, *optional*):
            A point's radii are `radius * aspect_ratio` and `radius / aspect_ratio`; 1 by default.
        size_ratio (`float`, *optional*): How much larger an ellipse's box is than the region; 1.25 by default.
        points (`Sequence[tuple[float, float]]`, *optional*):
            The 3 corners of a triangle, the 4 control points of a scribble, the centre of a point, the tip of an
            arrow; in the region by default.
        angle (`float`, *optional*):
            Direction from the tip of an arrow to its tail, radians, clockwise from the right; by default towards the
            side of the image with more room.
        length (`float`, *optional*):
            Of an arrow's shaft and head together, in pixels of this image: the shaft, which ends at the tip, is
            `length - head_length` long.
        head_length (`float`, *optional*): Of both sides of the head, which stand 60 degrees off the shaft.
        head_filled (`bool`, *optional*): Whether an arrow's head is a triangle, as by default, or two lines.
        bend (`tuple[float, float]`, *optional*):
            How far the middle of an arrow's shaft is moved; straight by default.
        anchor (`int`, *optional*):
            Side of the model's input, to whose size lines scale; by default that of the processor which draws it, and
            336 where none does.

    Raises:
        ValueError: The shape is unknown, or a parameter is out of its range.

    Example:
        >>> describe(VisualPrompt("rectangle", box_xyxy=(40, 30, 120, 100), color="red"))
        'within the red rectangle'
    """

    shape: str
    box_xyxy: Any = None
    polygons: Any = None
    mask: Any = None
    rle: Mapping[str, Any] | None = None
    color: str | Rgb | None = None
    alpha: int | None = None
    width: int | None = None
    radius: float | None = None
    aspect_ratio: float | None = None
    size_ratio: float | None = None
    points: Sequence[tuple[float, float]] | None = None
    angle: float | None = None
    length: float | None = None
    head_length: float | None = None
    head_filled: bool | None = None
    bend: tuple[float, float] | None = None
    anchor: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", read_shape(self.shape))
        if self.color is not None:
            read_color(self.color)
        self.region  # noqa: B018  so that a bad region is refused where it was given
        for name in ("alpha", "width"):
            value = getattr(self, name)
            if value is None:
                continue
            if int(value) != value:
                raise ValueError(f"{name} of a visual prompt is {value}; it must be a whole number.")
            object.__setattr__(self, name, int(value))  # Pillow takes no other kind
        for name in ("angle", "length", "head_length", "points", "bend"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(np.asarray(value, dtype=np.float64)).all():
                raise ValueError(f"{name} of a visual prompt is {value}; it must hold finite numbers.")
        if self.alpha is not None and not 0 <= self.alpha <= 255:
            raise ValueError(f"alpha is {self.alpha}. It is the opacity of a visual prompt and must lie in 0..255.")
        if self.width is not None and self.width < (0 if self.shape == "mask contour" else 1):
            raise ValueError(f"The width of a {self.shape} is {self.width} pixels; it must be at least 1.")
        for name in ("radius", "aspect_ratio", "size_ratio"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of a visual prompt is {value}; it must be above 0.")
        if self.anchor is not None and self.anchor < 1:
            raise ValueError(f"anchor is {self.anchor}; it is a side in pixels and must be at least 1.")
        wanted = _NUM_POINTS.get(self.shape)
        if self.points is not None and wanted is not None and np.shape(self.points) != (wanted, 2):
            raise ValueError(f"A {self.shape} takes {wanted} points (x, y); points has {np.shape(self.points)}.")

    @cached_property
    def region(self) -> Region:
        """[`Region`]: What it points at."""
        return read_region(self.box_xyxy, self.polygons, self.mask, self.rle)

    @property
    def color_name(self) -> str | None:
        """`str`, *optional*: The colour as phrases call it; `None` for colours without a name."""
        return color_name(self.color)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VisualPrompt):
            return NotImplemented
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return all(_same(first, second) for first, second in pairs)

    __hash__ = None


_NUM_POINTS = {"triangle": 3, "scribble": 4, "point": 1, "arrow": 1}


def describe(prompt: VisualPrompt, article: bool = True) -> str:
    """What to write after the name of a thing: "within the red rectangle", "at the point"; `article` says "the"."""
    return describe_shape(prompt.shape, prompt.color_name, article)


def describe_shape(shape: str, color_name: str | None = None, article: bool = True) -> str:
    """As [`describe`], of a shape and the name of its colour."""
    preposition, noun = SHAPE_WORDS[read_shape(shape)]
    return " ".join(word for word in (preposition, "the" if article else None, color_name, noun) if word)


def fill_placeholders(text: str, prompts: Sequence[VisualPrompt]) -> str:
    """
    Args:
        text (`str`):
            A question or an answer. `<bboxN>` and `<region N>` stand for the prompt number N, counted from 0; `<bbox>`
            and `<region>` for the only one.
        prompts (`Sequence[VisualPrompt]`):
            What is drawn on the image. Those without a colour are named as `draw_visual_prompts` colours them.

    Returns:
        `str`: The text with the phrases in place.

    Raises:
        ValueError: If a placeholder stands for no prompt.

    Example:
        >>> mug = VisualPrompt("rectangle", box_xyxy=(10, 12, 60, 70))
        >>> fill_placeholders("What is the thing <bbox0>?", [mug])
        'What is the thing within the red rectangle?'
    """
    phrases = [describe(prompt) for prompt in assign_colors(prompts)]

    def phrase(found: re.Match) -> str:
        number = found[1]
        if number and int(number) < len(phrases):
            return phrases[int(number)]
        if not number and len(phrases) == 1:
            return phrases[0]
        if number:
            problem = f"{len(phrases)} visual prompts were given; they are counted from 0"
        else:
            problem = f"{len(phrases)} visual prompts were given; say which one: <bbox0>, <bbox1>, ..."
        raise ValueError(f"The text {text[:80]!r} holds {found[0]}, and {problem}.")

    return _PLACEHOLDER.sub(phrase, text)


def read_shape(shape: str) -> str:
    """The shape's name in `SHAPES`; for "mask contour" also "mask-contour", as it is typed, and "mask_contour".

    Raises:
        ValueError: If there is no such shape.
    """
    known = str(shape).strip().lower().replace("-", " ").replace("_", " ")
    if known not in SHAPE_WORDS:
        names = ", ".join(name.replace(" ", "-") for name in SHAPES)
        raise ValueError(f"Unknown shape {shape!r} of a visual prompt; there are {names}.")
    return known


def color_name(color: str | Sequence[int] | None) -> str | None:
    """The colour as phrases call it: a name is said, "#rrggbb" and numbers are not."""
    return color.lower() if isinstance(color, str) and color.isalpha() else None


def assign_colors(prompts: Sequence[VisualPrompt]) -> list[VisualPrompt]:
    """Give a colour to the prompts that have none: the first of the pool no other prompt of the shape has.

    Raises:
        ValueError: If a shape occurs more often than there are colours.
    """
    prompts = list(prompts)
    used = {(prompt.shape, read_color(prompt.color)) for prompt in prompts if prompt.color is not None}
    for index, prompt in enumerate(prompts):
        if prompt.color is not None:
            continue
        name = next((name for name, value in COLOR_POOL.items() if (prompt.shape, value) not in used), None)
        if name is None:
            raise ValueError(
                f"There are more than {len(COLOR_POOL)} visual prompts of the shape {prompt.shape!r}: no colour is "
                "left to tell them apart. Give some of them another shape, or colours of your own."
            )
        used.add((prompt.shape, COLOR_POOL[name]))
        prompts[index] = replace(prompt, color=name)
    return prompts


def scale_length(length: float, image_size: tuple[int, int], anchor: int = ANCHOR) -> int:
    """Bring a length in pixels of an image whose longer side is `anchor` to an image of this (height, width), rounded
    down; 0 is possible."""
    return int(length * max(image_size) / anchor)


def complete_prompt(prompt: VisualPrompt, image_size: tuple[int, int], anchor: int = ANCHOR) -> VisualPrompt:
    """
    Args:
        prompt (`VisualPrompt`): The prompt.
        image_size (`tuple[int, int]`): (height, width) of the image to draw on.
        anchor (`int`, *optional*, defaults to 336): Side of the model's input, where the prompt names none.

    Returns:
        [`VisualPrompt`]: With a value for everything its shape is drawn with, and the given values unchanged.

    Raises:
        ValueError: If the region is not one of such an image.
    """
    prompt.region.check_size(image_size)
    if prompt.anchor is None:
        prompt = replace(prompt, anchor=anchor)
    values = {"color": "red", "alpha": DEFAULT_ALPHA} | _DEFAULTS[prompt.shape](prompt, image_size)
    return replace(prompt, **{name: value for name, value in values.items() if getattr(prompt, name) is None})


def draw_visual_prompts(
    image: ImageSource,
    prompts: Sequence[VisualPrompt],
    anchor: int = ANCHOR,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Image.Image:
    """Draw visual prompts on an image, one after the other.

    Args:
        image (`PIL.Image.Image` or whatever else `load_rgb_image` reads):
            The image, at the size in whose pixels the prompts were given; it stays as it is.
        prompts (`Sequence[VisualPrompt]`): Later ones cover earlier ones. `assign_colors` colours those without.
        anchor (`int`, *optional*, defaults to 336): Side of the model's input, where a prompt names none.
        max_image_pixels (`int`, *optional*, defaults to 67108864): Largest allowed height x width of the image.

    Returns:
        `PIL.Image.Image`: A new image, RGB, upright.

    Raises:
        ValueError: If the image is too large or cannot be read, or a region is not one of it.
    """
    drawn = load_rgb_image(image, max_image_pixels)
    if drawn is image:
        drawn = drawn.copy()
    for prompt in assign_colors(prompts):
        prompt = complete_prompt(prompt, (drawn.height, drawn.width), anchor)
        layer = Image.new("RGBA", drawn.size, (0, 0, 0, 0))
        _DRAW[prompt.shape](ImageDraw.Draw(layer), prompt, (*read_color(prompt.color), prompt.alpha))
        if area := layer.getbbox():
            blended = Image.alpha_composite(drawn.crop(area).convert("RGBA"), layer.crop(area))
            drawn.paste(blended.convert("RGB"), area)
    return drawn


# ---- what each shape is drawn with ----------------------------------------------------------------------------------


def _line_width(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    return {"width": max(scale_length(_DEFAULT_WIDTH, image_size, prompt.anchor), 1)}


def _contour_defaults(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    # an outline is 2 * width + 1 pixels wide
    return {"width": max(scale_length(1, image_size, prompt.anchor), 1)}


def _ellipse_defaults(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    return {**_line_width(prompt, image_size), "size_ratio": _DEFAULT_SIZE_RATIO}


def _triangle_defaults(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = prompt.region.bounds()
    return {**_line_width(prompt, image_size), "points": (((x1 + x2) / 2, y1), (x1, y2), (x2, y2))}


def _point_defaults(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    radius = max(scale_length(_DEFAULT_RADIUS, image_size, prompt.anchor), 1)
    return {"radius": radius, "aspect_ratio": 1.0, "points": (prompt.region.inner_point(),)}


def _scribble_defaults(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = prompt.region.bounds()
    x, y = prompt.region.inner_point()
    # an S through the region, halfway between its corners and a point inside
    corners = ((x1, y1), (x2, y1), (x1, y2), (x2, y2))
    points = tuple(((corner[0] + x) / 2, (corner[1] + y) / 2) for corner in corners)
    return {**_line_width(prompt, image_size), "points": points}


def _arrow_defaults(prompt: VisualPrompt, image_size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = prompt.region.box_xyxy
    height, width = image_size
    tip = prompt.points[0] if prompt.points is not None else prompt.region.inner_point()
    longest = max(scale_length(_DEFAULT_ARROW_LENGTH, image_size, prompt.anchor), 1)
    length = prompt.length if prompt.length is not None else max(0.8 * min(x2 - x1, y2 - y1), longest)
    shortest_head = scale_length(6, image_size, prompt.anchor)
    return {
        **_line_width(prompt, image_size),
        "points": (tip,),
        "angle": math.atan2(1 if tip[1] < height / 2 else -1, 1 if tip[0] < width / 2 else -1),
        "length": length,
        "head_length": max(_DEFAULT_HEAD_SHARE * length, shortest_head),
        "head_filled": True,
    }


_DEFAULTS = {
    "rectangle": _line_width,
    "ellipse": _ellipse_defaults,
    "triangle": _triangle_defaults,
    "point": _point_defaults,
    "scribble": _scribble_defaults,
    "mask contour": _contour_defaults,
    "mask": lambda prompt, image_size: {},
    "arrow": _arrow_defaults,
}


# ---- how each shape is drawn ----------------------------------------------------------------------------------------

# `color` is RGBA, 0..255. A canvas is RGBA and transparent; drawing replaces its pixels, so that lines which cross
# themselves do not get denser.


def _draw_rectangle(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    """The lines lie inside the box."""
    x1, y1, x2, y2 = prompt.region.box_xyxy
    canvas.rectangle([(x1, y1), (x2, y2)], outline=color, width=prompt.width)


def _draw_ellipse(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    x1, y1, x2, y2 = prompt.region.bounds()
    x, y = (x2 + x1) / 2, (y2 + y1) / 2
    width, height = (x2 - x1) * prompt.size_ratio, (y2 - y1) * prompt.size_ratio
    canvas.ellipse([x - width / 2, y - height / 2, x + width / 2, y + height / 2], outline=color, width=prompt.width)


def _draw_triangle(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    """Rounded where lines meet."""
    first, second, third = prompt.points
    canvas.line([first, second, third, first], fill=color, width=prompt.width, joint="curve")


def _draw_point(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    x, y = prompt.points[0]
    x_radius, y_radius = prompt.radius * prompt.aspect_ratio, prompt.radius / prompt.aspect_ratio
    canvas.ellipse([x - x_radius, y - y_radius, x + x_radius, y + y_radius], outline=color, fill=color)


def _draw_scribble(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    """A cubic Bezier curve."""
    width, height = canvas.im.size
    t = np.linspace(0, 1, max(scale_length(_SCRIBBLE_STEPS, (height, width), prompt.anchor), 2))[:, None]
    first, second, third, fourth = np.asarray(prompt.points, dtype=np.float64)
    curve = (1 - t) ** 3 * first + 3 * (1 - t) ** 2 * t * second + 3 * (1 - t) * t**2 * third + t**3 * fourth
    canvas.line([tuple(point) for point in curve.tolist()], fill=color, width=prompt.width)


def _draw_arrow(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    tip, angle = prompt.points[0], prompt.angle
    x, y = tip
    shaft_length = prompt.length - prompt.head_length
    tail = (x + shaft_length * math.cos(angle), y + shaft_length * math.sin(angle))
    shaft = [tip, tail]
    if prompt.bend is not None:
        shaft.insert(1, ((x + tail[0]) / 2 + prompt.bend[0], (y + tail[1]) / 2 + prompt.bend[1]))
    canvas.line(shaft, fill=color, width=prompt.width)
    sides = [
        (x + prompt.head_length * math.cos(angle + turn), y + prompt.head_length * math.sin(angle + turn))
        for turn in (math.pi / 3, -math.pi / 3)
    ]
    head = [sides[0], tip, sides[1]]
    if prompt.head_filled:
        canvas.polygon(head, fill=color)
    else:
        canvas.line(head, fill=color, width=prompt.width)


def _draw_mask(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    """The pixels of a mask, with its holes; polygons each on its own, so that one inside another makes none."""
    if prompt.region.mask is not None:
        canvas.bitmap((0, 0), Image.fromarray(prompt.region.mask.astype(np.uint8) * 255), fill=color)
        return
    for polygon in _outlines(prompt.region):
        canvas.polygon([tuple(corner) for corner in polygon.tolist()], fill=color)


def _draw_mask_contour(canvas: ImageDraw.ImageDraw, prompt: VisualPrompt, color: Rgba) -> None:
    """Outlines, those of a mask's holes included, `2 * width + 1` pixels wide: one pixel, at all shifts of up to
    `width`."""
    width, mask = prompt.width, prompt.region.mask
    if mask is not None:
        padded = np.pad(mask, 1)
        surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        line = Image.fromarray((mask & ~surrounded).astype(np.uint8) * 255)
        canvas.bitmap((0, 0), line.filter(ImageFilter.MaxFilter(2 * width + 1)), fill=color)
        return
    for polygon in _outlines(prompt.region):
        for dx in range(-width, width + 1):
            for dy in range(-width, width + 1):
                canvas.polygon([tuple(corner) for corner in (polygon + np.array([dx, dy])).tolist()], outline=color)


def _outlines(region: Region) -> Sequence[np.ndarray]:
    x1, y1, x2, y2 = region.box_xyxy
    return region.polygons or [np.array([[x1, y1], [x1, y2], [x2, y2], [x2, y1]], dtype=np.float64)]


_DRAW = {
    "rectangle": _draw_rectangle,
    "ellipse": _draw_ellipse,
    "triangle": _draw_triangle,
    "point": _draw_point,
    "scribble": _draw_scribble,
    "mask contour": _draw_mask_contour,
    "mask": _draw_mask,
    "arrow": _draw_arrow,
}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return first is not None and second is not None and np.array_equal(first, second)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


__all__ = [
    "ANCHOR",
    "COLOR_POOL",
    "SHAPES",
    "SHAPE_WORDS",
    "VisualPrompt",
    "assign_colors",
    "color_name",
    "complete_prompt",
    "describe",
    "describe_shape",
    "draw_visual_prompts",
    "fill_placeholders",
    "read_shape",
    "scale_length",
]
