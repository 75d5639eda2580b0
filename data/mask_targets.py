"""What readers of segmentation data give for an image: its path, and what can be asked about it with a mask each."""

import logging
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..processing.image_loading import load_rgb_image
from .data_files import DataFileError


logger = logging.getLogger(__name__)

# In pixels: more is no outline of an image.
_LONGEST_OUTLINE = 2_000_000


class UndrawableMaskError(ValueError):
    """An annotation cannot be drawn, and the originals take another image for it without a word."""


@dataclass(frozen=True)
class Target:
    """
    One thing in an image that can be asked for.

    Args:
        wordings (`tuple[str, ...]`): How it can be called. Where there are several, one is drawn.
        mask (`Callable`): Decodes its mask, `(height, width)` at the size of the upright image, when it is called:
            bool, or uint8 whose value 0 is the background.

            Raises [`UndrawableMaskError`] if there is none, [`DataFileError`] if it belongs to another image.
    """

    wordings: tuple[str, ...]
    mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class TargetImage:
    """
    Args:
        path (`Path`): The image file.
        targets (`Sequence[Target]`): What can be asked for; may be empty.
    """

    path: Path
    targets: Sequence[Target]


class TargetImages(Protocol):
    """A data set of semantic or referring segmentation, as the mixture takes it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TargetImage: ...


class Skipped:
    """Counts what the originals skip without a word; logs the counts whenever their sum reaches a power of two."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        self.counts[reason] += 1
        total = self.counts.total()
        if total & (total - 1) == 0:
            listed = "; ".join(f"{count} x {what}" for what, count in sorted(self.counts.items()))
            logger.info("Drawn again so far in this process: %s.", listed)


def log_left_out(summary: str, counts: Mapping[str, int]) -> None:
    """Log one line about a data set: what it has, and what of it is left out without a word by the originals.

    Args:
        summary (`str`): Its name and its size.
        counts (`Mapping[str, int]`): How often what was left out; what never was is not named.
    """
    notes = "".join(f"; {count} {what}" for what, count in counts.items() if count)
    logger.info("%s%s.", summary, notes)


def load_image(path: Path, what: str = "The image") -> Image.Image:
    """An image of a data set, upright, in RGB.

    Raises:
        DataFileError: If it is missing or cannot be decoded.
    """
    try:
        return load_rgb_image(path)
    except ValueError as error:
        raise DataFileError(f"{what}: {error}") from None


def check_size(size: tuple[int, int], image: Image.Image, what: str, path: Path) -> None:
    """
    Raises:
        DataFileError: If the (height, width) of a mask is not that of its image.
    """
    if tuple(size) != (image.height, image.width):
        turned = tuple(size) == (image.width, image.height)
        hint = (
            " Its sides are swapped: the image has an EXIF orientation that its masks do not know." if turned else ""
        )
        raise DataFileError(
            f"{what} is {size[1]} x {size[0]} pixels (width x height), its image {path} {image.width} x "
            f"{image.height}.{hint}"
        )


def read_outline(polygon: Any, what: str) -> np.ndarray:
    """
    Check a polygon before pycocotools draws it, which needs memory for every fifth of a pixel along it, also far
    outside the image.

    Args:
        polygon: x1, y1, x2, y2, ... in pixels; what stands after the last pair is not looked at.
        what (`str`): Whose it is, as messages name it.

    Returns:
        `np.ndarray`: Its numbers, float64.

    Raises:
        DataFileError: If it is no list of finite numbers, or reaches far beyond any image.
    """
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
        usable = numbers.ndim == 1 and bool(np.isfinite(numbers).all())
    except (TypeError, ValueError, OverflowError):
        usable = False
    if not usable:
        raise DataFileError(f"{what} has the polygon {reprlib.repr(polygon)}; give a list of finite numbers.")
    corners = numbers[: len(numbers) // 2 * 2].reshape(-1, 2).clip(-2 * _LONGEST_OUTLINE, 2 * _LONGEST_OUTLINE)
    length = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() if len(corners) else 0
    if max(length, np.abs(corners).max(initial=0)) > _LONGEST_OUTLINE:
        raise DataFileError(f"{what} has the polygon {reprlib.repr(polygon)}, which reaches far beyond any image.")
    return numbers


def files_ending_in(folder: Path, ending: str, what: str) -> list[str]:
    """Names of the files of a folder with exactly this ending, sorted; others are counted in a log line.

    Raises:
        DataFileError: If the folder is missing, or has no such file.
    """
    if not folder.is_dir():
        raise DataFileError(f"{what}: the folder {folder} does not exist.")
    # hidden files, such as the ._* of macOS, are no images
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    found = [name for name in names if name.endswith(ending)]
    if not found:
        raise DataFileError(f"{what}: the folder {folder} has no file that ends in {ending}.")
    if images := sum(_looks_like(name, ending) for name in names):
        logger.info(
            "%s: %d images in %s do not end in %s and are left out, as in the originals.", what, images, folder, ending
        )
    return found


def _looks_like(name: str, ending: str) -> bool:
    return not name.endswith(ending) and name.lower().endswith((".jpg", ".jpeg", ".png"))


def text_field(entry: Any, key: str, what: str) -> str:
    """
    Raises:
        DataFileError: If an entry of a data file is no object, or has no text under the key.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise DataFileError(f"{what} must be an object whose `{key}` is a text.")
    return entry[key]


__all__ = [
    "Skipped",
    "Target",
    "TargetImage",
    "TargetImages",
    "UndrawableMaskError",
    "check_size",
    "files_ending_in",
    "load_image",
    "log_left_out",
    "read_outline",
    "text_field",
]
