"""The masks that annotations of ReasonSeg mean, and images that show them, as LISA's `utils/data_processing.py` draws.

X.json     the annotation
X.jpg      its image; without it the annotation must say how large it was
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .data_files import DataFileError
from .mask_targets import load_image
from .reason_seg import FOREGROUND, IGNORED, read_annotation, stored_size


# The first is ReasonSeg's own.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
TARGET_COLOR, IGNORED_COLOR = (0, 255, 0), (255, 0, 0)
_COLOR_SHARE = 0.6


@dataclass(frozen=True)
class ReasonSegMasks:
    """
    What an annotation says about each pixel.

    Args:
        labeled (`np.ndarray`): uint8 `(height, width)` of the upright image: 0 for the background, 1 for targets, 255
            for regions that an evaluation ignores.
        image (`PIL.Image.Image`, *optional*): The upright image, in RGB.
    """

    labeled: np.ndarray
    image: Image.Image | None

    @property
    def target(self) -> np.ndarray:
        """bool `(height, width)`: what is asked for."""
        return self.labeled == FOREGROUND

    @property
    def ignored(self) -> np.ndarray:
        """bool `(height, width)`: what does not count."""
        return self.labeled == IGNORED

    def overlay(self) -> Image.Image:
        """The image, and beside it the same with 60 % green over targets and 60 % red over ignored regions.

        Raises:
            ValueError: If there is no image.
        """
        if self.image is None:
            raise ValueError("There is no image to show the masks on.")
        plain = np.asarray(self.image, dtype=np.float64)
        shown = plain.copy()
        for mask, color in ((self.target, TARGET_COLOR), (self.ignored, IGNORED_COLOR)):
            shown[mask] = _COLOR_SHARE * np.array(color) + (1 - _COLOR_SHARE) * plain[mask]
        return Image.fromarray(np.concatenate([plain, np.rint(shown)], axis=1).astype(np.uint8))


def read_masks(annotation: str | Path) -> ReasonSegMasks:
    """
    Read an annotation and paint what it means.

    Args:
        annotation (`str` or `Path`): The JSON file. Its image lies beside it.

    Raises:
        DataFileError: If the annotation or its image cannot be used, or nothing says how large the image is.
    """
    path = Path(annotation)
    content, image_path = read_annotation(path), find_image(path)
    if image_path is not None:
        image = load_image(image_path, f"{path}: its image")
        return ReasonSegMasks(content.paint((image.height, image.width)), image)
    size = stored_size(path)
    if size is None:
        raise DataFileError(
            f"{path} has no image {path.with_suffix(IMAGE_ENDINGS[0]).name} beside it, and no `imageHeight` and "
            "`imageWidth` in it; one of both must say how large its masks are."
        )
    return ReasonSegMasks(content.paint(size), None)


def find_image(annotation: Path) -> Path | None:
    """The image beside an annotation; of several the first of [`IMAGE_ENDINGS`], in small letters or capitals."""
    endings = [spelt for ending in IMAGE_ENDINGS for spelt in (ending, ending.upper())]
    return next((path for ending in endings if (path := annotation.with_suffix(ending)).is_file()), None)


def find_annotations(path: str | Path) -> Sequence[Path]:
    """
    The annotations of a folder, by their names, or the one of a file: itself, or the image that it belongs to.

    Raises:
        DataFileError: If there is none.
    """
    path = Path(path)
    if path.is_dir():
        # hidden files, such as the ._* of macOS, are no annotations
        found = sorted(file for file in path.glob("*.json") if file.is_file() and not file.name.startswith("."))
        if not found:
            raise DataFileError(
                f"{path} has no file that ends in .json. Name the folder of one split, such as ReasonSeg/val."
            )
        return found
    if not path.is_file():
        raise DataFileError(f"{path} does not exist. Name an annotation (X.json) or a folder of them.")
    if path.suffix.lower() in IMAGE_ENDINGS:
        return [path.with_suffix(".json")]
    return [path]


__all__ = ["IMAGE_ENDINGS", "ReasonSegMasks", "find_annotations", "find_image", "read_masks"]
