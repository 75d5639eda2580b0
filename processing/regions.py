"""Regions of an image that people give, of every kind: masks as arrays, images and run lengths, boxes and polygons."""

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_loading import MAX_IMAGE_PIXELS, binary_mask, check_pixel_count, mask_box, open_image, upright_image


# Bits per character of compressed run lengths, and characters of the largest number that can occur.
_BITS, _MOST_CHARACTERS = 5, 7

Box = tuple[float, float, float, float]


def read_mask_pixels(mask: Any, image_size: tuple[int, int] | None = None, what: str = "The mask") -> np.ndarray:
    """Read a mask, or say why it cannot be read. Nothing is resized, thresholded or guessed.

    Masks lie in the frame of the upright image, in which viewers show it (EXIF orientation applied).

    Args:
        mask:
            - an array or tensor `(height, width)` of any layout, or a Pillow image: bool, 0 and 1, or 0 and 255;
            - the path of an image file with such values, PNG best (JPEG changes them); of a palette whose first colour
              is black (a label map of one class) everything but that colour belongs to the mask;
            - COCO's run lengths, `{"size": [height, width], "counts": ...}`, compressed or a list of counts.
        image_size (`tuple[int, int]`, *optional*): (height, width) of the upright image, which the mask must have.
        what (`str`, *optional*): The mask, as the error message names it.

    Returns:
        `np.ndarray`: bool, of shape `(height, width)`, contiguous.

    Raises:
        ValueError: The mask is of another kind or size, or its values may mean several things.
    """
    if isinstance(mask, Mapping):
        return read_rle(mask, image_size, what)
    if isinstance(mask, (list, tuple)):
        raise ValueError(
            f"{what} is given by polygons, which do not tell how large the image is. Give an array or RLE."
        )
    # a mask of an image that was accepted may be as large as it
    limit = MAX_IMAGE_PIXELS if image_size is None else max(MAX_IMAGE_PIXELS, image_size[0] * image_size[1])
    if isinstance(mask, (str, os.PathLike)):
        try:
            opened = open_image(mask, limit)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        with opened:
            return read_mask_pixels(opened, image_size, f"{what} in {str(mask)[:200]!r}")
    if isinstance(mask, Image.Image):
        mask = _image_values(upright_image(mask, what, limit), what)
    elif not isinstance(mask, (np.ndarray, torch.Tensor)):
        raise ValueError(
            f"{what} is of type {type(mask).__name__}. Allowed are an array or tensor, a Pillow image, the path of an "
            "image file, COCO's run lengths and polygons."
        )
    read = binary_mask(mask, what)
    check_mask_size(read.shape, image_size, what)
    return read


def read_rle(rle: Any, image_size: tuple[int, int] | None = None, what: str = "The RLE") -> np.ndarray:
    """As [`read_mask_pixels`], for COCO's run lengths alone."""
    (height, width), counts = read_run_lengths(rle, what)
    if image_size is None:
        check_pixel_count(height, width, what, MAX_IMAGE_PIXELS)
    check_mask_size((height, width), image_size, what)
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def read_run_lengths(rle: Any, what: str = "The RLE") -> tuple[tuple[int, int], np.ndarray]:
    """Check run lengths: pixels column by column, background first. pycocotools does not: counts that do not cover
    the image leave memory as it was found.

    Args:
        rle (`Mapping`): `{"size": [height, width], "counts": ...}`, compressed (`str` or `bytes`) or a list of counts.
        what (`str`, *optional*): The mask, as the error message names it.

    Returns:
        `tuple`: (height, width), and the counts as an int64 array whose sum is height x width.

    Raises:
        ValueError: It is no RLE, or its counts do not cover exactly its size.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise ValueError(f"{what} must be a dict with size and counts, not {reprlib.repr(rle)}.")
    size = _whole_numbers(rle["size"])
    if size is None or len(size) != 2 or size.min() < 1:
        raise ValueError(f"{what} has the size {reprlib.repr(rle['size'])}. Give [height, width], each 1 or more.")
    height, width = map(int, size)
    given = rle["counts"]
    counts = _decompress(given, what) if isinstance(given, (str, bytes)) else _whole_numbers(given)
    if counts is None:
        raise ValueError(
            f"{what} has the counts {reprlib.repr(given)}. Give a list of whole numbers, or COCO's compressed text."
        )
    pixels = height * width
    # each by itself too, so that the sum cannot wrap around
    if not len(counts) or counts.min() < 0 or counts.max() > pixels or counts.sum() != pixels:
        raise ValueError(
            f"{what} has counts that sum up to {sum(counts.tolist())}; its size {height} x {width} (height, width) "
            f"needs {pixels}, in counts of 0 or more."
        )
    return (height, width), counts


def check_mask_size(size: tuple[int, int], image_size: tuple[int, int] | None, what: str = "The mask") -> None:
    """
    Raises:
        ValueError: The (height, width) of a mask is not that of its image; None is an unknown one.
    """
    if image_size is None or tuple(size) == tuple(image_size):
        return
    hint = "Give it at the size of the image; nothing is resized or repeated."
    if tuple(size) == tuple(image_size)[::-1]:
        hint = (
            "Its sides are swapped: it is transposed, or drawn for the image as it is stored, before its EXIF "
            "orientation is applied. Masks lie in the upright frame, in which viewers show the image."
        )
    raise ValueError(f"{what} is {size[1]} x {size[0]} pixels, the image {image_size[1]} x {image_size[0]}. {hint}")


def _image_values(image: Image.Image, what: str) -> np.ndarray:
    """The values of a black and white image of any mode."""
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


def _whole_numbers(values: Any) -> np.ndarray | None:
    """A list of whole numbers as an int64 array; None for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return None
    whole = array.ndim == 1 and array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64)
    return array.astype(np.int64) if whole else None


