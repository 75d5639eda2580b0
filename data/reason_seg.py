"""ReasonSeg: images with implicit questions, masks drawn by people, and explanations.

    ROOT/reason_seg/ReasonSeg/{train,val,test}/X.jpg + X.json
    ROOT/reason_seg/ReasonSeg/explanatory/train.json

A JSON file holds `text` (a list of questions about the same thing), `is_sentence` (long questions, or short names)
and `shapes` (outlines with labels). Images come in the order of their names within a split; the originals leave it
to the file system.
"""

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..processing.image_loading import MAX_IMAGE_PIXELS, check_pixel_count
from .data_files import DataFileError, read_json
from .mask_targets import files_ending_in, log_left_out, text_field
from .polygon_painting import LARGEST_COORDINATE, paint_polygon


# Values of a map. Ignored regions are doubtful: neither target nor background in an evaluation.
BACKGROUND, FOREGROUND, IGNORED = 0, 1, 255

# What the evaluations of LISA and GSVA let the model have answered.
VALIDATION_ANSWERS = {"lisa": "[SEG].", "gsva": "[SEG]"}

Length = Literal["short", "long"]


@dataclass(frozen=True)
class Shape:
    """
    Args:
        label (`str`): What the annotation tool called it.
        corners (`np.ndarray`): whole numbers `(corners, 2)`, each row `(x, y)`; two corners are a line, one is a dot.
    """

    label: str
    corners: np.ndarray

    @property
    def value(self) -> int:
        """What it paints: 255 if its label says ignore, else 1, whatever it says."""
        return IGNORED if "ignore" in self.label.lower() else FOREGROUND


@dataclass(frozen=True)
class Annotation:
    """
    The JSON file of an image.

    Args:
        texts (`list[str]`): Questions about the same thing, as they are written.
        is_sentence (`bool`): They are sentences, not names of things.
        shapes (`list[Shape]`): Outlines in the order of the file, without flags.
    """

    texts: list[str]
    is_sentence: bool
    shapes: list[Shape]

    @property
    def length(self) -> Length:
        """The group of the query in published results."""
        return "long" if self.is_sentence else "short"

    def paint(self, size: tuple[int, int]) -> np.ndarray:
        """The map of an image of (height, width): uint8 with 0 for background, 1 for targets, 255 for ignored.

        Larger shapes are painted first, so that smaller ones stay visible. The originals sort with an algorithm that
        does not say what happens to equal areas; with the version of numpy that LISA pins, of up to 16 shapes the one
        that is listed first stays on top.
        """
        painted = [paint_polygon(shape.corners, size) for shape in self.shapes]
        areas = [int(mask.sum()) for _, mask in painted]
        rising = sorted(range(len(areas)), key=areas.__getitem__)
        map_ = np.zeros(size, dtype=np.uint8)
        for index in reversed(rising):
            part, mask = painted[index]
            map_[part][mask] = self.shapes[index].value
        return map_


@dataclass(frozen=True)
class ReasoningImage:
    """
    Args:
        path (`Path`): The image file.
        annotation ([`Annotation`]): What its JSON file holds.
        explanation (`str`, *optional*): Why the target is what the questions mean.
    """

    path: Path
    annotation: Annotation
    explanation: str | None


