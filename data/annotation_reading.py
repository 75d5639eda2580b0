"""What the readers of annotations share: the frame of masks, objects without one, and how faults are told."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..processing.image_loading import MAX_IMAGE_PIXELS, exif_orientation, open_image, upright_mask
from ..processing.mask_reading import EmptyMaskError, fill_polygons, read_mask, read_polygons
from ..processing.regions import check_mask_size, read_run_lengths
from ..processing.segments import mask_to_rle
from .annotation_formats import ReadingOptions
from .coco import has_numbers
from .data_files import DataFileError, file_in
from .labelled_images import LabelledImage, LabelledObject


FRAMES = ("upright", "stored")
# What macOS puts beside a file where the disk or archive cannot hold all that it knows of it.
SIDE_FILES = "._"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".mpo", ".avif")
# Faults that an error names one by one.
_SHOWN_PROBLEMS = 5

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageHead:
    """(height, width) of an image as it is stored, and its EXIF orientation."""

    stored: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as viewers show it."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def read_head(source: str | Path | bytes, max_image_pixels: int | None = None) -> ImageHead:
    """The head of an image's file, or of its content.

    Raises:
        ValueError: It is no image that is read here, or claims too many pixels.
    """
    with open_image(source, max_image_pixels or MAX_IMAGE_PIXELS) as image:
        return ImageHead((image.height, image.width), exif_orientation(image))


def problems_text(problems: Sequence[str], things: str) -> str:
    """The first problems line by line, and how many `things` there are in all that cannot be used."""
    lines = list(problems[:_SHOWN_PROBLEMS])
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"In all {len(problems)} {things} cannot be used.")
    return "\n".join(lines)


def read_each(
    items: Iterable[Item], read: Callable[[Item], LabelledImage | None], source: str | Path
) -> Iterator[LabelledImage]:
    """
    Yield the image of each item until one cannot be used; all others are checked still, so that one error names them.

    Args:
        items (`Iterable`): What there is one of for each image.
        read (`Callable`): Reads it; gives `None` for what is left out.
        source (`str` or `Path`): What all of them belong to, as messages name it.

    Raises:
        DataFileError: An item cannot be used, two images share a name, or there is no image.
    """
    problems, names, count = [], set(), 0
    for item in items:
        try:
            image = read(item)
            if image is not None and image.file_name in names:
                raise DataFileError(f"{source}: Two images are called {image.file_name!r}; annotate each once.")
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        if image is None:
            continue
        count += 1
        names.add(image.file_name)
        if not problems:
            yield image
    if problems:
        raise DataFileError(problems_text(problems, "images"))
    if not count:
        raise DataFileError(f"{source} has no image that could be read; nothing could be learned from it.")


class ImageMasks:
    """
    Brings the masks of one image to run lengths in the upright frame.

    Args:
        head ([`ImageHead`]): Of the image.
        stated (`tuple[int, int]`, *optional*): (height, width) that the annotations say the image has.
        options ([`ReadingOptions`]): What is to become of what may mean two things.
        what (`str`): File and image, as messages name them.
        tool_frame (`str`, *optional*): The frame in which the format's own tool shows images, where sizes do not tell.

    Raises:
        ValueError: The image has another size than the annotations say.
    """

    def __init__(
        self,
        head: ImageHead,
        stated: tuple[int, int] | None,
        options: ReadingOptions,
        what: str,
        tool_frame: str | None = None,
    ):
        if stated is not None and tuple(stated) not in (head.upright, head.stored):
            raise ValueError(
                f"{what}: the annotations say {stated[1]} x {stated[0]} pixels (width x height), the image has "
                f"{head.upright[1]} x {head.upright[0]}."
            )
        self.head, self.options, self.what = head, options, what
        self._stated, self._tool_frame = stated, tool_frame

    def object(
        self,
        label: str,
        segmentation: Any,
        what: str,
        box_xyxy: Sequence[float] | Callable[[tuple[int, int]], Sequence[float]] | None = None,
        parts_are_united: bool = False,
        **others: Any,
    ) -> LabelledObject | None:
        """
        An object of the image.

        Args:
            label (`str`): As of [`LabelledObject`], like `others`.
            segmentation: Polygons, run lengths, or an array or image; `None` where there is only a box, or nothing;
                or a function of (height, width) that gives one of these.
            what (`str`): The object, as messages name it.
            box_xyxy (`Sequence[float]`, *optional*): x1, y1, x2, y2 in pixels, or a function of (height, width) that
                gives them.
            parts_are_united (`bool`): Whether polygons inside others belong to the object, too, in this format.

        Returns:
            `LabelledObject`: or `None` where its label, or what has no mask, is to be left out.

        Raises:
            ValueError: It cannot be read, may mean two things, or has no mask and that is not allowed.
        """
        what = f"{self.what}, {what}"
        if self._is_skipped(label):
            return None
        try:
            mask = self._run_lengths(segmentation, what, parts_are_united)
        except EmptyMaskError as error:
            if self.options.without_mask == "box" and box_xyxy is not None:
                mask = self._run_lengths(partial(_corners, box_xyxy, what), what, parts_are_united)
            elif self.options.without_mask == "refuse":
                ways = "without_mask='skip' leaves such objects out"
                ways += ", without_mask='box' fills their boxes." if box_xyxy is not None else "."
                raise ValueError(f"{error} {ways}") from None
            else:
                self.options.left_out["objects without a mask"] += 1
                return None
        return LabelledObject(label, mask, **others)

    def rejected(self, label: str, **others: Any) -> LabelledObject | None:
        """A label that nothing in the image fits; `None` where it is to be left out. `others` as of [`object`]."""
        return None if self._is_skipped(label) else LabelledObject(label, None, **{"rejected": True, **others})

    def _is_skipped(self, label: str) -> bool:
        if label not in self.options.skip_labels:
            return False
        self.options.left_out["objects with a label to skip"] += 1
        return True

    def _run_lengths(self, segmentation: Any, what: str, parts_are_united: bool) -> dict[str, Any]:
        if segmentation is None:
            raise EmptyMaskError(f"{what} has no mask.")
        stated, counts = self._stated, None
        if isinstance(segmentation, Mapping):
            found, counts = read_run_lengths(segmentation, what)
            stated = stated or found
        elif stated is None and isinstance(segmentation, np.ndarray):
            stated = segmentation.shape
        frame = self._frame(stated, what)
        size = self.head.stored if frame == "stored" else self.head.upright
        if callable(segmentation):
            segmentation = segmentation(size)
        if counts is not None and frame == "upright" and isinstance(segmentation["counts"], str):
            check_mask_size(found, size, what)
            if not counts[1::2].any():
                raise EmptyMaskError(f"{what} has a mask without any pixel.")
            return {"size": list(size), "counts": segmentation["counts"]}
        if isinstance(segmentation, (list, tuple)):
            mask = self._filled(segmentation, size, what, parts_are_united)
        else:
            mask = read_mask(segmentation, size, what)
        if not mask.any():
            raise EmptyMaskError(f"{what} has a mask without any pixel.")
        return mask_to_rle(upright_mask(mask, self.head.orientation) if frame == "stored" else mask)

    def _filled(self, polygons: Sequence[Any], size: tuple[int, int], what: str, parts_are_united: bool) -> np.ndarray:
        # `[[]]` stands for nothing in public files
        parts = read_polygons(polygons, what) if has_numbers(polygons) else []
        with_area = [part for part in parts if len(part[0]) >= 3]
        if not with_area:
            raise EmptyMaskError(f"{what} is {reprlib.repr(polygons)}, which has no polygon of 3 or more corners.")
        inner = self.options.inner
        return fill_polygons(with_area, size, what, "fill" if parts_are_united and inner == "refuse" else inner)

    def _frame(self, stated: tuple[int, int] | None, what: str) -> str:
        head, given = self.head, self.options.mask_frame
        sizes = {"upright": head.upright, "stored": head.stored}
        if given is not None and stated is not None and tuple(stated) != sizes[given]:
            if head.upright == head.stored:
                check_mask_size(tuple(stated), head.upright, what)
            raise ValueError(
                f"{what} was made on {stated[1]} x {stated[0]} pixels (width x height), which is not the {given} "
                f"frame, {sizes[given][1]} x {sizes[given][0]}; leave out mask_frame={given!r}."
            )
        if given is not None:
            return given
        if head.orientation == 1:
            return "upright"
        if stated is not None and head.upright != head.stored:
            return "stored" if tuple(stated) == head.stored else "upright"
        if self._tool_frame is None:
            raise ValueError(
                f"{what} may have been drawn on the upright image or on the pixels as they are stored: the image has "
                f"the EXIF orientation {head.orientation}. Say which: mask_frame='upright' or mask_frame='stored'."
            )
        return self._tool_frame


def _corners(box_xyxy: Any, what: str, size: tuple[int, int]) -> list[list[float]]:
    """A box as polygons."""
    corners = box_xyxy(size) if callable(box_xyxy) else box_xyxy
    if not isinstance(corners, (list, tuple)) or len(corners) != 4 or not all(map(_is_number, corners)):
        raise ValueError(f"{what} has the box {reprlib.repr(corners)}; it must be four numbers.")
    x1, y1, x2, y2 = map(float, corners)
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) > 2**63


def score_of(value: Any, options: ReadingOptions) -> float | None:
    """A score from 0 to 1; `None` where there is none, or something else, which is left out."""
    if _is_number(value) and 0 <= value <= 1:
        return float(value)
    if value is not None:
        options.left_out["scores that are not from 0 to 1"] += 1
    return None


def image_ending(image: Path | bytes, max_image_pixels: int | None) -> str:
    """How the name of a file with this content ends."""
    with open_image(image, max_image_pixels or MAX_IMAGE_PIXELS) as opened:
        kind = str(opened.format).lower()
    return {"jpeg": ".jpg", "mpo": ".jpg"}.get(kind, f".{kind}")


def image_named(folder: Path, stem: str, what: str) -> Path:
    """The image `stem` of a folder, whatever its ending.

    Raises:
        ValueError: There is none, or more than one.
    """
    endings = [ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())]
    found = [path for ending in endings if (path := file_in(folder, f"{stem}{ending}")).is_file()]
    if len(found) != 1:
        names = " and ".join(path.name for path in found) or "no image"
        raise ValueError(f"{what}: {folder} holds {names} of the name {stem!r}; there must be one.")
    return found[0]


__all__ = [
    "FRAMES",
    "IMAGE_SUFFIXES",
    "SIDE_FILES",
    "ImageHead",
    "ImageMasks",
    "image_ending",
    "image_named",
    "problems_text",
    "read_each",
    "read_head",
    "score_of",
]
