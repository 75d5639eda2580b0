"""COCO's annotations as people have them, brought to what pycocotools computes with, in a copy.

pycocotools takes much for granted and does not check it: an annotation with the id 0 counts as not found, one whose id
occurs twice is read twice, a polygon of four numbers in front is taken for a box, and run lengths that do not cover
their image leave memory as it was found.
"""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from pycocotools import mask as coco_mask

from ..processing.mask_reading import check_bounds, read_polygons
from ..processing.regions import read_run_lengths
from .data_files import DataFileError


# Public files have corners a little outside; what is this many sides away is meant for something else, and pycocotools
# would need memory for the whole way there.
_OVERSHOOT = 1.0


def clean_segmentation(segmentation: Any, size: tuple[int, int], what: str = "The segmentation") -> Any:
    """
    Any segmentation of an annotation in a form that pycocotools reads as it is meant.

    Args:
        segmentation: Polygons (`[[x1, y1, x2, y2, ...], ...]`, or one alone), or run lengths, compressed or not.
        size (`tuple[int, int]`): (height, width) of the image.
        what (`str`): The segmentation, as an error message names it.

    Returns:
        Polygons of three or more corners, `list[list[float]]`, or run lengths that cover the image. Polygons of fewer
        corners, which have no area, are left out where there are others.

    Raises:
        ValueError: If it is not one of these, has no area, or belongs to an image of another size.
    """
    if isinstance(segmentation, Mapping):
        found, _ = read_run_lengths(segmentation, what)
        if found != tuple(size):
            raise ValueError(f"{what} of {found} (height, width) was given for an image of {tuple(size)}.")
        return segmentation
    if not isinstance(segmentation, (list, tuple)):
        raise ValueError(
            f"{what} is {reprlib.repr(segmentation)}; it must be a list of polygons or have `size` and `counts`."
        )
    rings = []
    for part in read_polygons(segmentation, what) if has_numbers(segmentation) else []:
        if len(part) > 1:
            raise ValueError(f"{what} has a polygon with holes, which COCO's polygons cannot have; use run lengths.")
        if len(part[0]) >= 3:
            check_bounds(part[0], size, what, _OVERSHOOT)
            rings.append(part[0].ravel().tolist())
    if not rings:
        raise ValueError(f"{what} is {reprlib.repr(segmentation)}, which has no polygon of 3 or more corners.")
    return rings


