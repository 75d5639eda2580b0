"""COCO's instances, read and written.

    annotations/instances.json   images, annotations and categories, each with ids from 1
    annotations/results.json     one score per annotation, in COCO's results format
    images/                      the images

Categories are the labels in order of appearance. `neg_category_ids` of an image, a field of LVIS, names those that
nothing in it fits: the rejected phrases.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .annotation_formats import WritingOptions, Written
from .annotation_writing import Categories, place_image
from .labelled_images import LabelledImage, LabelledObject
from .mask_outlines import trace_outlines


INSTANCES = "annotations/instances.json"
RESULTS = "annotations/results.json"
IMAGES = "images"


def write_coco(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write COCO's instances; see the module and [`AnnotationFormat`].

    Run lengths are exact. Polygons have one outline per part; they are exact, too, with a tolerance of 0.
    """
    written, categories, number = Written(), Categories(1), 0
    (folder / IMAGES).mkdir()
    (folder / "annotations").mkdir()
    rows, scores = folder / "annotations" / "rows.partial", _JsonList(folder / RESULTS)
    with (folder / INSTANCES).open("w", encoding="utf-8") as file, _JsonList(rows) as annotations, scores:
        file.write('{"info": {"description": "Written by reasonseg"}, "images": [')
        for image_id, image in enumerate(images, start=1):
            place_image(image, folder / IMAGES, options)
            # also of what is rejected, so that all that was asked for has a number, in the order of the question
            numbers = [categories.number(found.label) for found in image.objects]
            file.write(",\n" if image_id > 1 else "\n")
            json.dump(_image_row(image_id, image, numbers), file, ensure_ascii=False)
            written.images += 1
            written.rejected += sum(1 for _ in image.rejected)
            for found, category in zip(image.objects, numbers, strict=True):
                if found.mask is None:
                    continue
                row = {
                    "id": number + 1,
                    "image_id": image_id,
                    "category_id": category,
                    **_shape(found, options, written),
                }
                if not row["segmentation"]:
                    written.left_out["empty masks, which have no polygon"] += 1
                    continue
                number += 1
                annotations.add(row)
                written.masks += 1
                if found.score is not None:
                    kept = {name: row[name] for name in ("image_id", "category_id", "bbox")}
                    scores.add({**kept, "segmentation": found.mask, "score": found.score})
        annotations.close()
        file.write('\n],\n"annotations": ')
        with rows.open(encoding="utf-8") as written_rows:
            shutil.copyfileobj(written_rows, file)
        listed = [{"id": number, "name": name, "supercategory": ""} for number, name in categories.names.items()]
        file.write(f',\n"categories": {json.dumps(listed, ensure_ascii=False)}}}\n')
    rows.unlink()
    if not scores.count:
        scores.path.unlink()
    return written


def _image_row(image_id: int, image: LabelledImage, numbers: list[int]) -> dict[str, Any]:
    height, width = image.size
    row: dict[str, Any] = {"id": image_id, "file_name": image.file_name, "height": height, "width": width}
    row["neg_category_ids"] = sorted(
        {number for found, number in zip(image.objects, numbers, strict=True) if found.rejected}
    )
    if image.requests:
        row["requests"] = [{"question": asked.question, "answer": asked.answer} for asked in image.requests]
    row |= {name: value for name in ("model", "revision") if (value := getattr(image, name)) is not None}
    return row


def _shape(found: LabelledObject, options: WritingOptions, written: Written) -> dict[str, Any]:
    segmentation: Any = found.mask
    if options.masks == "polygons":
        outlines = trace_outlines(found.mask or {}, options.tolerance)
        segmentation = [ring.ravel().tolist() for ring in outlines.rings]
        written.least_iou = min(written.least_iou, outlines.iou)
    x1, y1, x2, y2 = found.box_xyxy or (0, 0, 0, 0)
    row = {
        "segmentation": segmentation,
        "area": found.area,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "iscrowd": int(found.is_crowd),
    }
    if found.score is not None:
        row["score"] = found.score
    if found.span is not None:
        row["span"] = list(found.span)
    return row


class _JsonList:
    """A JSON file with one list, written one item at a time."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self._file = path.open("w", encoding="utf-8")
        self._file.write("[")

    def add(self, item: Any) -> None:
        self._file.write(",\n" if self.count else "\n")
        json.dump(item, self._file, ensure_ascii=False)
        self.count += 1

    def close(self) -> None:
        if not self._file.closed:
            self._file.write("\n]")
            self._file.close()

    def __enter__(self) -> "_JsonList":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


__all__ = ["write_coco"]
