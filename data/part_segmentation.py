"""Objects and their parts, in the trees that LISA and GSVA read: PACO-LVIS and PASCAL-Part.

    ROOT/vlpart/paco/annotations/paco_lvis_v1_train.json    ROOT/coco/ + file_name
    ROOT/vlpart/pascal_part/train.json                      ROOT/vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/

An annotation is one target, not a class: a class can be asked for twice, with two masks, and crowds are included.
"""

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pycocotools import mask as coco_mask

from ..processing.regions import read_rle
from .data_files import DataFileError, file_in, read_json
from .mask_targets import Target, TargetImage, UndrawableMaskError, log_left_out, read_outline, text_field


class PartAnnotations:
    """
    Images and annotations of a file in COCO's format whose categories are objects and parts.

    Args:
        annotation_file (`str` or `Path`): The file.
        images (`str` or `Path`): The folder of the images.

    Raises:
        DataFileError: If the file is missing or is not of this form.
    """

    name: ClassVar[str]

    def __init__(self, annotation_file: str | Path, images: str | Path):
        self.file, self.folder = Path(annotation_file), Path(images)
        if not self.file.is_file():
            raise DataFileError(f"{self.name}: the file of annotations {self.file} does not exist.")
        if not self.folder.is_dir():
            raise DataFileError(f"{self.name}: the folder {self.folder} does not exist.")
        content = read_json(self.file)
        lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
        categories = content.get("categories") if isinstance(content, dict) else None
        if not all(isinstance(entries, list) for entries in (*lists, categories)):
            raise DataFileError(f"{self.file} must be an object with the lists `images`, `annotations`, `categories`.")
        self.wordings = {
            self._key(category, "id", f"category number {number}"): self._wordings(category, number)
            for number, category in enumerate(categories, start=1)
        }
        entries = {
            self._key(image, "id", f"image number {number}"): image for number, image in enumerate(lists[0], start=1)
        }
        if not entries:
            raise DataFileError(f"{self.file} has no images.")
        self._images = list(entries.values())
        # of the annotations only what is used: the files are large
        self._annotations: dict[Any, list[tuple[Any, Any, Any]]] = {image_id: [] for image_id in entries}
        strangers = 0
        for number, annotation in enumerate(lists[1], start=1):
            image_id = self._key(annotation, "image_id", f"annotation number {number}")
            if image_id in self._annotations:
                self._annotations[image_id].append(
                    (annotation.get("id"), annotation.get("category_id"), annotation.get("segmentation"))
                )
            else:
                strangers += 1
        self._log(strangers)

    def _log(self, strangers: int) -> None:
        """Say what the originals pass over without a word."""
        listed = list(self._annotations.values())
        undrawable = sum(_is_undrawable(segmentation) for entries in listed for _, _, segmentation in entries)
        log_left_out(
            f"{self.name}: {len(listed)} images, {sum(map(len, listed))} annotations",
            {
                "images without an annotation are passed over": sum(not entries for entries in listed),
                "annotations cannot be drawn; with one of them an image is passed over": undrawable,
                "annotations of other images are not used": strangers,
            },
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> TargetImage:
        """Image `index` with one target per annotation, in the order of the file; its masks are uint8, 0 or 1.

        Raises:
            DataFileError: If an annotation has a category that the file does not list, or the image no file name.
        """
        image = self._images[index]
        where = f"{self.file}, image {image['id']!r}"
        try:
            path = file_in(self.folder, image.get("file_name"))
        except ValueError as error:
            raise DataFileError(f"{where}: {error}") from None
        size = image.get("height"), image.get("width")
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise DataFileError(f"{where} has the size {size} (height, width); give whole numbers of pixels.")
        return TargetImage(path, [self._target(*entry, size) for entry in self._annotations[image["id"]]])

    def _target(self, annotation_id: Any, category: Any, segmentation: Any, size: tuple[int, int]) -> Target:
        what = f"{self.file}, annotation {annotation_id!r}"
        if not isinstance(category, (int, str)) or category not in self.wordings:
            raise DataFileError(f"{what} has the category {category!r}, which the file does not list.")
        return Target(self.wordings[category], _decoder(segmentation, size, what))

    def _key(self, entry: Any, key: str, what: str) -> Any:
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, (int, str)):
            raise DataFileError(f"{self.file}: {what} must be an object whose `{key}` is a number or a text.")
        return value

    def _wordings(self, category: Any, number: int) -> tuple[str, ...]:
        """How a category is called: an object by one name, a part in two ways, one of which is drawn."""
        name = text_field(category, "name", f"{self.file}: category number {number}")
        pieces = self._pieces(name.strip().split(":"))
        if pieces is None:
            raise DataFileError(f"{self.file}: category number {number} is called {name!r}; {self.naming}.")
        if len(pieces) == 1:
            return (pieces[0],)
        whole, part = pieces
        return f"{whole} {part}", f"the {part} of the {whole}"

    naming: ClassVar[str]

    def _pieces(self, pieces: list[str]) -> list[str] | None:
        """The name of an object, or of an object and its part; None where a name is neither."""
        raise NotImplementedError


