"""YOLO's segmentation labels, read and written.

    data.yaml                 names of the classes and folders of the splits
    images/train/NAME.jpg     the images
    labels/train/NAME.txt     one line per object: class, then x and y of its outline, as shares of width and height

Label Studio writes `classes.txt`, a name in each line, in place of `data.yaml`.

A line is one outline. Several parts and holes are joined to it by bridges without an area: a part ends where it
begins, and between two parts the outline goes and comes back the same way.
"""

import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from .annotation_formats import ReadingOptions, WritingOptions, Written
from .annotation_reading import IMAGE_SUFFIXES, SIDE_FILES, ImageMasks, read_each, read_head
from .annotation_writing import DEFAULT_SPLIT, Categories, new_file, place_image
from .data_files import DataFileError, file_in, read_text
from .labelled_images import LabelledImage, LabelledObject
from .mask_outlines import trace_outlines


# How far outside 0..1 a corner may lie: tools overshoot a little, and it is cut off.
OVERSHOOT = 0.05
_SPLITS = ("train", "val", "test", "minival")
_SPLIT_NAMES = {"validation": "val", **{split: split for split in _SPLITS}}
# What YAML writes where there is nothing.
_NOTHING = ("null", "Null", "NULL", "~")
_CLASSES = "classes.txt"


def is_yolo(path: Path) -> bool:
    """Whether a path is YOLO's YAML file, or a folder with one or, as Label Studio writes it, a list of classes."""
    try:
        return "names" in _read_yaml(_yaml_file(path))
    except ValueError:
        return False


def read_yolo(source: str | Path, options: ReadingOptions) -> Iterator[LabelledImage]:
    """
    Read YOLO's labels of one split. Outlines are filled by the even-odd rule; an image without a file has no objects.

    Args:
        source (`str` or `Path`): The data set's YAML file, or its folder.
        options ([`ReadingOptions`]): As chosen; ultralytics shows images upright, so that outlines lie there unless
            `mask_frame` says that they were drawn on stored pixels.

    Raises:
        DataFileError: The YAML file, an image or a line cannot be used.
    """
    file = _yaml_file(Path(source))
    content = _read_yaml(file)
    names = _class_names(content.get("names"), file)
    if "kpt_shape" in content:
        raise DataFileError(f"{file} describes keypoints (kpt_shape), which are no masks; give segments.")
    folders = _split_folders(content, options.split, file)
    split, images = _images_of(folders, options.split, file)
    root = folders[split][0] if len(folders[split]) == 1 and folders[split][0].is_dir() else file.parent

    def read(image: Path) -> LabelledImage:
        labels = _label_file(image, file.parent)
        head = read_head(image, options.max_image_pixels)
        masks = ImageMasks(head, None, options, str(labels), tool_frame="upright")
        return LabelledImage(
            file_name=image.relative_to(root).as_posix(),
            size=head.upright,
            source=image,
            objects=tuple(_read_lines(labels, names, masks)),
            split=split,
        )

    if not any(_label_file(image, file.parent).is_file() for image in images):
        raise DataFileError(
            f"{file}: no image of {split!r} has a file of labels, such as {_label_file(images[0], file.parent)}."
        )
    if unused := _labels_without_image(folders[split], images, file.parent):
        options.left_out["files of labels without an image"] += len(unused)
    return read_each(images, read, file)


# ---- the YAML file --------------------------------------------------------------------------------------------------


