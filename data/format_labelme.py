"""LabelMe's JSON files, read and written: one beside each image, with polygons or masks.

Polygons of one `group_id` are the parts of one object. A flag `rejected: PHRASE` of an image that is true names a
phrase that nothing in it fits. A shape's `score` is a field of ours, which LabelMe keeps when it saves the file.
"""

import base64
import binascii
import json
import math
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..processing.image_loading import MAX_IMAGE_PIXELS, open_image
from ..processing.mask_reading import EmptyMaskError, read_mask
from .annotation_formats import ReadingOptions, WritingOptions, Written
from .annotation_reading import (
    IMAGE_SUFFIXES,
    ImageHead,
    ImageMasks,
    image_ending,
    read_each,
    read_head,
    score_of,
)
from .annotation_writing import UNNAMED, encode_png, new_file, place_image, rejected_labels
from .data_files import DataFileError, file_in, read_json
from .labelled_images import LabelledImage, LabelledObject
from .mask_outlines import trace_outlines


# What LabelMe 5 and 6 read alike.
VERSION = "5.5.0"
REJECTED_FLAG = "rejected: "
CROWD_FLAG = "iscrowd"
# Shapes that LabelMe draws without an area.
_LINES = ("line", "linestrip", "point", "points")
_SHAPES = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")


def is_labelme(path: Path) -> bool:
    """Whether a path is a file of LabelMe, or the first JSON file below a folder is one."""
    files = [path] if path.is_file() and path.suffix == ".json" else _json_files(path)
    return bool(files) and all(word in files[0].read_bytes() for word in (b'"shapes"', b'"imagePath"'))


def read_labelme(source: str | Path, options: ReadingOptions) -> Iterator[LabelledImage]:
    """
    Read LabelMe's files.

    Polygons become masks as COCO's are painted. All shapes of one `group_id` and label are one object; a polygon
    inside another of its group belongs to the object, as LabelMe counts it, unless `inner` says that it is a hole.

    Args:
        source (`str` or `Path`): One file, or a folder with all of them, in itself or in folders of it.
        options ([`ReadingOptions`]): As chosen; LabelMe shows images upright, so that masks lie there where sizes do
            not tell.

    Raises:
        DataFileError: A file, its image or a shape cannot be used.
    """
    source = Path(source)
    files = [source] if source.is_file() else _json_files(source)
    if not files:
        raise DataFileError(f"{source} holds no JSON file; name the folder with LabelMe's files, or one of them.")
    root = source.parent if source.is_file() else source

    def read(path: Path) -> LabelledImage:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise DataFileError(f"{path} is no file of LabelMe: it has no list `shapes`.")
        image, name = _image(content, path, root, options)
        head, stated = read_head(image, options.max_image_pixels), _stated_size(content, path)
        masks = ImageMasks(head, stated, options, str(path), tool_frame="upright")
        objects = [*_objects(content["shapes"], masks), *map(masks.rejected, _rejected(content.get("flags"), path))]
        return LabelledImage(
            file_name=name,
            size=head.upright,
            source=image,
            objects=tuple(found for found in objects if found is not None),
        )

    return read_each(files, read, source)


def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json") if path.is_file() and not path.name.startswith("."))


# ---- images ---------------------------------------------------------------------------------------------------------