class PacoLvis(PartAnnotations):
    """PACO-LVIS's training images; explanations in brackets are cut from names, their underscores stay."""

    name = "paco_lvis"
    naming = "names are an object, or an object and its part with a colon between"

    def __init__(self, root: str | Path):
        super().__init__(Path(root, "vlpart/paco/annotations/paco_lvis_v1_train.json"), Path(root, "coco"))

    def _pieces(self, pieces: list[str]) -> list[str] | None:
        return [piece.split("_(")[0] for piece in pieces] if len(pieces) <= 2 else None


class PascalPart(PartAnnotations):
    """PASCAL-Part's training images."""

    name = "pascal_part"
    naming = "names are an object and its part with a colon between"

    def __init__(self, root: str | Path):
        folder = Path(root, "vlpart/pascal_part")
        super().__init__(folder / "train.json", folder / "VOCdevkit/VOC2010/JPEGImages")

    def _pieces(self, pieces: list[str]) -> list[str] | None:
        return pieces if len(pieces) == 2 else None


def _decoder(segmentation: Any, size: tuple[int, int], what: str) -> Callable[[], np.ndarray]:
    return lambda: draw_segmentation(segmentation, size, what)


def _is_undrawable(segmentation: Any) -> bool:
    if not isinstance(segmentation, list):
        return False
    return not segmentation or (isinstance(segmentation[0], list) and len(segmentation[0]) <= 4)


def draw_segmentation(segmentation: Any, size: tuple[int, int], what: str = "The segmentation") -> np.ndarray:
    """
    Draw a segmentation as pycocotools' `annToMask` does, several polygons united.

    Args:
        segmentation: Polygons `[[x1, y1, x2, y2, ...], ...]` in pixels, or run lengths, compressed or not.
        size (`tuple[int, int]`): (height, width) of the image.
        what (`str`, *optional*): The segmentation, as messages name it.

    Returns:
        `np.ndarray`: uint8, 0 or 1, of shape `(height, width)`.

    Raises:
        UndrawableMaskError: For what `annToMask` does not draw: no polygon, or a first one of 4 numbers (which it
            takes for a box) or fewer.
        DataFileError: For run lengths that are damaged or of another size, and for polygons that are no numbers.
    """
    if isinstance(segmentation, Mapping):
        try:
            return read_rle(segmentation, size, f"{what}: the segmentation").astype(np.uint8)
        except ValueError as error:
            raise DataFileError(str(error)) from None
    if not isinstance(segmentation, list):
        raise DataFileError(
            f"{what} has the segmentation {reprlib.repr(segmentation)}; it must be polygons or run lengths."
        )
    if _is_undrawable(segmentation):
        raise UndrawableMaskError(f"{what} has the segmentation {reprlib.repr(segmentation)}, which has no area.")
    # a later polygon without a corner would be read from memory that is not its own
    polygons = [read_outline(polygon, what) for polygon in segmentation]
    drawn = coco_mask.frPyObjects([polygon for polygon in polygons if len(polygon) >= 2], *size)
    return coco_mask.decode(coco_mask.merge(drawn))


__all__ = ["PacoLvis", "PartAnnotations", "PascalPart", "draw_segmentation"]