def run_lengths(segmentation: Any, size: tuple[int, int], what: str = "The segmentation") -> dict[str, Any]:
    """The same as compressed run lengths `{"size": [height, width], "counts": bytes}`, polygons united."""
    cleaned = clean_segmentation(segmentation, size, what)
    if isinstance(cleaned, list):
        return coco_mask.merge(coco_mask.frPyObjects(cleaned, *size))
    if isinstance(cleaned["counts"], (str, bytes)):
        counts = cleaned["counts"]
        return {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return coco_mask.frPyObjects({"size": list(size), "counts": list(cleaned["counts"])}, *size)


def clean_annotations(
    annotations: Iterable[Any],
    sizes: Mapping[Any, tuple[int, int]],
    source: str,
    categories: Mapping[Any, str] | None = None,
    without_masks: bool = False,
) -> list[dict[str, Any]]:
    """
    A copy of annotations whose ids are 1, 2, ..., with `iscrowd`, `area` and a segmentation that can be drawn.

    Args:
        annotations (`Iterable[dict]`): The list `annotations` of a file in COCO's format.
        sizes (`Mapping`): (height, width) of the images by their ids. Annotations of others are left out.
        source (`str`): The file, for messages.
        categories (`Mapping`, *optional*): Names of the categories by their ids; others are an error.
        without_masks (`bool`): Leave out annotations without a `segmentation`, which are an error otherwise.

    Raises:
        DataFileError: If an annotation cannot be used; with the file, its id and its image.
    """
    placed, cleaned = AnnotationPlaces(sizes, source, categories), []
    for number, annotation in enumerate(annotations, start=1):
        what = placed.find(number, annotation)
        if what is None or (without_masks and annotation.get("segmentation") is None):
            continue
        placed.check_category(what, annotation)
        try:
            fields = _cleaned_fields(annotation, sizes[annotation["image_id"]])
            cleaned.append({**annotation, **fields, "id": len(cleaned) + 1})
        except ValueError as error:
            raise DataFileError(f"{what}: {error}") from None
    return cleaned


class AnnotationPlaces:
    """
    Checks that annotations belong to an image and a category of their file.

    Args:
        image_ids (`Iterable`): Ids of the images.
        source (`str`): The file, for messages.
        categories (`Mapping`, *optional*): Names of the categories by their ids; others are an error.
    """

    def __init__(self, image_ids: Iterable[Any], source: str, categories: Mapping[Any, str] | None = None):
        self.source, self.categories = source, categories
        self._by_text = {str(image_id): image_id for image_id in image_ids}

    def find(self, number: int, annotation: Any) -> str | None:
        """
        Returns:
            `str`: The annotation, as messages name it; `None` where it belongs to an image that is not listed.

        Raises:
            DataFileError: If it names no image.
        """
        what = f"{self.source}, annotation number {number}"
        if not isinstance(annotation, Mapping) or "image_id" not in annotation:
            raise DataFileError(f"{what} is {reprlib.repr(annotation)}; it must be an object with `image_id`.")
        image_id = annotation["image_id"]
        what = f"{self.source}, annotation {annotation.get('id', f'number {number}')!r} of image {image_id!r}"
        listed = self._by_text.get(str(image_id))
        if not isinstance(image_id, (str, int)) or (listed is not None and listed != image_id):
            raise DataFileError(
                f"{what}: its `image_id` is {image_id!r}, the image's `id` {listed!r}. Both must be the same number "
                "or text."
            )
        return None if listed is None else what

    def check_category(self, what: str, annotation: Mapping[str, Any]) -> None:
        """
        Raises:
            DataFileError: If its category is none of the file.
        """
        category = annotation.get("category_id")
        if not _is_whole(category) or (self.categories is not None and category not in self.categories):
            known = (
                "be a whole number" if self.categories is None else f"be one of {reprlib.repr(list(self.categories))}"
            )
            raise DataFileError(f"{what}: its `category_id` is {reprlib.repr(category)}; it must {known}.")


def check_categories(categories: Iterable[Any], source: str) -> dict[Any, str]:
    """
    Names of the categories of a file in COCO's format by id.

    Raises:
        DataFileError: If one has no id and name, or two share an id.
    """
    names = {}
    for number, category in enumerate(categories, start=1):
        if not isinstance(category, Mapping) or not isinstance(category.get("name"), str) or "id" not in category:
            raise DataFileError(
                f"{source}, category number {number} is {reprlib.repr(category)}; it must have an `id` and a `name`."
            )
        if not _is_whole(category["id"]) or category["id"] in names:
            raise DataFileError(
                f"{source}, category {category['name']!r} has the id {category['id']!r}; each needs a whole number of "
                "its own."
            )
        names[category["id"]] = category["name"]
    return names


def _cleaned_fields(annotation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    if annotation.get("segmentation") is None:
        raise ValueError("it has no `segmentation`, and masks are scored; leave it out, or add its polygons.")
    segmentation = clean_segmentation(annotation["segmentation"], size, "its segmentation")
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"its `iscrowd` is {crowd!r}; it must be 0 or 1.")
    area = annotation.get("area")
    if area is None:
        area = int(coco_mask.area(run_lengths(segmentation, size)))
    elif isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < 2**63:
        raise ValueError(f"its `area` is {area!r}; it must be a number of pixels, or be left out.")
    return {"segmentation": segmentation, "iscrowd": int(crowd or 0), "area": area}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def has_numbers(value: Any) -> bool:
    """Whether there is anything in nested lists; `[[]]` stands for nothing in public files."""
    waiting = [value]  # in place of a recursion, as lists may be nested as deeply as JSON has it
    while waiting:
        part = waiting.pop()
        if not isinstance(part, (list, tuple)):
            return True
        waiting += part
    return False


__all__ = [
    "AnnotationPlaces",
    "check_categories",
    "clean_annotations",
    "clean_segmentation",
    "has_numbers",
    "run_lengths",
]