class ReasonSeg:
    """
    ReasonSeg for training.

    Args:
        root (`str` or `Path`): The data root.
        splits (`str`): One split or several, `"train"` or `"train_val"`: joined in this order.
        explained (`bool`): Read the explanations, which must exist then. They belong to the name of a file, so those
            of `train.json` also reach an image of that name in another split.
        folder (`str`): Name of the data set's folder.

    Raises:
        DataFileError: If a folder or a file is missing or has another form.
    """

    name = "reason_seg"

    def __init__(self, root: str | Path, splits: str = "train", explained: bool = True, folder: str = "ReasonSeg"):
        base = Path(root) / "reason_seg" / folder
        self._images = [
            base / split / name
            for split in splits.split("_")
            for name in files_ending_in(base / split, ".jpg", f"{folder}, split {split!r}")
        ]
        entries = _read_explanations(base / "explanatory" / "train.json") if explained else []
        self._explanations = dict(entries)
        names = {path.name for path in self._images}
        explained_images = len(names & self._explanations.keys())
        log_left_out(
            f"{folder}, {splits}: {len(self._images)} images, {explained_images} with an explanation",
            {
                "explanations are replaced by a later one of their image": len(entries) - len(self._explanations),
                "explanations belong to no image of these splits": len(self._explanations.keys() - names),
            },
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ReasoningImage:
        """
        Raises:
            DataFileError: If the JSON file of the image is missing or cannot be used.
        """
        path = self._images[index]
        return ReasoningImage(path, read_annotation(path.with_suffix(".json")), self._explanations.get(path.name))


@dataclass(frozen=True)
class ValidationItem:
    """
    What an evaluation on ReasonSeg asks about an image: its first text alone.

    Args:
        path (`Path`): The image file.
        text (`str`): The query, without spaces around it, in its own case.
        length (`str`): `"short"` or `"long"`, the group it is reported in.
        annotation ([`Annotation`]): What its JSON file holds.
    """

    path: Path
    text: str
    length: Length
    annotation: Annotation

    def target(self, size: tuple[int, int], ignored_is_target: bool = False) -> np.ndarray:
        """
        Args:
            size (`tuple[int, int]`): (height, width) of the upright image.
            ignored_is_target (`bool`): GSVA turns the map into yes and no and so scores ignored regions as targets,
                which must be drawn. Its published numbers are measured that way.

        Returns:
            `np.ndarray`: uint8 `(height, width)`: 0, 1, and 255 where pixels do not count.
        """
        map_ = self.annotation.paint(size)
        return (map_ != BACKGROUND).astype(np.uint8) if ignored_is_target else map_

    def question(self) -> str:
        """The user's message in LISA's and GSVA's evaluations; the space after the line break is theirs."""
        if self.length == "long":
            return f"<image>\n {self.text} Please output segmentation mask."
        return f"<image>\n What is {self.text} in this image? Please output segmentation mask."


class ReasonSegValidation:
    """
    The images of a split in the order of an evaluation.

    Args:
        root (`str` or `Path`): The data root.
        split (`str`): `"val"`, `"test"`, or any other folder of the data set.
        length (`str`, *optional*): `"short"` or `"long"` queries alone.
        folder (`str`): Name of the data set's folder.

    Raises:
        DataFileError: If the folder is missing, or a JSON file cannot be used.
    """

    def __init__(self, root: str | Path, split: str = "val", length: Length | None = None, folder: str = "ReasonSeg"):
        if length not in (None, "short", "long"):
            raise ValueError(f"length is {length!r}; allowed are 'short', 'long' and None for both.")
        images = Path(root) / "reason_seg" / folder / split
        items = [self._item(images / name) for name in files_ending_in(images, ".jpg", f"{folder}, split {split!r}")]
        self._items = [item for item in items if length in (None, item.length)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ValidationItem:
        return self._items[index]

    @staticmethod
    def _item(path: Path) -> ValidationItem:
        annotation = read_annotation(path.with_suffix(".json"))
        return ValidationItem(path, annotation.texts[0].strip(), annotation.length, annotation)


def read_annotation(path: str | Path) -> Annotation:
    """
    Read the JSON file of an image, in UTF-8 or, where that fails, in Windows-1252, as some of the public files are.

    Raises:
        DataFileError: If the file is missing, is no JSON in either encoding, or has another form.
    """
    path = Path(path)
    content = _parse(path)
    texts = content.get("text") if isinstance(content, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataFileError(f"{path} must be an object whose `text` is a list of one text or more.")
    if not isinstance(content.get("is_sentence"), (bool, int)):
        raise DataFileError(f"{path}: its `is_sentence` is {content.get('is_sentence')!r}; it must be true or false.")
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raise DataFileError(f"{path}: its `shapes` must be a list of objects with `label` and `points`.")
    read = [_read_shape(shape, f"{path}, shape {number}") for number, shape in enumerate(shapes, start=1)]
    # marks for the annotators' own use
    return Annotation(texts, bool(content["is_sentence"]), [shape for shape in read if shape.label.lower() != "flag"])


def stored_size(path: str | Path) -> tuple[int, int] | None:
    """The (height, width) that the annotation tool wrote into the JSON file of an image, if it did.

    Raises:
        DataFileError: As [`read_annotation`], or if the image has too many pixels.
    """
    content = _parse(Path(path))
    size = content.get("imageHeight"), content.get("imageWidth")
    if not all(type(side) is int and side > 0 for side in size):
        return None
    try:
        check_pixel_count(*size, f"{path}: its image", MAX_IMAGE_PIXELS)
    except ValueError as error:
        raise DataFileError(str(error)) from None
    return size


def _parse(path: Path) -> Any:
    try:
        stored = path.read_bytes()
    except OSError:
        raise DataFileError(f"The annotation {path} does not exist or cannot be read.") from None
    try:
        return json.loads(stored.decode("utf-8"))
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(stored.decode("cp1252"))
    except (ValueError, RecursionError):
        return read_json(path)  # which says what is wrong with it as UTF-8


def _read_shape(shape: Any, what: str) -> Shape:
    label = text_field(shape, "label", what)
    try:
        points = np.asarray(shape.get("points"), dtype=np.float64)
        usable = points.ndim == 2 and points.shape[1] == 2 and len(points) > 0
        # NaN fails this, too
        usable = usable and bool((np.abs(points) <= LARGEST_COORDINATE).all())
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise DataFileError(
            f"{what} has the points {reprlib.repr(shape.get('points'))}; give one pair [x, y] of numbers or more."
        )
    return Shape(label, np.trunc(points).astype(np.int64))  # cut towards zero, not rounded, as the originals do


def _read_explanations(path: Path) -> list[tuple[str, str]]:
    """Names of images and their explanations; of several the last counts. Their own questions are not used."""
    if not path.is_file():
        raise DataFileError(
            f"The explanations {path} do not exist. Add the file, or switch explanations off (explanatory=-1)."
        )
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataFileError(f"{path} must be a list of objects with `image` and `outputs`.")
    return [
        (
            text_field(entry, "image", f"{path}, entry {number}"),
            text_field(entry, "outputs", f"{path}, entry {number}"),
        )
        for number, entry in enumerate(entries, start=1)
    ]


__all__ = [
    "BACKGROUND",
    "FOREGROUND",
    "IGNORED",
    "VALIDATION_ANSWERS",
    "Annotation",
    "ReasonSeg",
    "ReasonSegValidation",
    "ReasoningImage",
    "Shape",
    "ValidationItem",
    "read_annotation",
    "stored_size",
]