def _image(content: dict[str, Any], path: Path, root: Path, options: ReadingOptions) -> tuple[Path | bytes, str]:
    """The image's file, or its content where the JSON file holds it alone, and its name in the data set."""
    named = content.get("imagePath")
    if not isinstance(named, str) or not named:
        raise DataFileError(f"{path}: its `imagePath` is {reprlib.repr(named)}; it must name the image.")
    embedded, limit = _embedded_image(content.get("imageData"), path), options.max_image_pixels
    folder = options.images or path.parent
    if not (folder / named).is_file():
        named = named.replace("\\", "/")
    if options.images is not None:
        named = PurePosixPath(named).name
    try:
        file = file_in(folder, named)
    except ValueError as error:
        if embedded is None:
            raise DataFileError(f"{path}: {error} The folder of the images is chosen with images='FOLDER'.") from None
        file = None
    is_there = file is not None and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    kept = None if embedded is None else _embedded_head(embedded, path, limit)
    # the file as it was taken, in place of the copy that LabelMe has made of it
    if is_there and (kept is None or read_head(file, limit).upright == kept.upright):
        return file, _name_below(root if options.images is None else folder, file)
    if embedded is None:
        raise DataFileError(
            f"{path}: its image {file} does not exist, and the file does not hold it. The folder of the images is "
            "chosen with images='FOLDER'."
        )
    return embedded, _name_below(root, path.with_suffix(image_ending(embedded, limit)))


def _name_below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _embedded_image(data: Any, path: Path) -> bytes | None:
    if data is None or data == "":
        return None
    return _decode(data, f"{path}: its `imageData`")


def _embedded_head(content: bytes, path: Path, limit: int | None) -> ImageHead:
    try:
        return read_head(content, limit)
    except ValueError as error:
        raise DataFileError(f"{path}: its `imageData` cannot be used. {error}") from None


