"""What all writers of annotations share: the images beside them, the numbers of labels, and a folder that is whole.

Writers are given one image after the other and keep nothing of those that are written, so that a data set of any size
needs the same memory.
"""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..atomic_files import is_running, write_whole
from ..processing.image_loading import MAX_IMAGE_PIXELS, exif_orientation, load_rgb_image, open_image
from .annotation_formats import AnnotationFormat, WritingOptions, Written
from .data_files import DataFileError, file_in
from .labelled_images import LabelledImage


# In a folder that was written here: what it was made of. Without it nothing is replaced.
EXPORT_NAME = ".reasonseg-export"
# Where an image lies that belongs to no split.
DEFAULT_SPLIT = "train"
# What an object is called to which no phrase belongs.
UNNAMED = "object"
# Formats that can be written as they were read; cameras' MPO holds JPEG.
_SAVED_AS = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP", "TIFF": "TIFF", "BMP": "BMP"}
_SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


class ExistingFolderError(ValueError):
    """The target holds something that was not written here."""


def write_annotations(
    entry: AnnotationFormat,
    images: Iterable[LabelledImage],
    target: Path,
    options: WritingOptions,
    made_of: dict[str, Any] | None = None,
) -> Written:
    """
    Write a whole folder in a format: a temporary sibling that is renamed when it is complete.

    Args:
        entry ([`AnnotationFormat`]): The format.
        images (`Iterable[LabelledImage]`): What to write; taken one at a time.
        target (`Path`): The folder; one that was written here before is replaced.
        options ([`WritingOptions`]): As chosen.
        made_of (`dict`, *optional*): What the folder is made of, as JSON types; kept in its `.reasonseg-export`.

    Raises:
        ExistingFolderError: The target holds something else.
        ValueError: An image cannot be written; nothing is left behind.
    """
    target = target.resolve()  # of a link its folder, and of "." its name
    refuse_other_folders(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    _finish_earlier(target)
    staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        written = entry.write(_counted(images, entry, left_out), staging, options)
        write_whole(staging / EXPORT_NAME, json.dumps(_about(entry, options, made_of), indent=2) + "\n")
        refuse_other_folders(target)
        replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
        if target.exists():
            target.rename(replaced)
        staging.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    written.left_out += left_out
    return written


def _counted(
    images: Iterable[LabelledImage], entry: AnnotationFormat, left_out: Counter[str]
) -> Iterator[LabelledImage]:
    """Pass images on, and count what the format has no place for."""
    for image in images:
        if "scores" not in entry.keeps:
            left_out["scores"] += sum(found.score is not None for found in image.drawn)
        if "rejected" not in entry.keeps:
            left_out["rejected phrases"] += sum(1 for _ in image.rejected)
        yield image


def is_written(entry: AnnotationFormat, target: Path, options: WritingOptions, made_of: dict[str, Any]) -> bool:
    """Whether a folder holds what [`write_annotations`] would write from the same."""
    try:
        found = json.loads((target / EXPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == _about(entry, options, made_of)


def refuse_other_folders(target: Path) -> None:
    """
    Raises:
        ExistingFolderError: The target is a file, or a folder that holds something and was not written here.
    """
    target = target.resolve()
    if not target.exists() or (target / EXPORT_NAME).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise ExistingFolderError(
            f"{str(target)!r} exists and is not a folder that an export has written, so it stays as it is. Name "
            "another folder, or remove it."
        )


def _about(entry: AnnotationFormat, options: WritingOptions, made_of: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": entry.name,
        "masks": options.masks,
        "images": options.images,
        "tolerance": options.tolerance,
        **(made_of or {}),
    }


def _finish_earlier(target: Path) -> None:
    """Remove what killed processes have left beside a target, and put a folder back that one had moved away."""
    prefix = f".{target.name}."
    for folder in list(target.parent.iterdir()):
        owner, _, ending = folder.name.removeprefix(prefix).partition(".")
        if not folder.name.startswith(prefix) or ending not in ("partial", "replaced") or not owner.isdigit():
            continue
        if int(owner) != os.getpid() and is_running(int(owner)):
            continue
        if ending == "replaced" and not target.exists():
            folder.rename(target)
        else:
            shutil.rmtree(folder, ignore_errors=True)


# ---- images ---------------------------------------------------------------------------------------------------------


def upright_content(image: LabelledImage) -> bytes:
    """
    The file of an image whose pixels lie in the frame of the masks.

    That is the file itself, but where an EXIF orientation turns it, as some tools apply that and others do not: such
    an image is written anew, JPEG with quality 95.

    Raises:
        ValueError: The image is not at hand, cannot be read, or has another size than its masks.
    """
    source = image.source
    if source is None:
        raise ValueError(f"The image {image.file_name!r} is not at hand; name the folder that holds it.")
    limit = max(MAX_IMAGE_PIXELS, image.size[0] * image.size[1])  # it was accepted before
    with open_image(source, limit) as opened:
        orientation, kind = exif_orientation(opened), _SAVED_AS.get(str(opened.format), "PNG")
        size = (opened.height, opened.width)
        if (size[::-1] if orientation >= 5 else size) != tuple(image.size):
            raise ValueError(
                f"The image {image.file_name!r} is {opened.width} x {opened.height} pixels, its masks are "
                f"{image.size[1]} x {image.size[0]} (width x height). It is not the one that was segmented."
            )
        if orientation == 1:
            return image.content()
        profile = opened.info.get("icc_profile")
        upright, file = load_rgb_image(opened, limit), io.BytesIO()
        upright.save(file, format=kind, icc_profile=profile, **_SAVE_OPTIONS.get(kind, {}))
        return file.getvalue()


def linked_file(image: LabelledImage, options: WritingOptions) -> Path | None:
    """The file of an image to which a link may lead; `None` where there is to be none, or it would not be upright."""
    if options.images != "link" or not isinstance(image.source, Path):
        return None
    with open_image(image.source, max(MAX_IMAGE_PIXELS, image.size[0] * image.size[1])) as opened:
        return image.source.absolute() if exif_orientation(opened) == 1 else None


def place_image(image: LabelledImage, folder: Path, options: WritingOptions) -> None:
    """Put an image into a folder under its name, as the options say.

    Raises:
        ValueError: See [`upright_content`]; or there is an image of this name already.
    """
    if options.images == "none":
        return
    path = new_file(folder, image.file_name)
    if (linked := linked_file(image, options)) is not None:
        path.symlink_to(linked)
    else:
        path.write_bytes(upright_content(image))


def new_file(folder: Path, name: str) -> Path:
    """The path of a file that is not there yet; the folders on its way are made.

    Raises:
        ValueError: There is one, as where `a.jpg` and `a.png` need an `a.txt` each, or the name leads out.
    """
    path = file_in(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        raise DataFileError(
            f"Two images need a file {name!r} each. Give their files names that differ in more than the ending."
        )
    return path


def encode_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


# ---- labels ---------------------------------------------------------------------------------------------------------


class Categories:
    """The numbers of labels, in the order in which they are asked for.

    Args:
        first (`int`): The number of the first.
    """

    def __init__(self, first: int):
        self.first = first
        self._numbers: dict[str, int] = {}

    def number(self, label: str) -> int:
        """The number of a label, a new one for a new label."""
        return self._numbers.setdefault(label or UNNAMED, self.first + len(self._numbers))

    @property
    def names(self) -> dict[int, str]:
        """The labels by their numbers."""
        return {number: label for label, number in self._numbers.items()}


def rejected_labels(image: LabelledImage, written: Written) -> list[str]:
    """The labels that nothing in an image fits, for formats that name each once; counts them."""
    labels = [found.label or UNNAMED for found in image.rejected]
    distinct = list(dict.fromkeys(labels))
    written.rejected += len(distinct)
    if len(labels) > len(distinct):
        written.left_out["rejected phrases that another one of their image repeats"] += len(labels) - len(distinct)
    return distinct


__all__ = [
    "DEFAULT_SPLIT",
    "EXPORT_NAME",
    "UNNAMED",
    "Categories",
    "ExistingFolderError",
    "encode_png",
    "is_written",
    "linked_file",
    "new_file",
    "place_image",
    "refuse_other_folders",
    "rejected_labels",
    "upright_content",
    "write_annotations",
]
