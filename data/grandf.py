"""Reads GranD-f, the data set of grounded conversations: captions whose phrases have masks (arXiv 2311.03356)."""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotated_images import AnnotatedImage, by_image, read_annotations, read_images
from .coco import check_categories, clean_annotations, run_lengths
from .data_files import DataFileError


_MASKS, _CAPTIONS = "mask_gt", "caption_gt"


@dataclass(frozen=True)
class GroundedTarget:
    """
    What is right about one image.

    Args:
        captions (`list[str]`): Right captions.
        phrases (`list[str]`): Phrases of the first caption that have masks.
        masks (`list[dict]`): Their compressed run lengths, in the same order.
    """

    captions: list[str]
    phrases: list[str]
    masks: list[dict[str, Any]]


class GroundedConversations:
    """
    One split of GranD-f as it is published: `val_gcg_coco_mask_gt.json` and `val_gcg_coco_caption_gt.json`.

    Args:
        annotations (`str` or `Path`): Folder with both files, or one of the two.
        split (`str`): `val` or `test`; tells the files of a folder apart.
        limit (`int`, *optional*): Only the first images.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is not in COCO's format, lists no image, or holds an annotation that cannot be used.
    """

    def __init__(self, annotations: str | Path, split: str = "val", limit: int | None = None):
        path = Path(annotations)
        if path.is_dir():
            path = path / f"{split}_gcg_coco_{_MASKS}.json"
        elif _MASKS not in path.name and _CAPTIONS not in path.name:
            raise ValueError(f"{path.name} must have {_MASKS} or {_CAPTIONS} in its name, so that the other is found.")
        masks_path = path.with_name(path.name.replace(_CAPTIONS, _MASKS))
        captions_path = path.with_name(path.name.replace(_MASKS, _CAPTIONS))
        content = read_annotations(masks_path, ("images", "annotations", "categories"))
        captions = read_annotations(captions_path, ("images", "annotations"))
        described = {entry["id"]: entry for entry in content["images"] if _has_id(entry)}
        mask_sizes = _sizes_of_masks(content["annotations"])
        # Captions say which images count; their sizes may stand with the masks alone, or in the masks.
        images = read_images(
            [
                {**mask_sizes.get(entry["id"], {}), **described.get(entry["id"], {}), **entry}
                if _has_id(entry)
                else entry
                for entry in captions["images"]
            ],
            str(captions_path),
        )
        if not images:
            raise ValueError(f"{captions_path} has no images; an empty data set has no scores.")
        self.images: list[AnnotatedImage] = images[:limit]
        sizes = {image.id: image.size for image in images}
        cleaned = clean_annotations(content["annotations"], sizes, str(masks_path), without_masks=True)
        check_categories(content["categories"], str(masks_path))
        self.mask_dataset = {
            **content,
            "images": [
                {**described[image_id], "height": height, "width": width}
                for image_id, (height, width) in sizes.items()
                if image_id in described
            ],
            "annotations": cleaned,
        }
        self._masks = by_image(cleaned)
        # AP counts every image with masks, as the original does, unless only the first ones are asked for.
        self.scored_ids = None if limit is None else [image.id for image in self.images if image.id in described]
        self._captions = by_image(_check_captions(captions["annotations"], str(captions_path)))

    def __len__(self) -> int:
        return len(self.images)

    def target(self, image: AnnotatedImage) -> GroundedTarget:
        """
        Raises:
            ValueError: If the image has no caption.
        """
        captions = self._captions.get(image.id)
        if not captions:
            raise ValueError(f"The image {image.id!r} has no caption.")
        masks = [run_lengths(annotation["segmentation"], image.size) for annotation in self._masks.get(image.id, [])]
        return GroundedTarget([entry["caption"] for entry in captions], list(captions[0].get("labels", [])), masks)


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), (int, str))


def _sizes_of_masks(annotations: list[Any]) -> dict[int | str, dict[str, int]]:
    """Height and width of images by the run lengths of their masks."""
    sizes = {}
    for annotation in annotations:
        runs = annotation.get("segmentation") if isinstance(annotation, dict) else None
        size = runs.get("size") if isinstance(runs, dict) else None
        if isinstance(size, list) and len(size) == 2 and isinstance(annotation.get("image_id"), (int, str)):
            sizes.setdefault(annotation["image_id"], {"height": size[0], "width": size[1]})
    return sizes


def _check_captions(annotations: list[Any], source: str) -> list[dict[str, Any]]:
    """
    Raises:
        DataFileError: If a caption has no text, no image, or no list of phrases.
    """
    for number, entry in enumerate(annotations, start=1):
        known = isinstance(entry, dict) and isinstance(entry.get("image_id"), (int, str))
        labels = entry.get("labels", []) if known else None
        if (
            not known
            or not isinstance(entry.get("caption"), str)
            or not isinstance(labels, list)
            or not all(isinstance(label, str) for label in labels)
        ):
            raise DataFileError(
                f"{source}, caption number {number} is {reprlib.repr(entry)}; it must have an `image_id`, a `caption` "
                "and `labels`, the list of its phrases."
            )
    return annotations


__all__ = ["GroundedConversations", "GroundedTarget"]
