"""Pascal VOC's indexed PNGs, read and written.

    JPEGImages/NAME.jpg                   the images
    SegmentationClass/NAME.png            the class of each pixel, in VOC's palette; 255 belongs to none
    SegmentationObject/NAME.png           the number of the object of each pixel, from 1
    ImageSets/Segmentation/SPLIT.txt      names of the images, without endings
    labelmap.txt                          name and colour of each class, as CVAT writes it

A pixel belongs to one object: where masks overlap, the smaller one is seen.
"""

import reprlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from ..processing.image_loading import MAX_IMAGE_PIXELS, open_image, upright_image
from ..processing.regions import check_mask_size
from .annotation_formats import ReadingOptions, WritingOptions, Written
from .annotation_reading import SIDE_FILES, ImageHead, ImageMasks, image_named, read_each, read_head
from .annotation_writing import DEFAULT_SPLIT, UNNAMED, Categories, encode_png, new_file, place_image
from .data_files import DataFileError, file_in, read_text
from .labelled_images import LabelledImage, LabelledObject


BACKGROUND = "background"
# 0 is the background, 255 belongs to none.
MOST_NUMBERS = 254
VOID = 255


_IMAGES = "JPEGImages"
# The colour that the devkit shows number 255 in.
_VOID = (224, 224, 192)
_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def is_voc(path: Path) -> bool:
    """Whether a path is a folder of Pascal VOC."""
    return (path / _IMAGES).is_dir() and any((path / kind).is_dir() for kind in ("SegmentationClass", "Annotations"))


def read_voc(source: str | Path, options: ReadingOptions) -> Iterator[LabelledImage]:
    """
    Read the PNGs of Pascal VOC, or, where there are none, the boxes of its XML files, which are no masks.

    Names of classes stand in `labelmap.txt` (by colour) or `class_names.txt` (by line, the background first); without
    these files they are VOC's own.

    Args:
        source (`str` or `Path`): The folder that holds `JPEGImages`.
        options ([`ReadingOptions`]): As chosen.

    Raises:
        DataFileError: A file cannot be used.
    """
    root = Path(source)
    if not is_voc(root):
        raise DataFileError(
            f"{root} is no folder of Pascal VOC; it must hold the folders {_IMAGES} and SegmentationClass, or "
            "Annotations."
        )
    has_masks = (root / "SegmentationClass").is_dir()
    split, names = _names_of(root, options.split, has_masks)
    classes = _Classes(root) if has_masks else None

    def read(name: str) -> LabelledImage:
        kind = f"SegmentationClass/{name}.png" if has_masks else f"Annotations/{name}.xml"
        labelled = file_in(root, kind)
        if not labelled.is_file():
            raise DataFileError(f"{labelled} does not exist.")
        image = image_named(file_in(root, f"{_IMAGES}/{name}").parent, PurePosixPath(name).name, str(labelled))
        head, what = read_head(image, options.max_image_pixels), str(labelled)
        if classes is not None:
            objects = _read_masks(root, name, classes, head, options)
        else:
            objects = _read_boxes(labelled, ImageMasks(head, None, options, what))
        return LabelledImage(
            file_name=image.relative_to(root / _IMAGES).as_posix(),
            size=head.upright,
            source=image,
            objects=tuple(objects),
            split=split,
        )

    return read_each(names, read, root)


def _names_of(root: Path, split: str | None, has_masks: bool) -> tuple[str | None, list[str]]:
    """The split, and the names of its images: as its list has them, or without lists all that are labelled."""
    kind, folder, ending = (
        ("Segmentation", "SegmentationClass", ".png") if has_masks else ("Main", "Annotations", ".xml")
    )
    lists = {path.stem: path for path in sorted((root / "ImageSets" / kind).glob("*.txt"))}
    if kind == "Main":  # beside the splits it has a list of each class in each of them
        lists = {name: path for name, path in lists.items() if "_" not in name}
    if split is None and len(lists) > 1:
        raise DataFileError(f"{root} has the splits {', '.join(lists)}; say which one with split='NAME'.")
    if split is None and not lists:
        files = sorted(file for file in (root / folder).rglob(f"*{ending}") if not file.name.startswith(SIDE_FILES))
        return None, [file.relative_to(root / folder).with_suffix("").as_posix() for file in files]
    split = next(iter(lists)) if split is None else split
    if split not in lists:
        raise DataFileError(f"{root} has no split {split!r}; it has {', '.join(lists) or 'none'}.")
    return split, [line.strip() for line in read_text(lists[split]).splitlines() if line.strip()]


# ---- masks ----------------------------------------------------------------------------------------------------------


