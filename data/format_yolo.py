"""YOLO's segmentation labels, read and written.

    data.yaml                 names of the classes and folders of the splits
    images/train/NAME.jpg     the images
    labels/train/NAME.txt     one line per object: class, then x and y of its outline, as shares of width and height

A line is one outline. Several parts and holes are joined to it by bridges without an area: a part ends where it
begins, and between two parts the outline goes and comes back the same way.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import yaml

from .annotation_formats import WritingOptions, Written
from .annotation_writing import Categories, new_file, place_image
from .labelled_images import LabelledImage
from .mask_outlines import trace_outlines


DEFAULT_SPLIT = "train"


def write_yolo(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write YOLO's segmentation labels; see the module and [`AnnotationFormat`].

    An image in which nothing was found gets an empty file, by which YOLO knows it as background. With a tolerance of
    0 a line fills the very pixels of its mask, holes and all, by pycocotools and every other painter that counts the
    crossings of a line; the painter of ultralytics draws outlines and bridges as well, a pixel wide.
    """
    written, categories, splits = Written(), Categories(0), {}
    for image in images:
        split = image.split or DEFAULT_SPLIT
        splits.setdefault(split, None)
        place_image(image, folder / "images" / split, options)
        height, width = image.size
        lines = []
        for found in image.drawn:
            category = categories.number(found.label)
            outlines = trace_outlines(found.mask or {}, options.tolerance, joined=True)
            if not outlines.rings:
                written.left_out["empty masks, which have no outline"] += 1
                continue
            written.least_iou = min(written.least_iou, outlines.iou)
            shares = (outlines.rings[0] / (width, height)).ravel().tolist()
            lines.append(" ".join([str(category), *(f"{share:.8g}" for share in shares)]) + "\n")
        name = str(PurePosixPath(image.file_name).with_suffix(".txt"))
        new_file(folder / "labels" / split, name).write_text("".join(lines), encoding="utf-8")
        written.images += 1
        written.masks += len(lines)
        if rejected := sum(1 for _ in image.rejected):
            written.left_out["rejected phrases"] += rejected
    folders = {split: f"images/{split}" for split in splits or (DEFAULT_SPLIT,)}
    # ultralytics wants both; who has one split measures on what was learned
    used = next(iter(folders.values()))
    content = {"train": used, "val": used, **folders, "names": categories.names}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return written


__all__ = ["write_yolo"]
