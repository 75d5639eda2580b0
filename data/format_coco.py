"""COCO's instances, read and written.

    annotations/instances.json   images, annotations and categories, each with ids from 1
    annotations/results.json     one score per annotation, in COCO's results format
    images/                      the images

Categories are the labels in order of appearance. `neg_category_ids` of an image, a field of LVIS, names those that
nothing in it fits: the rejected phrases.
"""

import json
import reprlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from .annotated_images import AnnotatedImage, by_image, read_annotations, read_images
from .annotation_formats import ReadingOptions, WritingOptions, Written
from .annotation_reading import ImageMasks, read_each, read_head, score_of
from .annotation_writing import Categories, place_image, rejected_labels
from .coco import AnnotationPlaces, check_categories
from .data_files import DataFileError, file_in, local_name
from .labelled_images import LabelledImage, LabelledObject
from .mask_outlines import trace_outlines


INSTANCES = "annotations/instances.json"
RESULTS = "annotations/results.json"
IMAGES = "images"
# A folder with more JSON files holds one for each image, which is another format; they are not all read for that.
_MOST_FILES = 50
_CHOOSE_FOLDER = "The images' folder is chosen with images='FOLDER'."


def is_coco(path: Path) -> bool:
    """Whether a path is a file in COCO's format, or a folder that holds one."""
    return bool(_annotation_files(path))


def read_coco(source: str | Path, options: ReadingOptions) -> Iterator[LabelledImage]:
    """
    Read COCO's instances.

    Args:
        source (`str` or `Path`): The file, or a folder with one such file, in itself or in its folder `annotations`.
        options ([`ReadingOptions`]): As chosen; of two outlines that lie in each other the one that runs the other way
            round is a hole.

    Raises:
        DataFileError: A file, an image or an annotation cannot be used.
    """
    path = _one_file(Path(source))
    content = read_annotations(path, ("images", "annotations", "categories"))
    images = read_images([*map(_with_name, content["images"])], str(path), unique=("id", "file_name"))
    if not images:
        raise DataFileError(f"{path} lists no image.")
    categories = check_categories(content["categories"], str(path))
    annotations = by_image(_named_annotations(content["annotations"], images, categories, str(path), options))
    absent = {entry["id"]: entry.get("neg_category_ids") or [] for entry in content["images"]}
    folder = options.images or _image_folder(path, images)

    def read(image: AnnotatedImage) -> LabelledImage:
        what = f"{path}, image {image.id!r}"
        name, file = _find_image(folder, image.file_name, what, is_chosen=options.images is not None)
        masks = ImageMasks(read_head(file, options.max_image_pixels), image.size, options, what)
        objects = [_read_object(masks, annotation, categories) for annotation in annotations.get(image.id, ())]
        objects += map(masks.rejected, _rejected(absent[image.id], categories, what))
        return LabelledImage(
            # some tools write the separators of Windows
            file_name=name.replace("\\", "/"),
            size=masks.head.upright,
            source=file,
            objects=tuple(found for found in objects if found is not None),
            image_id=image.id,
        )

    return read_each(images, read, path)


def _named_annotations(
    annotations: list[Any],
    images: list[AnnotatedImage],
    categories: dict[Any, str],
    source: str,
    options: ReadingOptions,
) -> list[dict[str, Any]]:
    """The annotations of images that are listed, checked, each with its name for messages."""
    places, named = AnnotationPlaces([image.id for image in images], source, categories), []
    for number, annotation in enumerate(annotations, start=1):
        what = places.find(number, annotation)
        if what is None:
            options.left_out["annotations of images that the file does not list"] += 1
            continue
        places.check_category(what, annotation)
        named.append({**annotation, "what": f"annotation {annotation.get('id', f'number {number}')!r}"})
    return named


def _read_object(masks: ImageMasks, annotation: dict[str, Any], categories: dict[Any, str]) -> LabelledObject | None:
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise DataFileError(f"{masks.what}, {annotation['what']}: its `iscrowd` is {crowd!r}; it must be 0 or 1.")
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    if not isinstance(segmentation, (dict, list, type(None))):
        raise DataFileError(
            f"{masks.what}, {annotation['what']}: its `segmentation` is {reprlib.repr(segmentation)}; it must be a "
            "list of polygons or have `size` and `counts`."
        )
    if isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box):
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    return masks.object(
        categories[annotation["category_id"]],
        segmentation,
        annotation["what"],
        box_xyxy=box or None,
        score=score_of(annotation.get("score"), masks.options),
        is_crowd=bool(crowd),
    )