class _Classes:
    """The names of the classes of a folder, by their numbers and, where it says so, by their colours."""

    def __init__(self, root: Path):
        self.by_color: dict[tuple[int, int, int], str] | None = None
        self.by_number = {0: BACKGROUND, **dict(enumerate(_CLASSES, start=1))}
        colored, listed = root / "labelmap.txt", root / "class_names.txt"
        self._has_numbers = listed.is_file() and not colored.is_file()
        if colored.is_file():
            rows = [line for line in read_text(colored).splitlines() if line.strip() and not line.startswith("#")]
            self.by_color = dict(_color_and_name(row, number, colored) for number, row in enumerate(rows, start=1))
        elif listed.is_file():
            self.by_number = dict(enumerate(read_text(listed).splitlines()))
            if (first := self.by_number.get(0, "")).strip("_") != BACKGROUND:
                raise DataFileError(f"{listed} begins with {first!r}; number 0, its first line, is the background.")

    def read(self, path: Path, max_image_pixels: int | None) -> tuple[np.ndarray, dict[int, str]]:
        """
        A number for each pixel, int64 `(height, width)`, and the names of the numbers that are objects.

        Raises:
            DataFileError: A colour or a number has no name.
        """
        numbers, colors = _indexed(path, max_image_pixels)
        names, used = {}, np.unique(numbers).tolist()
        if not colors and used == [0, VOID] and not self._has_numbers:
            raise DataFileError(
                f"{path} has the numbers 0 and 255 alone, and 255 belongs to none of the classes. A mask in black and "
                "white is to have the number of its class in place of 255, as class_names.txt counts them."
            )
        for number in used:
            color = colors.get(number)
            if number == VOID or (color is not None and color == _VOID and number != 0):
                continue
            name = self.by_number.get(number) if self.by_color is None else self.by_color.get(color or ())
            if name is None:
                shown = f"number {number}" if color is None else f"number {number} in the colour {color}"
                raise DataFileError(f"{path} has {shown}, which no class has; name it in labelmap.txt.")
            if number != 0 and name.strip("_") != BACKGROUND:
                names[number] = name
        return numbers, names


def _color_and_name(row: str, number: int, path: Path) -> tuple[tuple[int, int, int], str]:
    # a name may hold a colon, the three last fields do not
    name, *fields = row.rsplit(":", 3)
    color = fields[0].split(",") if len(fields) == 3 else []
    if not name or len(color) != 3 or not all(part.strip().isdecimal() for part in color):
        raise DataFileError(f"{path}, class number {number} is {row!r}; it must be NAME:RED,GREEN,BLUE::.")
    red, green, blue = map(int, color)
    return (red, green, blue), name


def _indexed(path: Path, max_image_pixels: int | None) -> tuple[np.ndarray, dict[int, tuple[int, int, int]]]:
    """The numbers of a PNG, and the colours of them; of one in plain colours these make the numbers."""
    with open_image(path, max_image_pixels or MAX_IMAGE_PIXELS) as image:
        upright = upright_image(image, str(path))
        if upright.mode in ("1", "L", "I") or upright.mode.startswith("I;16"):
            return np.asarray(upright).astype(np.int64), {}
        if upright.mode == "P":
            palette = np.asarray(upright.getpalette("RGB"), dtype=np.int64).reshape(-1, 3).tolist()
            return np.asarray(upright).astype(np.int64), {number: tuple(color) for number, color in enumerate(palette)}
        values = np.asarray(upright.convert("RGB")).astype(np.int64)
    packed, first = np.unique(values @ (65536, 256, 1), return_inverse=True)
    colors = {
        number + 256: (color >> 16, color >> 8 & 255, color & 255) for number, color in enumerate(packed.tolist())
    }
    return first.reshape(values.shape[:2]) + 256, colors


def _read_masks(
    root: Path, name: str, classes: "_Classes", head: ImageHead, options: ReadingOptions
) -> Iterator[LabelledObject]:
    """An object per number, or per class where there are no numbers of objects or a pixel has none."""
    path, numbered = file_in(root, f"SegmentationClass/{name}.png"), file_in(root, f"SegmentationObject/{name}.png")
    kinds, names = classes.read(path, options.max_image_pixels)
    numbers = np.zeros_like(kinds)
    if numbered.is_file():
        numbers, _ = _indexed(numbered, options.max_image_pixels)
        check_mask_size(numbers.shape, kinds.shape, f"The PNG {numbered}")
    masks, labelled = ImageMasks(head, kinds.shape, options, str(path)), np.isin(kinds, list(names))
    pairs = np.unique(np.stack([numbers[labelled], kinds[labelled]], axis=1), axis=0).tolist()
    for position, (number, kind) in enumerate(pairs):
        if number and position and pairs[position - 1][0] == number:
            raise DataFileError(
                f"{numbered}: object {number} has the classes {names[pairs[position - 1][1]]!r} and {names[kind]!r}; "
                f"an object has one."
            )
        found = masks.object(names[kind], (kinds == kind) & (numbers == number), f"object {number or names[kind]}")
        if found is not None:
            yield found


