"""Pascal VOC's indexed PNGs, read and written.

    JPEGImages/NAME.jpg                   the images
    SegmentationClass/NAME.png            the class of each pixel, in VOC's palette; 255 belongs to none
    SegmentationObject/NAME.png           the number of the object of each pixel, from 1
    ImageSets/Segmentation/SPLIT.txt      names of the images, without endings
    labelmap.txt                          name and colour of each class, as CVAT writes it

A pixel belongs to one object: where masks overlap, the smaller one is seen.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from .annotation_formats import WritingOptions, Written
from .annotation_writing import Categories, encode_png, new_file, place_image
from .data_files import DataFileError
from .labelled_images import LabelledImage


DEFAULT_SPLIT = "train"
BACKGROUND = "background"
# 0 is the background, 255 belongs to none.
MOST_NUMBERS = 254


def write_voc(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write Pascal VOC's folders; see the module and [`AnnotationFormat`].

    Raises:
        DataFileError: There are more than 254 labels, or as many objects in one image.
    """
    written, categories, palette = Written(), Categories(1), voc_palette()
    listed = folder / "ImageSets" / "Segmentation"
    for image in images:
        place_image(image, folder / "JPEGImages", options)
        classes, objects = np.zeros(image.size, dtype=np.uint8), np.zeros(image.size, dtype=np.uint8)
        drawn = list(image.drawn)
        if len(drawn) > MOST_NUMBERS:
            raise DataFileError(
                f"{image.file_name!r} has {len(drawn)} objects, and a PNG of Pascal VOC holds {MOST_NUMBERS}. Choose "
                "another format, such as coco."
            )
        # numbers in the order of the objects; the larger are painted first
        numbers = [categories.number(found.label) for found in drawn]
        if max(numbers, default=0) > MOST_NUMBERS:
            raise DataFileError(
                f"There are more than {MOST_NUMBERS} labels, which the PNGs of Pascal VOC cannot hold. Choose another "
                "format, such as coco."
            )
        for index in sorted(range(len(drawn)), key=lambda index: -drawn[index].area):
            pixels = drawn[index].pixels()
            if hidden := int(np.count_nonzero(objects[pixels])):
                written.left_out["pixels that a smaller mask hides"] += hidden
            classes[pixels], objects[pixels] = numbers[index], index + 1
        name = PurePosixPath(image.file_name).with_suffix("")
        for kind, values in (("SegmentationClass", classes), ("SegmentationObject", objects)):
            indexed = Image.fromarray(values)
            indexed.putpalette(palette)
            new_file(folder / kind, f"{name}.png").write_bytes(encode_png(indexed))
        listed.mkdir(parents=True, exist_ok=True)
        with (listed / f"{image.split or DEFAULT_SPLIT}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        written.images += 1
        written.masks += len(drawn)
        if rejected := sum(1 for _ in image.rejected):
            written.left_out["rejected phrases"] += rejected
    lines = ["# label:color_rgb:parts:actions"]
    for number, label in {0: BACKGROUND, **categories.names}.items():
        red, green, blue = palette[3 * number : 3 * number + 3]
        lines.append(f"{' '.join(label.split())}:{red},{green},{blue}::")
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def voc_palette() -> list[int]:
    """The 256 colours of the devkit of Pascal VOC, red, green and blue of each: the bits of a number, three by three,
    become the highest bits of its colours."""
    colors = []
    for number in range(256):
        for channel in range(3):
            bits = ((number >> (shift + channel)) & 1 for shift in (0, 3, 6))
            colors.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return colors


__all__ = ["voc_palette", "write_voc"]


def is_voc(path):
    return False