def _yaml_file(path: Path) -> Path:
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path
    found = sorted(file for file in (*path.glob("*.yaml"), *path.glob("*.yml")) if file.is_file())
    if not found and (path / _CLASSES).is_file() and (path / "images").is_dir():
        return path / _CLASSES
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "none"
        raise DataFileError(f"{path} must hold one YAML file (data.yaml), and holds {listed}; name the file itself.")
    return found[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    if path.name == _CLASSES:
        return {"names": text.splitlines(), "train": "images"}
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)  # all as it is written: else `no` would be called False
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataFileError(f"{path} is no YAML file: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise DataFileError(f"{path} is {reprlib.repr(content)}; it must have `names` and folders of images.")
    # CVAT begins names of splits with a capital letter, and ultralytics takes the long one, too
    splits = {name.lower(): name for name in content}
    renamed = {splits[name]: split for name, split in _SPLIT_NAMES.items() if name in splits and split not in content}
    return {renamed.get(name, name): value for name, value in content.items()}


def _class_names(names: Any, path: Path) -> dict[int, str]:
    """Names by their numbers, of a list or of a dict."""
    listed = dict(enumerate(names)) if isinstance(names, list) else names
    if isinstance(listed, dict):  # in quotes they are numbers, too
        listed = {int(number) if str(number).isdecimal() else number: name for number, name in listed.items()}
    if not isinstance(listed, dict) or not all(isinstance(number, int) for number in listed):
        raise DataFileError(f"{path}: its `names` are {reprlib.repr(names)}; give a list, or names by their numbers.")
    return {number: str(name) for number, name in listed.items()}


def _split_folders(content: dict[str, Any], wanted: str | None, path: Path) -> dict[str, list[Path]]:
    """What each split consists of: folders of images, or lists of them. Others than the wanted one may be missing, as
    many YAML files name more than was fetched."""
    folders, missing = {}, {}
    for split in _SPLITS:
        named = content.get(split)
        if named and named not in _NOTHING:
            each = named if isinstance(named, list) else [named]
            try:
                folders[split] = [_found(name, content.get("path"), path) for name in each]
            except DataFileError as error:
                missing[split] = error
    if missing and wanted not in folders:
        error = missing.get(wanted, next(iter(missing.values())))
        there = "".join(f" The split {split!r} is there: split={split!r}." for split in folders)
        raise DataFileError(f"{error}{there}")
    if not folders:
        raise DataFileError(f"{path} names no folder of images; give it as `train`, `val` or `test`.")
    return folders


def _found(name: Any, base: Any, path: Path) -> Path:
    """
    A folder that the YAML file names, always below the file's own: from `path` on, from there on, or, as Roboflow
    writes it, with a `../` that is not meant.
    """
    if not isinstance(name, str) or not name:
        raise DataFileError(f"{path} names {reprlib.repr(name)} as images; give a folder.")
    name = name.replace("\\", "/")
    beginnings = [f"{base}/"] if isinstance(base, str) else []
    for given in (*(f"{beginning}{name}" for beginning in beginnings), name, name.removeprefix("../")):
        try:
            found = _below(path.parent, given)
        except ValueError:
            continue
        if found.exists():
            return found
    raise DataFileError(
        f"{path} names the images {name!r}, which are not below {path.parent}. Put the YAML file into the folder of "
        "the data set, and name folders relative to it."
    )


def _below(folder: Path, name: str) -> Path:
    """A file below a folder, named relative to it, or from the root of this machine on.

    Raises:
        ValueError: It is none.
    """
    begins = f"{folder.resolve()}/"
    return file_in(folder, name.removeprefix(begins) or ".")


def _images_of(folders: dict[str, list[Path]], split: str | None, path: Path) -> tuple[str, list[Path]]:
    """The split that is wanted, or the only one, and its images."""
    different = {tuple(found): name for name, found in reversed(folders.items())}
    if split is None and len(different) > 1:
        raise DataFileError(f"{path} has the splits {', '.join(folders)}; say which one with split='NAME'.")
    split = next(iter(folders)) if split is None else split
    if split not in folders:
        raise DataFileError(f"{path} has no split {split!r}; it has {', '.join(folders)}.")
    # ultralytics wants `train` and `val`, also where there is one: the name of the folder tells which
    same = [name for name, found in folders.items() if found == folders[split]]
    parts = [found.relative_to(path.parent).parts for found in folders[split]]
    split = next((name for name in same if all(name in each for each in parts)), split)
    images: list[Path] = []
    for found in folders[split]:
        images += _listed_images(found, path.parent) if found.is_file() else _images_below(found)
    if not images:
        raise DataFileError(f"{path}: the split {split!r} has no images.")
    return split, images


def _images_below(folder: Path) -> list[Path]:
    found = (file for file in folder.rglob("*") if not file.name.startswith(SIDE_FILES))
    return sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def _listed_images(path: Path, root: Path) -> list[Path]:
    """A text file with an image per line."""
    images = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name = line.strip().replace("\\", "/")
        try:
            # CVAT and Datumaro begin names with a folder that is not there
            found = [_below(root, given) for given in (name, name.removeprefix("data/"))]
        except ValueError as error:
            raise DataFileError(f"{path}, line {number}: {error}") from None
        images.append(next((image for image in found if image.is_file()), found[0]))
    return images


# ---- labels ---------------------------------------------------------------------------------------------------------


def _label_file(image: Path, root: Path) -> Path:
    """The last folder `images` of a name becomes `labels`, as ultralytics has it."""
    parts = list(image.relative_to(root).parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _labels_without_image(folders: Sequence[Path], images: Sequence[Path], root: Path) -> set[Path]:
    """Files of labels that belong to none of the images, where a folder of images has one of labels."""
    kept = {folder: _label_file(folder / "image", root).parent for folder in folders if folder.is_dir()}
    found = {file for folder, labels in kept.items() if labels != folder for file in labels.rglob("*.txt")}
    named = {file for file in found if file.name != _CLASSES and not file.name.startswith(SIDE_FILES)}
    return named - {_label_file(image, root) for image in images}


def _read_lines(path: Path, names: dict[int, str], masks: ImageMasks) -> Iterator[LabelledObject]:
    """The objects of a file; none where there is no file."""
    for number, line in enumerate(read_text(path).splitlines() if path.is_file() else [], start=1):
        if not line.strip():
            continue
        what = f"line {number}"
        category, shares = _numbers(line, f"{path}, {what}", names)
        box, outline = None, None
        if len(shares) == 4:
            x, y, width, height = shares
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            outline = shares
        drawn = None if outline is None else partial(_in_pixels, outline)
        found = masks.object(names[category], drawn, what, None if box is None else partial(_in_pixels, box))
        if found is not None:
            yield found


def _in_pixels(shares: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Shares of width and height, one after the other, in pixels of an image of (height, width)."""
    return [share * size[1 - place % 2] for place, share in enumerate(shares)]


def _numbers(line: str, what: str, names: dict[int, str]) -> tuple[int, list[float]]:
    """The class of a line, and its shares of width and height."""
    try:
        category, *shares = map(float, line.split())
    except ValueError:
        raise DataFileError(f"{what} is {reprlib.repr(line)}; it must hold numbers alone.") from None
    if category not in names:
        known = f"{min(names)} to {max(names)}" if names else "of nothing"
        raise DataFileError(f"{what} is of the class {category:g}, and the YAML file names the classes {known}.")
    if len(shares) < 4 or len(shares) % 2:
        raise DataFileError(
            f"{what} has {len(shares)} numbers after the class. It needs 4 for a box, or x and y of each corner of an "
            "outline; a score at the end is for predictions."
        )
    outside = [share for share in shares if not (math.isfinite(share) and -OVERSHOOT <= share <= 1 + OVERSHOOT)]
    if outside:
        raise DataFileError(f"{what} has {outside[0]:g}; x and y are shares of width and height, from 0 to 1.")
    return int(category), shares


# ---- writing --------------------------------------------------------------------------------------------------------


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
            outlines = trace_outlines(found.pixels(), options.tolerance, joined=True)
            if not outlines.rings:
                written.left_out["empty masks, which have no outline"] += 1
                continue
            written.least_iou = min(written.least_iou, outlines.iou)
            shares = (outlines.rings[0] / (width, height)).ravel().tolist()
            lines.append(" ".join([str(category), *(f"{share:.8g}" for share in shares)]) + "\n")
        labels = _label_file(file_in(folder / "images" / split, image.file_name), folder)
        new_file(labels.parent, labels.name).write_text("".join(lines), encoding="utf-8")
        written.images += 1
        written.masks += len(lines)
    folders = {split: f"images/{split}" for split in splits or (DEFAULT_SPLIT,)}
    # ultralytics wants both; who has one split measures on what was learned
    used = next(iter(folders.values()))
    content = {"train": used, "val": used, **folders, "names": categories.names}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return written


__all__ = ["write_yolo"]