def _rejected(absent: Any, categories: dict[Any, str], what: str) -> list[str]:
    """The names of the categories of LVIS's `neg_category_ids`."""
    if not isinstance(absent, list) or not all(isinstance(each, int) and each in categories for each in absent):
        raise DataFileError(f"{what}: its `neg_category_ids` are {reprlib.repr(absent)}; give ids of categories.")
    return [categories[category] for category in absent]


# ---- files ----------------------------------------------------------------------------------------------------------


def _one_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = _annotation_files(path)
    if len(found) != 1:
        listed = ", ".join(file.name for file in found[:5]) or "none"
        raise DataFileError(f"{path} must hold one file in COCO's format, and holds {listed}; name the file itself.")
    return found[0]


def _annotation_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".json" and _looks_like_coco(path) else []
    found = [*sorted(path.glob("*.json")), *sorted((path / "annotations").glob("*.json"))]
    files = [file for file in found if file.is_file()]
    return [file for file in files if _looks_like_coco(file)] if len(files) <= _MOST_FILES else []


def _looks_like_coco(path: Path) -> bool:
    """By words, as large files need long to be read whole."""
    with path.open("rb") as file:
        content = file.read()
    return all(f'"{name}"'.encode() in content for name in ("images", "annotations", "categories"))


def _image_folder(path: Path, images: list[AnnotatedImage]) -> Path:
    """Where the first image lies: beside the file, in a folder `images`, or beside or above the folder of the file."""
    near = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
    try:
        found = [folder for folder in near if _image_path(folder, images[0].file_name).is_file()]
    except ValueError as error:
        raise DataFileError(f"{path}, image {images[0].id!r}: {error} {_CHOOSE_FOLDER}") from None
    if found:
        return found[0]
    raise DataFileError(
        f"{path}: the image {images[0].file_name!r} lies neither beside the file nor in a folder `images` there. Say "
        "images='FOLDER'."
    )


def _image_path(folder: Path, name: str) -> Path:
    path = file_in(folder, name)
    return path if path.is_file() else file_in(folder, name.replace("\\", "/"))


def _find_image(folder: Path, name: str, what: str, is_chosen: bool) -> tuple[str, Path]:
    """The name below the folder, and the file; in one that was chosen also by the last part of its name."""
    names = [local_name(name), PureWindowsPath(name).name] if is_chosen else [name]
    try:
        paths = {each: _image_path(folder, each) for each in names}
    except ValueError as error:
        raise DataFileError(f"{what}: {error} {_CHOOSE_FOLDER}") from None
    for each, path in paths.items():
        if path.is_file():
            return each, path
    raise DataFileError(f"{what}: {paths[names[0]]} does not exist. {_CHOOSE_FOLDER}")


def _with_name(entry: Any) -> Any:
    """LVIS, which has no names of files, gives the address of an image of COCO: its folder and its name."""
    if not isinstance(entry, dict) or entry.get("file_name") or not isinstance(url := entry.get("coco_url"), str):
        return entry
    return {**entry, "file_name": "/".join(url.split("/")[-2:])}


# ---- writing --------------------------------------------------------------------------------------------------------


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
            absent = sorted(map(categories.number, rejected_labels(image, written)))
            file.write(",\n" if image_id > 1 else "\n")
            json.dump(_image_row(image_id, image, absent), file, ensure_ascii=False)
            written.images += 1
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


def _image_row(image_id: int, image: LabelledImage, absent: list[int]) -> dict[str, Any]:
    height, width = image.size
    row: dict[str, Any] = {"id": image_id, "file_name": image.file_name, "height": height, "width": width}
    row["neg_category_ids"] = absent
    if image.requests:
        row["requests"] = [{"question": asked.question, "answer": asked.answer} for asked in image.requests]
    row |= {name: value for name in ("model", "revision") if (value := getattr(image, name)) is not None}
    return row


def _shape(found: LabelledObject, options: WritingOptions, written: Written) -> dict[str, Any]:
    segmentation: Any = found.mask
    if options.masks == "polygons":
        outlines = trace_outlines(found.pixels(), options.tolerance)
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