def _decompress(text: str | bytes, what: str) -> np.ndarray:
    """The numbers of the compressed form (rleFrString of COCO's maskApi.c)."""
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    characters = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    continues = (characters & 32) != 0
    ends = np.flatnonzero(~continues)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    in_range = len(characters) > 0 and characters.min() >= 0 and characters.max() < 64
    if not in_range or continues[-1] or lengths.max() > _MOST_CHARACTERS:
        raise ValueError(f"{what} has the counts {reprlib.repr(text)}, which are no compressed counts of COCO.")
    index = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 31) << (_BITS * index), starts)
    numbers -= np.where((characters[ends] & 16) != 0, 1 << (_BITS * lengths), 0)
    # From the fourth on, each is the difference to the one two before.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


# ---- regions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Region:
    """A region of an image, in pixels; x to the right, y downwards. Made by [`read_region`].

    Args:
        box_xyxy (`tuple[float, float, float, float]`):
            x1, y1, x2, y2. Of a mask these are its first and last columns and rows.
        polygons (`tuple[np.ndarray, ...]`, *optional*): float64, each `(corners, 2)` with rows (x, y).
        mask (`np.ndarray`, *optional*): bool, `(height, width)` of the image.
    """

    box_xyxy: Box
    polygons: tuple[np.ndarray, ...] = ()
    mask: np.ndarray | None = None

    @property
    def num_parts(self) -> int:
        """`int`: Areas a point may be chosen in; 0 where only the box has one.

        ViP-LLaVA leaves all polygons aside as soon as one of them has fewer than three corners.
        """
        if self.mask is not None:
            return 1
        return len(self.polygons) if all(len(polygon) >= 3 for polygon in self.polygons) else 0

    def bounds(self, part: int | None = None) -> Box:
        """x1, y1, x2, y2 around an area (`part` < `num_parts`) or, by default, all; `box_xyxy` where there is none."""
        if self.mask is not None:
            return _mask_box(self.mask)
        if not self.num_parts:
            return self.box_xyxy
        return _polygon_box(self.polygons if part is None else self.polygons[part : part + 1])

    def contains(self, x: float, y: float, part: int | None = None) -> bool:
        """Whether a point lies in an area (`part` < `num_parts`) or, by default, in any. Polygons that cut themselves
        count by the even-odd rule."""
        if self.mask is not None:
            row, column = math.floor(y), math.floor(x)
            height, width = self.mask.shape
            return 0 <= row < height and 0 <= column < width and bool(self.mask[row, column])
        if not self.num_parts:
            x1, y1, x2, y2 = self.box_xyxy
            return x1 <= x <= x2 and y1 <= y <= y2
        polygons = self.polygons if part is None else self.polygons[part : part + 1]
        return any(_is_inside(polygon, x, y) for polygon in polygons)

    def inner_point(self) -> tuple[float, float]:
        """The centre (x, y) of the bounds if the region contains it, else a point inside that is near it."""
        x1, y1, x2, y2 = self.bounds()
        center = ((x1 + x2) / 2, (y1 + y2) / 2)
        if self.contains(*center):
            return center
        if self.mask is not None:
            rows, columns = np.nonzero(self.mask)
            inside = np.stack([columns, rows], axis=1).astype(np.float64)
        else:
            # 63 lines each way: finer than any polygon that is wider than a line at the size models see it
            grid = np.stack(np.meshgrid(np.linspace(x1, x2, 65)[1:-1], np.linspace(y1, y2, 65)[1:-1]), axis=-1)
            inside = np.array([point for point in grid.reshape(-1, 2) if self.contains(*point)])
        if not len(inside):
            return center
        x, y = inside[np.argmin(((inside - center) ** 2).sum(axis=1))].tolist()
        return x, y

    def check_size(self, image_size: tuple[int, int]) -> None:
        """
        Raises:
            ValueError: The region is not one of an image of this (height, width).
        """
        height, width = image_size
        if self.mask is not None:
            check_mask_size(self.mask.shape, image_size, "The mask of a visual prompt")
        x1, y1, x2, y2 = self.box_xyxy
        if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
            raise ValueError(
                f"The region {list(self.box_xyxy)} of a visual prompt lies outside the image of {width} x {height} "
                "pixels. Give x1, y1, x2, y2 in pixels of this image."
            )


