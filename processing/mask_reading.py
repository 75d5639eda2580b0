"""Masks that people give, of every kind: arrays, images and their files, COCO's run lengths and polygons."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_loading import MAX_IMAGE_PIXELS, check_pixel_count, open_image, upright_image
from .mask_values import binary_mask, soft_mask
from .polygon_filling import fill_polygons
from .run_lengths import fill_run_lengths, read_run_lengths


def read_mask(mask: Any, image_size: tuple[int, int] | None = None, what: str = "The mask") -> np.ndarray:
    """Read a mask of any kind, or say why it cannot be read. Nothing is resized, thresholded or guessed.

    Masks lie in the frame of the upright image, in which viewers show it (EXIF orientation applied).

    Args:
        mask:
            - an array or tensor `(height, width)` of any layout, or a Pillow image: bool, 0 and 1, or 0 and 255;
            - the path of an image file with such values, PNG best (JPEG changes them); of a palette whose first colour
              is black (a label map of one class) everything but that colour belongs to the mask;
            - COCO's run lengths, `{"size": [height, width], "counts": ...}`, compressed or a list of counts;
            - polygons in pixels of the image, `[[x1, y1, x2, y2, x3, y3, ...], ...]`, see [`fill_polygons`].
        image_size (`tuple[int, int]`, *optional*):
            (height, width) of the upright image, which the mask must have. Polygons need it.
        what (`str`, *optional*): The mask, as the error message shall name it.

    Returns:
        `np.ndarray`: bool, of shape `(height, width)`, contiguous.

    Raises:
        ValueError: The mask is of another size, or its values may mean several things.
        ImportError: Polygons were given and pycocotools is not installed.

    Example:
        >>> read_mask({"size": [2, 2], "counts": [1, 2, 1]}).tolist()
        [[False, True], [True, False]]
    """
    if isinstance(mask, Mapping):
        return read_rle(mask, image_size, what)
    if isinstance(mask, (list, tuple)):
        return _read_polygons(mask, image_size, what)
    if isinstance(mask, (str, os.PathLike)):
        try:
            opened = open_image(mask, _pixel_limit(image_size))
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        with opened:
            return read_mask(opened, image_size, f"{what} in {str(mask)[:200]!r}")
    read = binary_mask(_read_array(mask, image_size, what), what)
    check_mask_size(read.shape, image_size, what)
    return read


def read_rle(rle: Any, image_size: tuple[int, int] | None = None, what: str = "The RLE") -> np.ndarray:
    """As [`read_mask`], for COCO's run lengths alone."""
    size, counts = read_run_lengths(rle, what)
    if image_size is None:
        check_pixel_count(*size, what, MAX_IMAGE_PIXELS)
    check_mask_size(size, image_size, what)
    return fill_run_lengths(size, counts)


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


def check_mask_size(size: tuple[int, int], image_size: tuple[int, int] | None, what: str = "The mask") -> None:
    """
    Raises:
        ValueError: The (height, width) of a mask is not that of its image; None stands for an unknown one.
    """
    if image_size is None or tuple(size) == tuple(image_size):
        return
    turned = tuple(size) == tuple(image_size)[::-1]
    hint = (
        "Its sides are swapped: it is transposed, or drawn for the image as it is stored, before its EXIF orientation "
        "is applied. Masks lie in the upright frame, in which viewers show the image."
        if turned
        else "Give it at the size of the image; nothing is resized or repeated."
    )
    raise ValueError(f"{what} is {size[1]} x {size[0]} pixels, the image {image_size[1]} x {image_size[0]}. {hint}")


def _read_polygons(polygons: list | tuple, image_size: tuple[int, int] | None, what: str) -> np.ndarray:
    if image_size is None:
        raise ValueError(
            f"{what} is given by polygons, which do not tell how large the image is. Give an array or RLE."
        )
    try:
        looks_like_pixels = np.shape(polygons) == tuple(image_size)
    except ValueError:  # lists of different lengths
        looks_like_pixels = False
    if looks_like_pixels:
        raise ValueError(
            f"{what} is a list of rows as long as the image's. Lists are polygons: give pixels as an array."
        )
    return fill_polygons(polygons, image_size, what)


def _read_array(mask: Any, image_size: tuple[int, int] | None, what: str) -> Any:
    """The values of an array, a tensor or a Pillow image."""
    if isinstance(mask, (np.ndarray, torch.Tensor)):
        return mask
    if isinstance(mask, Image.Image):
        return _image_values(mask, image_size, what)
    raise ValueError(
        f"{what} is of type {type(mask).__name__}. Allowed are an array or tensor, a Pillow image, the path of an "
        "image file, COCO's run lengths and polygons."
    )


def _image_values(image: Image.Image, image_size: tuple[int, int] | None, what: str) -> np.ndarray:
    """The values of a black and white image of any mode, upright."""
    image = upright_image(image, what, _pixel_limit(image_size))
    if image.mode == "P":
        return _palette_values(image, what)
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    if "A" in image.mode or "a" in image.mode:
        values = np.asarray(image.convert("RGBA"))
        if (values[..., 3] != 255).any():
            raise ValueError(
                f"{what} has transparent pixels, so that it has two masks, colour and opacity. Save it without "
                "transparency, white on black."
            )
    values = np.asarray(image.convert("RGB"))
    if (values != values[..., :1]).any():
        raise ValueError(f"{what} has colours. Save one mask per file, white on black.")
    return values[..., 0]


def _pixel_limit(image_size: tuple[int, int] | None) -> int:
    """Largest height x width of a mask; one of an image that was accepted may be as large."""
    return MAX_IMAGE_PIXELS if image_size is None else max(MAX_IMAGE_PIXELS, image_size[0] * image_size[1])


def _palette_values(image: Image.Image, what: str) -> np.ndarray:
    """Grey palettes count by what they show, coloured ones by their numbers."""
    numbers = np.asarray(image)
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = np.unique(numbers)
    if used[-1] < len(palette) and (palette[used] == palette[used, :1]).all():
        return np.asarray(image.convert("L"))
    if palette[0].any() or len(used[used > 0]) > 1:
        raise ValueError(
            f"{what} has the palette colours {used.tolist()}. Allowed are black and white, or number 0 in black and "
            "one other; pick one class of a label map first."
        )
    return numbers > 0


__all__ = ["check_mask_size", "read_mask", "read_rle", "read_soft_mask"]
