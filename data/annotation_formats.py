"""The formats of annotations by name: what each is, what writes it, what reads it, and what it can hold.

Commands, their help and their checks are made from this table. Everything is named by `module:name` and imported when
it is used.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading import import_object


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
class AnnotationFormat:
    """
    One format.

    Args:
        name (`str`): What `--format` calls it.
        summary (`str`): What it is, in one line for help and documentation.
        writer (`str`, *optional*): `module:name` of a function of `Iterable[LabelledImage]`, an empty folder (`Path`)
            to fill, and [`WritingOptions`]; it returns [`Written`].
        reader (`str`, *optional*): `module:name` of a function of a path, which yields [`LabelledImage`].
        masks (`tuple[str, ...]`): Values of [`WritingOptions.masks`] that it takes, the default first.
        keeps (`tuple[str, ...]`): What comes back when it is read again: of `"pixels"` (each mask bit by bit),
            `"holes"`, `"parts"` (several areas of one object), `"overlaps"`, `"scores"`, `"rejected"`, `"text"`
            (questions and answers).
        needs (`tuple[str, ...]`): Packages that must be installed besides.
        extra (`str`, *optional*): The extra of this package that holds them.
        other_names (`tuple[str, ...]`): What else `--format` calls it.
    """

    name: str
    summary: str
    writer: str | None = None
    reader: str | None = None
    masks: tuple[str, ...] = ("exact",)
    keeps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str | None = None
    other_names: tuple[str, ...] = ()

    def write(self, images: "Iterable[LabelledImage]", folder: Path, options: WritingOptions) -> Written:
        """Fill an empty folder."""
        return self._imported(self.writer, "writes")(images, folder, options)

    def read(self, source: Path, **options: Any) -> "Iterator[LabelledImage]":
        """Yield the images of a file or a folder."""
        return self._imported(self.reader, "reads")(source, **options)

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

    def _imported(self, reference: str | None, does: str) -> Callable:
        if reference is None:
            raise ValueError(f"Nothing {does} the format {self.name!r}.")
        return import_object(reference)


_EXACT = ("pixels", "holes", "parts", "overlaps")

FORMATS: dict[str, AnnotationFormat] = {
    entry.name: entry
    for entry in (
        AnnotationFormat(
            name="coco",
            summary="COCO instances, with scores in a results file",
            writer="reasonseg.data.format_coco:write_coco",
            reader="reasonseg.data.format_coco:read_coco",
            masks=("exact", "polygons"),
            keeps=(*_EXACT, "scores", "rejected"),
        ),
        AnnotationFormat(
            name="labelme",
            summary="LabelMe, one JSON file per image",
            writer="reasonseg.data.format_labelme:write_labelme",
            reader="reasonseg.data.format_labelme:read_labelme",
            masks=("exact", "polygons"),
            keeps=(*_EXACT, "scores", "rejected"),
        ),
        AnnotationFormat(
            name="yolo",
            summary="YOLO segmentation, one text file of polygons per image",
            writer="reasonseg.data.format_yolo:write_yolo",
            reader="reasonseg.data.format_yolo:read_yolo",
            masks=("polygons",),
            keeps=("overlaps",),
        ),
        AnnotationFormat(
            name="voc",
            summary="Pascal VOC: indexed PNGs of classes and of objects",
            writer="reasonseg.data.format_voc:write_voc",
            reader="reasonseg.data.format_voc:read_voc",
            keeps=("holes", "parts"),
            other_names=("png",),
        ),
        AnnotationFormat(
            name="datasets",
            summary="parquet files of the library datasets, images inside",
            writer="reasonseg.data.format_datasets:write_datasets",
            reader="reasonseg.data.format_datasets:read_datasets",
            keeps=(*_EXACT, "scores", "rejected", "text"),
            needs=("datasets",),
            extra="data",
        ),
        AnnotationFormat(
            name="reasonseg",
            summary="the folder with metadata.jsonl that `train` and `evaluate` take",
            writer="reasonseg.data.format_reasonseg:write_reasonseg",
            reader="reasonseg.data.format_reasonseg:read_reasonseg",
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


__all__ = ["FORMATS", "AnnotationFormat", "WritingOptions", "Written", "find_format"]
