"""The place in a picture that a visual prompt marks: a box, polygons, a binary mask or COCO run lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mask_reading import check_mask_size, read_mask, read_rle


Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Region:
    """A place in a picture, in pixels; x to the right, y downwards.

    Made by [`read_region`], which checks what it is given.

    Args:
        box_xyxy (`tuple[float, float, float, float]`):
            x1, y1, x2, y2. Of a mask these are its first and last columns and rows.
        polygons (`tuple[np.ndarray, ...]`, *optional*):
            float64, each `(corners, 2)` with rows (x, y).
        mask (`np.ndarray`, *optional*):
            bool, `(height, width)` of the picture.
    """

    box_xyxy: Box
    polygons: tuple[np.ndarray, ...] = ()
    mask: np.ndarray | None = None

    @property
    def num_parts(self) -> int:
        """`int`: Areas a place may be chosen in; 0 where only the box has one.

        ViP-LLaVA leaves all polygons aside as soon as one of them has fewer than three corners.
        """
        if self.mask is not None:
            return 1
        return len(self.polygons) if all(len(polygon) >= 3 for polygon in self.polygons) else 0

    def bounds(self, part: int | None = None) -> Box:
        """
        Args:
            part (`int`, *optional*): Number of an area, below `num_parts`; all of them by default.

        Returns:
            `tuple[float, float, float, float]`: x1, y1, x2, y2 around it; `box_xyxy` where there is no area.
        """
        if self.mask is not None:
            return _mask_box(self.mask)
        if not self.num_parts:
            return self.box_xyxy
        return _polygon_box(self.polygons if part is None else self.polygons[part : part + 1])

    def contains(self, x: float, y: float, part: int | None = None) -> bool:
        """
        Args:
            x, y (`float`): A place.
            part (`int`, *optional*): Number of an area, below `num_parts`; any of them by default.

        Returns:
            `bool`: Whether the place lies inside. Polygons that cut themselves count by the even-odd rule.
        """
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
        """
        Returns:
            `tuple[float, float]`: The centre (x, y) of the bounds if the region contains it, else a place inside that
            is near it.
        """
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
            inside = np.array([place for place in grid.reshape(-1, 2) if self.contains(*place)])
        if not len(inside):
            return center
        x, y = inside[np.argmin(((inside - center) ** 2).sum(axis=1))].tolist()
        return x, y

    def check_size(self, image_size: tuple[int, int]) -> None:
        """
        Args:
            image_size (`tuple[int, int]`): (height, width) of the picture to draw on.

        Raises:
            ValueError: The region is not one of such a picture.
        """
        height, width = image_size
        if self.mask is not None:
            check_mask_size(self.mask.shape, image_size, "The mask of a visual prompt")
        x1, y1, x2, y2 = self.box_xyxy
        if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
            raise ValueError(
                f"The region {list(self.box_xyxy)} of a visual prompt lies outside the picture of {width} x {height} "
                "pixels. Give x1, y1, x2, y2 in pixels of this picture."
            )


def read_region(
    box_xyxy: Any = None, polygons: Any = None, mask: Any = None, rle: Mapping[str, Any] | None = None
) -> Region:
    """Check a region of any kind.

    Args:
        box_xyxy (`Sequence[float]`, *optional*):
            x1, y1, x2, y2 in pixels; around the polygons or the mask by default.
        polygons (`Sequence`, *optional*):
            Polygons as COCO has them (`[[x1, y1, x2, y2, ...], ...]`) or as arrays `(corners, 2)`; one alone as well.
        mask (`np.ndarray`, `torch.Tensor`, `PIL.Image.Image` or path, *optional*):
            `(height, width)` of the upright image: bool, 0 and 1, or 0 and 255; see [`read_mask`].
        rle (`dict`, *optional*):
            COCO's run lengths `{"size": [height, width], "counts": ...}`, compressed or a list.

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
        mask = read_mask(mask, what="The mask of a region")
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
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _polygon_box(polygons: Sequence[np.ndarray]) -> Box:
    corners = np.concatenate(polygons)
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def _is_inside(polygon: np.ndarray, x: float, y: float) -> bool:
    start, stop = polygon, np.roll(polygon, -1, axis=0)
    crossed = (start[:, 1] > y) != (stop[:, 1] > y)
    start, stop = start[crossed], stop[crossed]
    places = start[:, 0] + (y - start[:, 1]) / (stop[:, 1] - start[:, 1]) * (stop[:, 0] - start[:, 0])
    return bool(np.count_nonzero(x < places) % 2)


__all__ = ["Region", "read_region"]
