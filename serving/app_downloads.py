"""What the web app hands out of an answer: its masks as PNG, the overlay, and COCO's JSON."""

import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.segments import SegmentationResult, segment_name


_LONGEST_NAME = 40


def coco_dataset(result: SegmentationResult, file_name: str = "image.png") -> dict[str, Any]:
    """
    Args:
        result ([`SegmentationResult`]): An answer.
        file_name (`str`): What the image is called.

    Returns:
        `dict`: A data set in COCO's format, with one image, a category for every different phrase, and an annotation
        for every segment that is not rejected: run lengths, `bbox`, `area`, `iscrowd` and, beyond the format, `score`.
    """
    height, width = result.image_size
    drawn = [(index, segment) for index, segment in enumerate(result.segments) if segment.mask is not None]
    names = [segment_name(segment.label, index) for index, segment in drawn]
    categories = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
    annotations = []
    for number, (name, found) in enumerate(zip(names, result.to_coco(image_id=1), strict=True), start=1):
        label = {"id": number, "category_id": categories[name], "iscrowd": 0}
        annotations.append({**found, **label})
    return {
        "info": {"description": result.text},
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }


def write_downloads(folder: str | os.PathLike, result: SegmentationResult, overlay: Image.Image) -> list[Path]:
    """
    Writes the files of an answer into a folder.

    Args:
        folder (`str` or `os.PathLike`): Where to; what an earlier answer left there is removed.
        result ([`SegmentationResult`]): The answer, with its image.
        overlay (`PIL.Image.Image`): The image as it is shown.

    Returns:
        `list[Path]`: `overlay.png`, `segments.json` (see [`coco_dataset`]) and a `mask_N_PHRASE.png` (255 = object)
        for every mask, N counted from 1.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    paths = [folder / "overlay.png", folder / "segments.json"]
    overlay.save(paths[0])
    text = json.dumps(coco_dataset(result), ensure_ascii=False, indent=1)
    paths[1].write_text(text + "\n", encoding="utf-8")
    for index, segment in enumerate(result.segments):
        if segment.mask is not None:
            name = re.sub(r"[^a-z0-9]+", "_", segment_name(segment.label, index).lower())[:_LONGEST_NAME].strip("_")
            paths.append(folder / f"mask_{index + 1}_{name or 'segment'}.png")
            Image.fromarray(segment.mask).convert("L").save(paths[-1])
    return paths


__all__ = ["coco_dataset", "write_downloads"]