def read_region(
    box_xyxy: Any = None, polygons: Any = None, mask: Any = None, rle: Mapping[str, Any] | None = None
) -> Region:
    """Check a region of any kind.

    Args:
        box_xyxy (`Sequence[float]`, *optional*): x1, y1, x2, y2; around the polygons or the mask by default.
        polygons (`Sequence`, *optional*):
            Polygons as COCO has them (`[[x1, y1, x2, y2, ...], ...]`) or as arrays `(corners, 2)`; one alone as well.
        mask (*optional*): What [`read_mask_pixels`] reads.
        rle (`dict`, *optional*): COCO's run lengths.

    Returns:
        [`Region`]

    Raises:
        ValueError: There is nothing, or more than one outline, or numbers that are no region.
    """
    outlines = [name for name, value in (("polygons", polygons), ("mask", mask), ("rle", rle)) if value is not None]
    if len(outlines) > 1:
        raise ValueError(f"A region was given by {' and '.join(outlines)}. Give one of them, with or without a box.")
    if not outlines and box_xyxy is None:
        raise ValueError("A region needs a box, polygons, a mask or RLE; nothing was given.")
    if rle is not None:
        mask = read_rle(rle, what="The RLE of a region")
    elif mask is not None:
        mask = read_mask_pixels(mask, what="The mask of a region")
    if mask is not None and not mask.any():
        raise ValueError("The mask of a region is empty. Give (height, width) with at least one pixel set.")
    polygons = () if polygons is None else _read_polygons(polygons)
    if box_xyxy is not None:
        return Region(_read_box(box_xyxy), polygons, mask)
    return Region(_polygon_box(polygons) if mask is None else _mask_box(mask), polygons, mask)


def _read_box(box: Any) -> Box:
    numbers = [_number(value) for value in box]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"The box {numbers} of a region must be four finite numbers x1, y1, x2, y2.")
    x1, y1, x2, y2 = numbers
    if x1 > x2 or y1 > y2:
        raise ValueError(
            f"The box {numbers} of a region ends before it begins: x1, y1 is its upper left corner and x2, y2 its "
            "lower right one. A box of width and height must be converted first."
        )
    return x1, y1, x2, y2


def _read_polygons(polygons: Any) -> tuple[np.ndarray, ...]:
    if isinstance(polygons, str):
        raise ValueError(
            f"Polygons were given as the string {polygons[:60]!r}. Give numbers: [[x1, y1, x2, y2, ...]]."
        )
    if isinstance(polygons, np.ndarray) and polygons.ndim == 2 and polygons.shape[1] == 2:
        polygons = [polygons]
    polygons = list(polygons)
    if polygons and np.ndim(polygons[0]) == 0:
        polygons = [polygons]
    if not polygons:
        raise ValueError("The list of polygons of a region is empty. Give at least one polygon, or a box.")
    return tuple(_read_polygon(polygon) for polygon in polygons)


def _read_polygon(polygon: Sequence) -> np.ndarray:
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim == 1 and corners.size % 2 == 0:
        corners = corners.reshape(-1, 2)
    if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
        raise ValueError(
            f"A polygon of shape {corners.shape} was given. Give finite numbers x1, y1, x2, y2, ... or rows (x, y)."
        )
    if len(corners) < 2:
        raise ValueError(f"The polygon {corners.tolist()} has {len(corners)} corners; at least 2 can be drawn.")
    return corners


def _number(value: Any) -> float:
    # ints stay ints: Pillow draws both, and what is shown to people should look as it was given
    return value if isinstance(value, int) else float(value)


def _mask_box(mask: np.ndarray) -> Box:
    x1, y1, x2, y2 = mask_box(mask)
    return x1, y1, x2 - 1, y2 - 1


def _polygon_box(polygons: Sequence[np.ndarray]) -> Box:
    corners = np.concatenate(polygons)
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def _is_inside(polygon: np.ndarray, x: float, y: float) -> bool:
    start, stop = polygon, np.roll(polygon, -1, axis=0)
    crossed = (start[:, 1] > y) != (stop[:, 1] > y)
    start, stop = start[crossed], stop[crossed]
    crossings = start[:, 0] + (y - start[:, 1]) / (stop[:, 1] - start[:, 1]) * (stop[:, 0] - start[:, 0])
    return bool(np.count_nonzero(x < crossings) % 2)


__all__ = ["Region", "check_mask_size", "read_mask_pixels", "read_region", "read_rle", "read_run_lengths"]