# ---- boxes ----------------------------------------------------------------------------------------------------------


def _read_boxes(path: Path, masks: ImageMasks) -> Iterator[LabelledObject]:
    for number, element in enumerate(_parse_xml(path).iter("object"), start=1):
        name = (element.findtext("name") or "").strip()
        box = element.find("bndbox")
        sides = [None if box is None else box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in sides:
            raise DataFileError(f"{path}, object number {number}: it must have a `name` and a `bndbox`.")
        try:
            sides = list(map(float, sides))
        except ValueError:
            raise DataFileError(
                f"{path}, object number {number} has the box {reprlib.repr(sides)}; it must be four numbers."
            ) from None
        found = masks.object(name, None, f"object number {number} ({name!r})", box_xyxy=sides)
        if found is not None:
            yield found


def _parse_xml(path: Path) -> ElementTree.Element:
    """A document without a type of its own, by which an XML file may name entities and other files."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = partial(_refuse_doctype, path)
    try:
        parser.Parse(path.read_bytes(), True)
    except DataFileError:
        raise
    # also an encoding that is not known, or has several bytes per letter
    except (expat.ExpatError, AssertionError, LookupError, ValueError) as error:
        raise DataFileError(f"{path} is no XML file in UTF-8: {error}.") from None
    return builder.close()


def _refuse_doctype(path: Path, *_: Any) -> None:
    raise DataFileError(f"{path} has a DOCTYPE, which files of Pascal VOC have none of; it is not read.")


# ---- writing --------------------------------------------------------------------------------------------------------


def write_voc(images: Iterable[LabelledImage], folder: Path, options: WritingOptions) -> Written:
    """Write Pascal VOC's folders; see the module and [`AnnotationFormat`].

    Raises:
        DataFileError: There are more than 254 labels, or as many objects in one image; or a label is the name of the
            background, or cannot stand in `labelmap.txt`.
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
        for found in drawn:
            _check_name(found.label, image.file_name)
        numbers = [categories.number(found.label) for found in drawn]
        if max(numbers, default=0) > MOST_NUMBERS:
            raise DataFileError(
                f"There are more than {MOST_NUMBERS} labels, which the PNGs of Pascal VOC cannot hold. Choose another "
                "format, such as coco."
            )
        for index in sorted(range(len(drawn)), key=lambda index: -drawn[index].area):
            pixels = drawn[index].pixels()
            if not pixels.any():
                written.left_out["empty masks, which have no pixel"] += 1
            if hidden := int(np.count_nonzero(objects[pixels])):
                written.left_out["pixels that a smaller mask hides"] += hidden
            classes[pixels], objects[pixels] = numbers[index], index + 1
        seen = set(np.unique(objects).tolist()) - {0}
        if lost := sum(found.area > 0 for found in drawn) - len(seen):
            written.left_out["masks that others hide wholly"] += lost
        name = PurePosixPath(image.file_name).with_suffix("")
        if [str(name)] != str(name).strip().splitlines():
            raise DataFileError(
                f"The image {image.file_name!r} cannot stand in a list of names of Pascal VOC, one in each line. "
                "Give its file another name."
            )
        for kind, values in (("SegmentationClass", classes), ("SegmentationObject", objects)):
            indexed = Image.fromarray(values)
            indexed.putpalette(palette)
            new_file(folder / kind, f"{name}.png").write_bytes(encode_png(indexed))
        listed.mkdir(parents=True, exist_ok=True)
        with (listed / f"{image.split or DEFAULT_SPLIT}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        written.images += 1
        written.masks += len(seen)
    lines = ["# label:color_rgb:parts:actions"]
    for number, label in {0: BACKGROUND, **categories.names}.items():
        red, green, blue = palette[3 * number : 3 * number + 3]
        lines.append(f"{' '.join(label.split()) or UNNAMED}:{red},{green},{blue}::")
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def _check_name(label: str, file_name: str) -> None:
    name = " ".join(label.split())
    if name.strip("_") == BACKGROUND or name.startswith("#"):
        raise DataFileError(
            f"{file_name!r} has an object {label!r}. In labelmap.txt of Pascal VOC that would name the background, "
            "or be a comment, and the object would be lost. Choose another format, such as coco."
        )


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
