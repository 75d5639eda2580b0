"""Images and annotations of COCO's JSON format."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.image_loading import exif_orientation, load_rgb_image, open_image
from .coco import check_categories, clean_annotations
from .data_files import file_in, read_json


# In bytes, with room for the ending of what is written about an image.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class AnnotatedImage:
    """
    Args:
        id (`int` or `str`): As in the annotation file.
        file_name (`str`): Relative to the folder of images.
        size (`tuple[int, int]`): (height, width) in pixels.
    """

    id: int | str
    file_name: str
    size: tuple[int, int]

    @property
    def stem(self) -> str:
        """Name of this image's files: its own name without the ending."""
        return Path(self.file_name).stem

    def load(self, folder: str | Path) -> np.ndarray:
        """The image as `(height, width, 3)` uint8 RGB, in the order of its stored pixels (as annotations count).

        Raises:
            FileNotFoundError: If it is not in the folder.
            ValueError: If it has another size than the annotations say.
        """
        path = file_in(Path(folder), self.file_name)
        if not path.is_file():
            raise FileNotFoundError(f"The image {path} does not exist; --images must be the folder of the images.")
        with open_image(path) as image:
            size, turned = (image.height, image.width), exif_orientation(image) >= 5
        if size != self.size:
            hint = " They were made on the image as its EXIF orientation turns it; store it turned, without EXIF."
            raise ValueError(
                f"{path} is {size} pixels (height, width), its annotations say {self.size}."
                f"{hint if turned and size[::-1] == self.size else ''}"
            )
        return np.asarray(load_rgb_image(path, upright=False))


def read_annotations(path: str | Path, needed: Sequence[str]) -> dict[str, Any]:
    """
    Args:
        path (`str` or `Path`): A JSON file.
        needed (`Sequence[str]`): Lists it must hold.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is not JSON or lacks a list.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist.")
    content = read_json(path)
    missing = [name for name in needed if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f"{path} is not in COCO's format: it has no list {', '.join(map(repr, missing))}.")
    return content


def read_images(
    entries: Sequence[dict[str, Any]], source: str, suffix: str = ".jpg", unique: Sequence[str] = ("id", "stem")
) -> list[AnnotatedImage]:
    """
    Args:
        entries (`Sequence[dict]`): The list `images` of an annotation file.
        source (`str`): That file, for messages.
        suffix (`str`): Ending of the file of an image that has only an id.
        unique (`Sequence[str]`): What no two images may share; the name without its ending where files are written by
            it, which would overwrite each other.

    Raises:
        ValueError: If an image has no id or no size, or two share what is unique.
    """
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
            raise ValueError(f"{source}, image number {number} is {reprlib.repr(entry)}; it must have an `id`.")
        sides = (entry.get("height"), entry.get("width"))
        if not all(side is None or (_is_number(side) and side >= 0 and side == int(side)) for side in sides):
            raise ValueError(f"{source}, image {entry['id']!r}: height and width are {sides}; give pixels.")
        if not isinstance(entry.get("file_name"), (str, type(None))):
            raise ValueError(f"{source}, image {entry['id']!r}: its `file_name` is {entry['file_name']!r}, no text.")
        longest = max((str(entry.get("file_name") or ""), str(entry["id"])), key=len)
        if "\0" in longest:
            raise ValueError(f"{source}, image number {number}: {longest!r} is no file's name.")
        if len(Path(longest).name.encode(errors="replace")) > _LONGEST_NAME:
            raise ValueError(f"{source}, image number {number}: {longest[:60]!r} ... is too long for a file's name.")
    if unknown := [entry["id"] for entry in entries if not entry.get("height") or not entry.get("width")]:
        raise ValueError(f"{source}: {len(unknown)} images have no height and width, such as {unknown[0]!r}.")
    images = [
        AnnotatedImage(
            id=entry["id"],
            file_name=entry.get("file_name") or f"{entry['id']}{suffix}",
            size=(int(entry["height"]), int(entry["width"])),
        )
        for entry in entries
    ]
    for name in unique:
        values = [getattr(image, name) for image in images]
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise ValueError(f"{source}: Two images of the annotation file have the {name} {twice!r}.")
    return images


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53  # nor NaN


def by_image(annotations: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Annotations, or results in their format, by their `image_id`."""
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for annotation in annotations:
        grouped.setdefault(annotation["image_id"], []).append(annotation)
    return grouped


class CocoInstances:
    """
    Images with instance annotations, such as `instances_val2017.json`. What is read is a cleaned copy, see
    `clean_annotations`.

    Args:
        annotations (`str` or `Path`): The file.
        limit (`int`, *optional*): Only the first images.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not in COCO's format, lists no image, or holds an annotation that cannot be used.
    """

    def __init__(self, annotations: str | Path, limit: int | None = None):
        source, content = str(annotations), read_annotations(annotations, ("images", "annotations", "categories"))
        images = read_images(content["images"], source)
        if not images:
            raise ValueError(f"{source} has no images; an empty data set has no scores.")
        self.categories: dict[int, str] = check_categories(content["categories"], source)
        sizes = {image.id: image.size for image in images}
        cleaned = clean_annotations(content["annotations"], sizes, source, categories=self.categories)
        self.dataset = {**content, "annotations": cleaned}
        self.images: list[AnnotatedImage] = images[:limit]
        self.notes: list[str] = []
        if left_out := len(content["annotations"]) - len(cleaned):
            self.notes.append(f"{left_out} annotations belong to images that {source} does not list.")
        self._annotations = by_image(cleaned)

    def __len__(self) -> int:
        return len(self.images)

    def annotations(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        """What is annotated in an image."""
        return self._annotations.get(image.id, [])


__all__ = ["AnnotatedImage", "CocoInstances", "by_image", "read_annotations", "read_images"]