def _decode(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # some writers break it into lines
    except (AttributeError, binascii.Error, TypeError, ValueError):
        raise DataFileError(f"{what} is {reprlib.repr(text)}, which is no base64.") from None


def _stated_size(content: dict[str, Any], path: Path) -> tuple[int, int] | None:
    sides = (content.get("imageHeight"), content.get("imageWidth"))
    if None in sides:
        return None
    if not all(isinstance(side, int) or (isinstance(side, float) and side.is_integer()) for side in sides):
        raise DataFileError(f"{path}: its `imageHeight` and `imageWidth` are {sides}; give pixels.")
    return sides


def _rejected(flags: Any, path: Path) -> list[str]:
    """The phrases that our own flags name."""
    flags = flags or {}
    if not isinstance(flags, dict):
        raise DataFileError(f"{path}: its `flags` are {reprlib.repr(flags)}; they must be true or false by name.")
    return [
        name.removeprefix(REJECTED_FLAG)
        for name, is_set in flags.items()
        if name.startswith(REJECTED_FLAG) and is_set is True
    ]


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _objects(shapes: list[Any], masks: ImageMasks) -> Iterator[LabelledObject | None]:
    """Objects in the order of their first shapes; `None` for what is to be left out."""
    groups: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for number, shape in enumerate(shapes, start=1):
        what = f"shape number {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise DataFileError(f"{masks.what}, {what} is {reprlib.repr(shape)}; it must have a `label`.")
        what += f" ({shape['label']!r})"
        group = shape.get("group_id")
        if group is not None and not isinstance(group, (int, float, str)):
            raise DataFileError(f"{masks.what}, {what}: its `group_id` is {reprlib.repr(group)}; it must be a number.")
        groups.setdefault((shape["label"], number if group is None else None, group), []).append((what, shape))
    for (label, _, _), members in groups.items():
        what, first = members[0]
        flags = first.get("flags")
        others = {
            "score": score_of(first.get("score"), masks.options),
            "is_crowd": isinstance(flags, dict) and flags.get(CROWD_FLAG) is True,
        }
        drawn = partial(_united, members, masks)
        yield masks.object(label, drawn, what, parts_are_united=True, **others)


def _united(members: list[tuple[str, dict[str, Any]]], masks: ImageMasks, size: tuple[int, int]) -> Any:
    """The shapes of one object: polygons where all are, else pixels `(height, width)`.

    A point or a line in a group, where it is to be left out, leaves the others as they are.
    """
    drawn, without_area = [], []
    for what, shape in members:
        what = f"{masks.what}, {what}"
        try:
            drawn.append((what, _drawn(shape, what, size)))
        except EmptyMaskError as error:
            if masks.options.without_mask == "refuse":
                raise
            without_area.append(error)
    if not drawn:
        raise without_area[0]
    if without_area:
        masks.options.left_out["points and lines of objects that have an area"] += len(without_area)
    if all(isinstance(part, list) for _, part in drawn):
        return [part for _, part in drawn]
    united = np.zeros(size, dtype=bool)
    for what, part in drawn:
        if isinstance(part, np.ndarray):
            united |= part
        elif len(part) >= 6:
            with suppress(EmptyMaskError):  # of an object that has pixels besides
                united |= read_mask([part], size, what)
    return united


def _drawn(shape: dict[str, Any], what: str, size: tuple[int, int]) -> list[float] | np.ndarray:
    """A polygon `[x1, y1, ...]`, or the pixels of what is none."""
    kind, points = shape.get("shape_type") or "polygon", _points(shape.get("points"), what)
    # X-AnyLabeling, which writes these files too, gives all corners of its rectangles
    if kind == "rotation" or (kind == "rectangle" and len(points) == 4):
        kind = "oriented_rectangle"
    if kind in _LINES:
        raise EmptyMaskError(f"{what} is a {kind}, which has no area.")
    if kind not in _SHAPES:
        raise ValueError(f"{what} is of the type {kind!r}; {', '.join(_SHAPES)} are read.")
    corners = {"rectangle": 2, "circle": 2, "mask": 2, "oriented_rectangle": 4}.get(kind)
    if corners is not None and len(points) != corners:
        raise ValueError(f"{what} is a {kind} of {len(points)} points; it needs {corners}.")
    if kind == "circle":
        return _circle(points, size)
    if kind == "mask":
        return _pasted(shape.get("mask"), points, what, size)
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.tolist()
        points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    return points.ravel().tolist()


def _points(points: Any, what: str) -> np.ndarray:
    try:
        read = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        read = np.zeros(0)
    if isinstance(points, list) and not points:
        return read.reshape(0, 2)
    if read.ndim != 2 or read.shape[1] != 2 or not np.isfinite(read).all():
        raise ValueError(f"{what} has the points {reprlib.repr(points)}; give pairs of finite numbers.")
    return read


def _circle(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose middles lie in a circle, given by its middle and a point on it."""
    (x, y), edge = points[0], points[1]
    radius = math.dist(points[0], edge)
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius


def _pasted(mask: Any, points: np.ndarray, what: str, size: tuple[int, int]) -> np.ndarray:
    """The PNG of the box between two pixels, both inside, in the whole image."""
    (x1, y1), (x2, y2) = np.clip(points, -(2**31), 2**31).astype(np.int64).tolist()
    if not (0 <= x1 <= x2 < size[1] and 0 <= y1 <= y2 < size[0]):
        raise ValueError(
            f"{what} has a mask from pixel {x1, y1} to {x2, y2}, no box of the image of {size[1]} x {size[0]} pixels."
        )
    content = _decode(mask, f"{what}: its `mask`")
    try:
        opened = open_image(content, max(MAX_IMAGE_PIXELS, size[0] * size[1]))  # as large as the image
    except ValueError as error:
        raise ValueError(f"{what}: its `mask` cannot be used. {error}") from None
    with opened:
        part = read_mask(opened, what=f"{what}: its `mask`")
    if part.shape != (y2 - y1 + 1, x2 - x1 + 1):
        raise ValueError(
            f"{what}: its `mask` is {part.shape[1]} x {part.shape[0]} pixels, and the box between its points "
            f"{x2 - x1 + 1} x {y2 - y1 + 1}."
        )
    pasted = np.zeros(size, dtype=bool)
    pasted[y1 : y2 + 1, x1 : x2 + 1] = part
    return pasted


# ---- writing --------------------------------------------------------------------------------------------------------


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
            "flags": {f"{REJECTED_FLAG}{label}": True for label in rejected_labels(image, written)},
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
        outlines = trace_outlines(found.pixels(), options.tolerance)
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
