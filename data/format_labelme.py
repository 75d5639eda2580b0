"""LabelMe's JSON files, read and written: one beside each image, with polygons or masks.

Polygons of one `group_id` are the parts of one object. A flag `rejected: PHRASE` of an image that is true names a
phrase that nothing in it fits. A shape's `score` is a field of ours, which LabelMe keeps when it saves the file.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from .annotation_formats import WritingOptions, Written
from .annotation_writing import UNNAMED, encode_png, new_file, place_image
from .labelled_images import LabelledImage, LabelledObject
from .mask_outlines import trace_outlines


# What LabelMe 5 and 6 read alike.
VERSION = "5.5.0"
REJECTED_FLAG = "rejected: "
CROWD_FLAG = "iscrowd"


def write_labelme(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write a JSON file beside each image; see the module and [`AnnotationFormat`].

    Exact masks are shapes of the type `mask`: a PNG of the box around the object. Polygons are exact, too, with a
    tolerance of 0; LabelMe itself paints them with their outline, which adds a pixel on the right and below.
    """
    written = Written()
    for image in images:
        place_image(image, folder, options)
        height, width = image.size
        name = PurePosixPath(image.file_name)
        shapes: list[dict[str, Any]] = []
        for number, found in enumerate(image.objects):
            added = list(_shapes(found, number, options, written))
            written.masks += bool(added)
            if found.mask is not None and not added:
                written.left_out["empty masks, which have no outline"] += 1
            shapes += added
        content = {
            "version": VERSION,
            "flags": {f"{REJECTED_FLAG}{found.label or UNNAMED}": True for found in image.rejected},
            "shapes": shapes,
            "imagePath": name.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        new_file(folder, str(name.with_suffix(".json"))).write_text(
            json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        written.images += 1
        written.rejected += len(content["flags"])
    return written


def _shapes(found: LabelledObject, number: int, options: WritingOptions, written: Written) -> Iterator[dict[str, Any]]:
    """An object as one mask, or as a polygon for each of its parts."""
    if found.mask is None or (box := found.box_xyxy) is None:
        return
    shape = {
        "label": found.label or UNNAMED,
        "points": [],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {CROWD_FLAG: True} if found.is_crowd else {},
        "mask": None,
    }
    if found.score is not None:
        shape["score"] = found.score
    if options.masks == "polygons":
        outlines = trace_outlines(found.mask, options.tolerance)
        written.least_iou = min(written.least_iou, outlines.iou)
        group = number if len(outlines.rings) > 1 else None
        for ring in outlines.rings:
            yield {**shape, "shape_type": "polygon", "points": ring.tolist(), "group_id": group}
        return
    x1, y1, x2, y2 = box
    png = encode_png(Image.fromarray(found.pixels()[y1:y2, x1:x2]).convert("L"))
    # the second corner is the last pixel
    corners = [[float(x1), float(y1)], [float(x2 - 1), float(y2 - 1)]]
    yield {**shape, "points": corners, "mask": base64.b64encode(png).decode("ascii")}


__all__ = ["write_labelme"]
