"""Draw segments on their picture."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .image_loading import MAX_IMAGE_PIXELS, load_rgb_image


_GOLDEN_RATIO = 0.618033988749895
_REJECTED_COLOR = (64, 64, 64)


def segment_color(index: int) -> tuple[int, int, int]:
    """Return the RGB colour, 0..255, of the segment with this number: bright, and far from its neighbours' hues.

    Example:
        >>> segment_color(0)
        (255, 51, 51)
    """
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, 0.8, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def segment_name(label: str | None, index: int) -> str:
    """Return what to call a segment: its label, or its number from 1 on where the answer gives it none."""
    return label or f"segment {index + 1}"


def is_light(color: tuple[int, int, int]) -> bool:
    """Whether black is easier to read on a colour than white (weights of Rec. 601 luma)."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140


def draw_segments(image: Any, segments: Sequence[Any], image_size: tuple[int, int], alpha: float = 0.5) -> Image.Image:
    """Draw masks and labels on a picture.

    Args:
        image: the picture, of any kind `load_rgb_image` reads.
        segments (`Sequence[Segment]`): `label`, `mask`, `score`, `rejected` and `box_xyxy` are used.
        image_size (`tuple[int, int]`): (height, width) the picture must have.
        alpha (`float`, *optional*, defaults to 0.5): share of the colour on a mask, 0..1.

    Returns:
        `PIL.Image.Image`: mode RGB, upright.

    Raises:
        ValueError: The picture has another size, or `alpha` is outside 0..1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}. It is the share of the colour and must lie in 0..1.")
    # the picture was accepted before, when it was segmented
    picture = load_rgb_image(image, max_image_pixels=max(MAX_IMAGE_PIXELS, image_size[0] * image_size[1]))
    if (picture.height, picture.width) != tuple(image_size):
        raise ValueError(
            f"The image is {picture.width} x {picture.height} pixels, the masks are {image_size[1]} x "
            f"{image_size[0]}. Pass the image that was segmented."
        )
    pixels = np.array(picture)
    for index, segment in enumerate(segments):
        if segment.mask is not None:
            colored = pixels[segment.mask] * (1.0 - alpha) + np.array(segment_color(index)) * alpha
            pixels[segment.mask] = np.rint(colored).astype(np.uint8)
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, min(image_size) // 32))
    for index, segment in enumerate(segments):
        if segment.mask is not None and segment.box_xyxy is not None:
            text = f"{segment_name(segment.label, index)} {segment.score:.2f}"
            _draw_label(canvas, segment.box_xyxy[:2], text, segment_color(index), font)
    bottom = picture.height
    for index, segment in reversed(list(enumerate(segments))):
        if segment.rejected:
            text = f"not in the image: {segment_name(segment.label, index)}"
            bottom = _draw_label(canvas, (0, bottom), text, _REJECTED_COLOR, font)
    return picture


def _draw_label(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, color: tuple[int, int, int], font: Any
) -> int:
    """Write `text` on a filled box above `corner`, moved inside the picture; return the y of the box's upper edge."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    picture_width, picture_height = canvas.im.size
    x = max(0, min(corner[0], picture_width - width))
    y = max(0, min(corner[1] - height, picture_height - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    fill = (0, 0, 0) if is_light(color) else (255, 255, 255)
    canvas.text((x + 3 - left, y + 3 - top), text, fill=fill, font=font)
    return y


__all__ = ["draw_segments", "is_light", "segment_color", "segment_name"]
