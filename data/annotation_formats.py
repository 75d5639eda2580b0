"""The formats of annotations by name: what each is, what writes it, what reads it, and what it can hold.

Commands, their help and their checks are made from this table. Everything is named by `module:name` and imported when
it is used.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading import import_object
from .data_files import DataFileError


if TYPE_CHECKING:
    from .labelled_images import LabelledImage


@dataclass(frozen=True)
class WritingOptions:
    """
    What may be chosen when annotations are written.

    Args:
        masks (`str`): `"exact"`, as pixels, or `"polygons"`, where the format has both.
        images (`str`): `"copy"` puts the images into the folder, `"link"` links to them, `"none"` leaves them out.
        tolerance (`float`): How far, in pixels, a polygon may leave the outline of its mask; 0 follows every pixel.
    """

    masks: str = "exact"
    images: str = "copy"
    tolerance: float = 0.0


@dataclass
class Written:
    """
    What a writer has written.

    Args:
        images (`int`): Number of images.
        masks (`int`): Number of masks.
        rejected (`int`): Number of rejected phrases.
        left_out (`Counter`): How much there was of what the format has no place for.
        least_iou (`float`): Of polygons and their masks, over all that were written.
    """

    images: int = 0
    masks: int = 0
    rejected: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    least_iou: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {
            "images": self.images,
            "masks": self.masks,
            "rejected": self.rejected,
            "left_out": dict(self.left_out),
            "least_iou": self.least_iou,
        }

    def sentence(self) -> str:
        """The same in words."""
        counted = [(self.images, "image"), (self.masks, "mask"), (self.rejected, "rejected phrase")]
        shown = [(number, name) for number, name in counted if number or name != "rejected phrase"]
        text = ", ".join(f"{number} {name}{'' if number == 1 else 's'}" for number, name in shown)
        if self.least_iou < 1.0:
            text += f"; polygons have an IoU of {self.least_iou:.3f} or more with their masks"
        if self.left_out:
            text += f"; left out: {', '.join(f'{what} ({number})' for what, number in sorted(self.left_out.items()))}"
        return text


@dataclass(frozen=True)
class ReadingOptions:
    """
    What may be chosen when annotations are read. Each format heeds some of it.

    Args:
        images (`Path`, *optional*): The folder of the images, where it is not found beside the annotations.
        split (`str`, *optional*): Part of the data set; needed where there are several.
        config (`str`, *optional*): Configuration of a data set of `datasets`, where it has several.
        revision (`str`, *optional*): Commit of a data set of the Hub.
        columns (`dict[str, str]`): Names of columns of `datasets`: `image`, `mask`, `label`, `text`, `file_name`.
        mask_frame (`str`, *optional*): `"upright"` or `"stored"`: what masks were drawn on, where an EXIF orientation
            leaves that open.
        inner (`str`): What a polygon inside another of the same object is: `"hole"`, `"fill"`, or, by default, an
            error where that is not known.
        without_mask (`str`): What becomes of an object that has none, such as a box or a line: an error (`"refuse"`),
            left out (`"skip"`), or its filled box, where it has one (`"box"`).
        skip_labels (`tuple[str, ...]`): Labels of objects that are left out.
        max_image_pixels (`int`, *optional*): Largest allowed height x width of an image; 67108864 by default.
        left_out (`Counter`): Takes what is left out, by its name in words.
    """

    images: Path | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    mask_frame: str | None = None
    inner: str = "refuse"
    without_mask: str = "refuse"
    skip_labels: tuple[str, ...] = ()
    max_image_pixels: int | None = None
    left_out: Counter = field(default_factory=Counter)

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                shown = ", ".join(each for each in allowed if each is not None)
                raise ValueError(f"{name} is {value!r}; it must be one of {shown}.")
        for name, (is_allowed, wanted) in _KINDS.items():
            if not is_allowed(value := getattr(self, name)):
                raise ValueError(f"{name} is {value!r}; it must be {wanted}.")
        if unknown := sorted(set(self.columns) - set(COLUMNS)):
            raise ValueError(f"columns has {', '.join(map(repr, unknown))}; there are {', '.join(COLUMNS)}.")


COLUMNS = ("image", "mask", "label", "text", "file_name")
_CHOICES = {
    "mask_frame": (None, "upright", "stored"),
    "inner": ("refuse", "hole", "fill"),
    "without_mask": ("refuse", "skip", "box"),
}


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "images": (lambda value: value is None or isinstance(value, Path), "a folder, as a Path"),
    **dict.fromkeys(("split", "config", "revision"), (lambda value: value is None or _are_texts([value]), "a text")),
    "columns": (
        lambda value: isinstance(value, dict) and _are_texts([*value, *value.values()]),
        "names of columns by what they hold",
    ),
    "skip_labels": (lambda value: isinstance(value, tuple) and _are_texts(value), "a list of labels"),
    "max_image_pixels": (
        lambda value: value is None or (isinstance(value, int) and value > 0),
        "a number of pixels, at least 1",
    ),
}


@dataclass(frozen=True)
class AnnotationFormat:
    """
    One format.

    Args:
        name (`str`): What `--format` calls it.
        summary (`str`): What it is, in one line for help and documentation.
        writer (`str`): `module:name` of a function of `Iterable[LabelledImage]`, an empty folder (`Path`)
            to fill, and [`WritingOptions`]; it returns [`Written`].
        reader (`str`): `module:name` of a function of a path and [`ReadingOptions`], which yields
            [`LabelledImage`].
        recognised_by (`str`): `module:name` of a function that says whether a path looks like it.
        heeds (`tuple[str, ...]`): Which of [`ReadingOptions`] its reader heeds, beside those that all do.
        masks (`tuple[str, ...]`): Values of [`WritingOptions.masks`] that it takes, the default first.
        keeps (`tuple[str, ...]`): What comes back when it is read again: of `"pixels"` (each mask bit by bit),
            `"holes"`, `"parts"` (several areas of one object), `"overlaps"`, `"scores"`, `"rejected"`, `"text"`
            (questions and answers).
        needs (`tuple[str, ...]`): Packages that must be installed besides.
        extra (`str`, *optional*): The extra of this package that holds them.
        other_names (`tuple[str, ...]`): What else `--format` calls it.
        on_the_hub (`bool`): Whether its reader takes names of data sets on the Hub, too.
    """

    name: str
    summary: str
    writer: str
    reader: str
    recognised_by: str
    heeds: tuple[str, ...] = ()
    masks: tuple[str, ...] = ("exact",)
    keeps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str | None = None
    other_names: tuple[str, ...] = ()
    on_the_hub: bool = False

    def write(self, images: "Iterable[LabelledImage]", folder: Path, options: WritingOptions) -> Written:
        """Fill an empty folder."""
        return import_object(self.writer)(images, folder, options)

    def read(self, source: str | Path, options: ReadingOptions | None = None) -> "Iterator[LabelledImage]":
        """
        Yield the images of a file or a folder, or of a data set of the Hub where the format knows such.

        Raises:
            ValueError: An option would not be heeded, or the source cannot be used; with file and item, what was found
                and what is allowed.
        """
        options = options or ReadingOptions()
        default, heeded = ReadingOptions(), {"max_image_pixels", "left_out", *self.heeds}
        changed = {name: value for name, value in vars(options).items() if value != getattr(default, name)}
        if ignored := [f"{name}={value!r}" for name, value in changed.items() if name not in heeded]:
            raise ValueError(f"The format {self.name!r} does not heed {', '.join(ignored)}; leave it out.")
        if not self.on_the_hub and not Path(source).exists():
            raise DataFileError(_NOTHING_THERE.format(str(source)))
        return import_object(self.reader)(source, options)

    def check(self) -> None:
        """
        Raises:
            ImportError: A package that it needs is not installed.
        """
        if missing := [name for name in self.needs if find_spec(name) is None]:
            raise ImportError(
                f"The format {self.name} needs the package {' and '.join(missing)}, of the extra {self.extra}. "
                f"Install it: pip install {' '.join(missing)}"
            )


_NOTHING_THERE = "There is no file and no folder {!r}."
_EXACT = ("pixels", "holes", "parts", "overlaps")

FORMATS: dict[str, AnnotationFormat] = {
    entry.name: entry
    for entry in (
        AnnotationFormat(
            name="coco",
            summary="COCO instances, with scores in a results file",
            writer="reasonseg.data.format_coco:write_coco",
            reader="reasonseg.data.format_coco:read_coco",
            recognised_by="reasonseg.data.format_coco:is_coco",
            heeds=("images", "mask_frame", "inner", "without_mask", "skip_labels"),
            masks=("exact", "polygons"),
            keeps=(*_EXACT, "scores", "rejected"),
        ),
        AnnotationFormat(
            name="labelme",
            summary="LabelMe, one JSON file per image",
            writer="reasonseg.data.format_labelme:write_labelme",
            reader="reasonseg.data.format_labelme:read_labelme",
            recognised_by="reasonseg.data.format_labelme:is_labelme",
            heeds=("images", "mask_frame", "inner", "without_mask", "skip_labels"),
            masks=("exact", "polygons"),
            keeps=(*_EXACT, "scores", "rejected"),
        ),
        AnnotationFormat(
            name="yolo",
            summary="YOLO segmentation, one text file of polygons per image",
            writer="reasonseg.data.format_yolo:write_yolo",
            reader="reasonseg.data.format_yolo:read_yolo",
            recognised_by="reasonseg.data.format_yolo:is_yolo",
            heeds=("split", "mask_frame", "without_mask", "skip_labels"),
            masks=("polygons",),
            keeps=("overlaps",),
        ),
        AnnotationFormat(
            name="voc",
            summary="Pascal VOC: indexed PNGs of classes and of objects",
            writer="reasonseg.data.format_voc:write_voc",
            reader="reasonseg.data.format_voc:read_voc",
            recognised_by="reasonseg.data.format_voc:is_voc",
            heeds=("split", "mask_frame", "without_mask", "skip_labels"),
            keeps=("holes", "parts"),
            other_names=("png",),
        ),
        AnnotationFormat(
            name="datasets",
            summary="parquet files of the library datasets, images inside",
            writer="reasonseg.data.format_datasets:write_datasets",
            reader="reasonseg.data.format_datasets:read_datasets",
            recognised_by="reasonseg.data.format_datasets:is_datasets",
            heeds=(
                *("images", "split", "config", "revision", "columns"),
                *("mask_frame", "inner", "without_mask", "skip_labels"),
            ),
            keeps=(*_EXACT, "scores", "rejected", "text"),
            needs=("datasets",),
            extra="data",
            on_the_hub=True,
        ),
        AnnotationFormat(
            name="reasonseg",
            summary="the folder with metadata.jsonl that `train` and `evaluate` take",
            writer="reasonseg.data.format_reasonseg:write_reasonseg",
            reader="reasonseg.data.format_reasonseg:read_reasonseg",
            recognised_by="reasonseg.data.format_reasonseg:is_reasonseg",
            keeps=(*_EXACT, "rejected", "text"),
        ),
    )
}


def find_format(name: str) -> AnnotationFormat:
    """
    Raises:
        ValueError: There is no format of this name.
    """
    for entry in FORMATS.values():
        if name in (entry.name, *entry.other_names):
            return entry
    raise ValueError(f"There is no format {name!r}; choose one of {', '.join(FORMATS)}.")


def may_be_on_the_hub(name: str) -> bool:
    """Whether a text has the form `ORG/NAME[@REVISION]` of a data set on the Hub."""
    return re.fullmatch(r"(hf://datasets/)?[\w-][\w.-]*/[\w-][\w.-]*(@.+)?", name) is not None


def guess_format(source: str | Path) -> AnnotationFormat:
    """
    The format that a file or a folder looks like.

    Raises:
        DataFileError: It looks like none, or like several.
    """
    path = Path(source)
    if not path.exists():
        hint = " A data set on the Hub is read with format='datasets'." if may_be_on_the_hub(str(source)) else ""
        raise DataFileError(_NOTHING_THERE.format(str(source)) + hint)
    found = [entry for entry in FORMATS.values() if import_object(entry.recognised_by)(path)]
    if len(found) != 1:
        looks = " and ".join(entry.name for entry in found) or "none of the formats that are read"
        raise DataFileError(f"{path} looks like {looks}; say format=NAME, one of {', '.join(FORMATS)}.")
    return found[0]


__all__ = [
    "COLUMNS",
    "FORMATS",
    "AnnotationFormat",
    "ReadingOptions",
    "WritingOptions",
    "Written",
    "find_format",
    "guess_format",
    "may_be_on_the_hub",
]
