"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, gRefCOCO and Ref-ZOM, in the folders that LISA and GSVA read.

    refer_seg/refcoco/refs(unc).p               what is said: references with their sentences, targets and split
    refer_seg/refcoco/instances.json            the images and the outlines of the targets, as in COCO
    refer_seg/images/mscoco/images/train2014/   the images (RefCLEF: refer_seg/images/saiapr_tc-12/)

A data set is a sequence of images, each with every expression that a split has for it, in the order of the originals.
Masks are painted when they are asked for, by the rules of the original that is followed; where those rules are not
what the papers say, [`Quirks`] names them and switches them off.
"""

import contextlib
import json
import logging
import reprlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..processing.image_loading import MAX_IMAGE_PIXELS, check_pixel_count
from ..processing.regions import check_mask_size, read_run_lengths
from .data_files import DataFileError, file_in, read_json, without_garbage_collection
from .mask_targets import check_size, load_image, read_outline
from .plain_pickle import read_plain_pickle


logger = logging.getLogger(__name__)

ORIGINALS = ("lisa", "gsva")
PURPOSES = ("training", "validation")

_MOST_PARTS = 4096
_FEWEST_NUMBERS = 6  # three corners
_NO_TARGET = -1


@dataclass(frozen=True)
class ReferringSet:
    """Where a data set lies.

    Args:
        references (`str`): The file of references, below `refer_seg`; `{split_by}` says who split them.
        split_by (`str`): Whose splits the originals train on.
        images (`str`): The folder of images, below `refer_seg`.
        lists_targets (`bool`): Whether a reference has any number of targets.
        originals (`tuple[str, ...]`): Who reads it.
    """

    references: str
    split_by: str = "unc"
    images: str = "images/mscoco/images/train2014"
    lists_targets: bool = False
    originals: tuple[str, ...] = ORIGINALS


REFERRING_SETS = {
    "refclef": ReferringSet("refclef/refs({split_by}).p", images="images/saiapr_tc-12"),
    "refcoco": ReferringSet("refcoco/refs({split_by}).p"),
    "refcoco+": ReferringSet("refcoco+/refs({split_by}).p"),
    "refcocog": ReferringSet("refcocog/refs({split_by}).p", split_by="umd"),
    "grefcoco": ReferringSet("grefcoco/grefs({split_by}).p", lists_targets=True),
    "refzom": ReferringSet("refzom/Ref_ZOM.p", split_by="final", lists_targets=True, originals=("gsva",)),
}


@dataclass(frozen=True)
class Quirks:
    """What the originals do and their papers do not say. Without any, masks are what the data set means.

    Args:
        counts_parts (`bool`): A pixel has the number of parts of its target that cover it, not 1: LISA adds the parts
            up. In training it is a target of 2.0; in validation neither foreground nor background.
        refuses_crowds (`bool`): A target given as run lengths (a crowd) cannot be read: LISA, and GSVA where a
            reference has one target, look for its first polygon.
        refuses_text_crowds (`bool`): Nor can one whose run lengths are compressed: GSVA's validation takes the
            mask of the target before it, or stops.
        draws_degenerate (`bool`): Outlines of fewer than three corners or of half a corner are drawn as far as they
            go, and one of two corners in front makes pycocotools take all for boxes and fail: all but GSVA's
            validation of gRefCOCO and Ref-ZOM, which drops them.
        needs_an_outline (`bool`): There a reference all of whose targets have only such outlines stops the
            evaluation; one among several is left out.
        keeps_wordless (`bool`): Sentences of spaces and full stops alone are asked. GSVA's training stops at a
            sentence of spaces.
        omits_space (`bool`): GSVA's validation has no space between the names and `in this image?`.
    """

    counts_parts: bool = False
    refuses_crowds: bool = False
    refuses_text_crowds: bool = False
    draws_degenerate: bool = False
    needs_an_outline: bool = False
    keeps_wordless: bool = False
    omits_space: bool = False


def quirks_of(original: str, purpose: str, lists_targets: bool) -> Quirks:
    """What the original does to a data set whose references have one or (`lists_targets`) any number of targets."""
    lisa, validation = original == "lisa", purpose == "validation"
    drops = not lisa and validation and lists_targets
    return Quirks(
        counts_parts=lisa,
        refuses_crowds=lisa or not lists_targets,
        refuses_text_crowds=not lisa and lists_targets,
        draws_degenerate=not drops,
        needs_an_outline=drops,
        keeps_wordless=True,
        omits_space=not lisa and validation,
    )


class Annotation(NamedTuple):
    """An annotation of `instances.json`: its id and its `segmentation` as the file has it."""

    ann_id: int
    segmentation: Any


@dataclass
class ReferredMask:
    """The mask of a reference, painted when it is first asked for.

    Args:
        annotations (`list[Annotation]`): What is referred to; none for an absent object.
        size (`tuple[int, int]`): (height, width) of the image.
        quirks (`Quirks`): How it is painted.
        what (`str`): The file and the reference, as messages name it.
    """

    annotations: list[Annotation]
    size: tuple[int, int]
    quirks: Quirks
    what: str
    _painted: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        """
        Returns:
            `np.ndarray`: `(height, width)` uint8: 0 and 1, with `counts_parts` also more. Not to be written to.

        Raises:
            DataFileError: If it cannot be painted, or the original that is followed cannot; with file and annotation.
        """
        if self._painted is None:
            self._painted = paint(self.annotations, self.size, self.quirks, self.what)
        return self._painted


@dataclass
class Expression:
    """One sentence about an image.

    Args:
        text (`str`): As in the file.
        ref_id (`int`): Its reference. The sentences of a reference share a mask.
        ann_ids (`int` or `list[int]`): What it refers to, as the file has it; `[-1]` or `[]` for nothing.
        mask (`ReferredMask`): Called, it gives the mask.
    """

    text: str
    ref_id: int
    ann_ids: int | list[int]
    mask: ReferredMask = field(repr=False)

    @property
    def wordings(self) -> tuple[str, ...]:
        """How it can be called: as the sentence says."""
        return (self.text,)


@dataclass
class ReferringItem:
    """An image with every expression that a split has for it.

    Args:
        path (`Path`): The image file.
        image_id (`int`): Its id in `instances.json`.
        size (`tuple[int, int]`): (height, width) in pixels; those of the masks.
        targets (`list[Expression]`): In the order of the file of references.
        source, split (`str`): Names of the data set and of the split.
        original, purpose (`str`): Whose reader is followed, and which.
        quirks (`Quirks`): How masks are painted and texts are worded.
        annotations_file (`Path`): The file that the masks come from.
    """

    path: Path
    image_id: int
    size: tuple[int, int]
    targets: list[Expression]
    source: str
    split: str
    original: str
    purpose: str
    quirks: Quirks
    annotations_file: Path

    @property
    def sentences(self) -> list[str]:
        return [expression.text for expression in self.targets]

    def masks(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """The masks of some expressions, or of all: `(expressions, height, width)` uint8; see `ReferredMask`."""
        chosen = range(len(self.targets)) if indices is None else indices
        masks = [self.targets[index].mask() for index in chosen]
        return np.stack(masks) if masks else np.zeros((0, *self.size), np.uint8)

    def load_image(self) -> Image.Image:
        """The image, upright and in RGB.

        Raises:
            DataFileError: If it is missing, cannot be decoded, or has another size than its masks.
        """
        image = load_image(self.path, f"{self.source}, image {self.image_id}")
        check_size(self.size, image, f"{self.annotations_file}: image {self.image_id}", self.path)
        return image


class _Reference(NamedTuple):
    ref_id: int
    image_id: int
    split: str
    ann_ids: int | list[int]
    sentences: list[str]

    @property
    def referred(self) -> list[int]:
        if isinstance(self.ann_ids, int):
            return [self.ann_ids]
        return [] if self.ann_ids == [_NO_TARGET] else self.ann_ids


class ReferringExpressions:
    """
    The images of one split of a data set; `len()` counts images, `num_expressions` sentences.

    Args:
        root (`str` or `Path`): The folder that holds `refer_seg`, or `refer_seg` itself.
        name (`str`): One of `REFERRING_SETS`.
        split (`str`): `train`, `val`, `test`, `testA` ...; `test` has all whose name holds it, `testA` all test splits
            with that letter, as RefCLEF names them. gRefCOCO's are taken by their exact name.
        original (`str`): `lisa` or `gsva`: whose reader is followed.
        purpose (`str`): `training` or `validation`, which differ in GSVA.
        split_by (`str`, *optional*): Who made the splits, as in `refs(google).p`; the originals' choice when left out.
        as_original (`bool`): Paint and word as the original does. False mends all of its [`Quirks`].
        quirks (`Quirks`, *optional*): Used instead of both.

    Raises:
        ValueError: If there is no such data set, original or purpose.
        DataFileError: If a file is missing or damaged, or a reference, image or annotation cannot be used.

    Example:
        >>> data = ReferringExpressions("./dataset", "refcoco+", "testA", original="lisa", purpose="validation")
        >>> item = data[0]
        >>> item.load_image(), item.sentences, item.masks()
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        split: str = "train",
        original: str = "lisa",
        purpose: str = "training",
        split_by: str | None = None,
        as_original: bool = True,
        quirks: Quirks | None = None,
    ):
        _check_choice("a data set of referring expressions", name, REFERRING_SETS)
        _check_choice("an original", original, ORIGINALS)
        _check_choice("a purpose", purpose, PURPOSES)
        kind = REFERRING_SETS[name]
        if as_original and original not in kind.originals:
            raise ValueError(f"{original.upper()} does not read {name}; {' and '.join(kind.originals).upper()} does.")
        self.name, self.split, self.original, self.purpose = name, split, original, purpose
        if quirks is None:
            quirks = quirks_of(original, purpose, kind.lists_targets) if as_original else Quirks()
        self.quirks = quirks
        folder = refer_seg_folder(root)
        self._images = folder / kind.images
        self.references_file = _references_file(folder, kind, split_by or kind.split_by)
        self.annotations_file = self.references_file.parent / "instances.json"
        for path in (self._images, self.annotations_file):
            if not path.exists():
                raise DataFileError(f"{path} does not exist; {name} needs it.")

        with without_garbage_collection():
            references = _read_references(self.references_file)
            chosen = _of_split(references, split, name, self.references_file)
            self._records, segmentations = _read_annotations(self.annotations_file, references, self.references_file)
        self._by_image: dict[int, list[_Reference]] = {}
        for reference in chosen:
            self._by_image.setdefault(reference.image_id, []).append(reference)
        # The originals' order of images, `list(set(ids))`: that of CPython's hash table, not sorted.
        self.image_ids: list[int] = list({reference.image_id for reference in chosen})
        for image_id in self.image_ids:
            if image_id not in self._records:
                ref_id = self._by_image[image_id][0].ref_id
                raise DataFileError(
                    f"{self.references_file}: reference {ref_id} is about image {image_id}, which "
                    f"{self.annotations_file} does not have."
                )
        self._records = {image_id: self._records[image_id] for image_id in self.image_ids}
        self._segmentations = {ann_id: segmentations[ann_id] for reference in chosen for ann_id in reference.referred}
        self._wordless = 0 if self.quirks.keeps_wordless else self._leave_out_wordless()
        self._log()

    @classmethod
    def from_specification(
        cls, root: str | Path, specification: str, original: str = "lisa", as_original: bool = True
    ) -> "ReferringExpressions":
        """The validation set that the originals call `refcoco|unc|val`, `grefcoco|unc|testA`, `refzom|final|test`.

        LISA uses who made the splits as it is written; GSVA takes `umd` for RefCOCOg and `unc` for all others.

        Raises:
            ValueError: If it has not three parts, or the original has no such validation set.
            DataFileError: As above.
        """
        parts = specification.split("|")
        if len(parts) != 3:
            raise ValueError(f"{specification!r} is no validation set; give name|split by|split, as refcoco|unc|val.")
        name, split_by, split = parts
        if original == "lisa" and name == "grefcoco":
            raise ValueError("LISA has no validation on grefcoco; GSVA has.")
        given = split_by if original == "lisa" else None
        return cls(root, name, split, original, "validation", given, as_original)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_expressions(self) -> int:
        return sum(len(reference.sentences) for references in self._by_image.values() for reference in references)

    def __iter__(self) -> Iterator[ReferringItem]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> ReferringItem:
        """An image with all its expressions; nothing is decoded yet.

        Raises:
            IndexError: If there is no such image.
            DataFileError: If its name or its size cannot be used.
        """
        image_id = self.image_ids[index]
        record, what = self._records[image_id], f"{self.annotations_file}, image {image_id}"
        try:
            path, size = file_in(self._images, record.get("file_name")), _size(record, what)
        except ValueError as error:
            raise DataFileError(f"{what}: {error}") from None
        expressions = []
        for reference in self._by_image[image_id]:
            annotations = [Annotation(ann_id, self._segmentations[ann_id]) for ann_id in reference.referred]
            named = f"{self.annotations_file}: reference {reference.ref_id} of image {image_id}"
            mask = ReferredMask(annotations, size, self.quirks, named)
            expressions += [
                Expression(text, reference.ref_id, reference.ann_ids, mask) for text in reference.sentences
            ]
        names = (self.name, self.split, self.original, self.purpose)
        return ReferringItem(path, image_id, size, expressions, *names, self.quirks, self.annotations_file)

    def _leave_out_wordless(self) -> int:
        before = self.num_expressions
        for image_id, references in self._by_image.items():
            worded = [
                reference._replace(sentences=[text for text in reference.sentences if text.strip().strip(".").strip()])
                for reference in references
            ]
            self._by_image[image_id] = [reference for reference in worded if reference.sentences]
        self.image_ids = [image_id for image_id in self.image_ids if self._by_image[image_id]]
        return before - self.num_expressions

    def _log(self) -> None:
        """Say what is left out without a word by the originals, or by what mends them."""
        notes = []
        if self._wordless:
            notes.append(f"{self._wordless} sentences without a word left out")
        if not self.quirks.draws_degenerate:
            left_out = sum(map(_num_degenerate, self._segmentations.values()))
            notes += [f"{left_out} outlines without three whole corners left out"] * bool(left_out)
        if self.original == "gsva" and self.purpose == "training":
            absent = sum(
                not any(self._segmentations[ann_id] for reference in references for ann_id in reference.referred)
                for references in self._by_image.values()
            )
            notes += [f"{absent} images without any target, which training passes over"] * bool(absent)
        logger.log(
            logging.INFO if len(self) else logging.WARNING,
            "%s|%s: %d images, %d expressions%s",
            *(self.name, self.split, len(self), self.num_expressions, "".join(f"; {note}" for note in notes)),
        )


def refer_seg_folder(root: str | Path) -> Path:
    """The folder `refer_seg`: below the data root (GSVA), or what LISA's evaluation is given itself.

    Raises:
        DataFileError: If it is neither.
    """
    root = Path(root)
    for folder in (root / "refer_seg", root):
        if folder.is_dir() and (folder.name == "refer_seg" or (folder / "images").is_dir()):
            return folder
    raise DataFileError(f"{root / 'refer_seg'} does not exist; it holds the data sets of referring expressions.")


def paint(
    annotations: Sequence[Annotation], size: tuple[int, int], quirks: Quirks, what: str = "The reference"
) -> np.ndarray:
    """The mask of a reference: what any of its annotations covers.

    Args:
        annotations (`Sequence[Annotation]`): Each a list of polygons, of run lengths, or run lengths alone; an empty
            list is an empty mask, and so is no annotation.
        size (`tuple[int, int]`): (height, width) of the image.
        quirks (`Quirks`): How it is painted.
        what (`str`, *optional*): The reference, as messages name it.

    Returns:
        `np.ndarray`: `(height, width)` uint8; see `ReferredMask`.

    Raises:
        DataFileError: If an annotation cannot be painted, or could not be by the original that is followed.
    """
    mask, outlined = np.zeros(size, np.uint8, order="F"), 0  # column by column, as run lengths count
    for ann_id, segmentation in annotations:
        where = f"{what}, annotation {ann_id}"
        parts = _parts(segmentation, size, quirks, where)
        outlined += bool(parts) or not segmentation
        covered = np.zeros(size, np.uint8, order="F")
        for part in parts:  # one at a time: all at once can be any number of images
            covered += coco_mask.decode(part)
        mask |= covered
    if annotations and not outlined and quirks.needs_an_outline:
        raise DataFileError(
            f"{what} has only outlines of fewer than three whole corners, at which GSVA's evaluation stops; mend "
            f"annotation {annotations[0].ann_id}, or read it without following the original."
        )
    return np.ascontiguousarray(mask if quirks.counts_parts else (mask != 0).view(np.uint8))


def _parts(segmentation: Any, size: tuple[int, int], quirks: Quirks, what: str) -> list[dict[str, Any]]:
    """The parts of a target, as pycocotools' run lengths."""
    try:
        if isinstance(segmentation, Mapping):
            _check_crowd(segmentation, quirks)
            return [_run_lengths(segmentation, size)]
        if not isinstance(segmentation, list) or len(segmentation) > _MOST_PARTS:
            raise ValueError(f"its segmentation is {reprlib.repr(segmentation)}, not up to {_MOST_PARTS} outlines.")
        if segmentation and isinstance(segmentation[0], Mapping):
            return [_run_lengths(part, size) for part in segmentation]
        return _outlines(segmentation, size, quirks, what)
    except DataFileError:
        raise
    except ValueError as error:
        raise DataFileError(f"{what}: {error}") from None


def _check_crowd(segmentation: Mapping[str, Any], quirks: Quirks) -> None:
    advice = "read it without following the original."
    if quirks.refuses_crowds:
        raise ValueError(f"it is a crowd given as run lengths, which the original cannot read (KeyError: 0); {advice}")
    if quirks.refuses_text_crowds and not isinstance(segmentation.get("counts"), list):
        raise ValueError(f"it is a crowd of compressed run lengths, which the original does not read; {advice}")


def _run_lengths(part: Any, size: tuple[int, int]) -> dict[str, Any]:
    found, counts = read_run_lengths(part, "its segmentation")
    check_mask_size(found, size, "its segmentation")
    return coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)


def _outlines(segmentation: list[Any], size: tuple[int, int], quirks: Quirks, what: str) -> list[dict[str, Any]]:
    corners = [read_outline(part, what) for part in segmentation]
    if not quirks.draws_degenerate:
        corners = [part for part in corners if not _is_degenerate(part)]
    elif corners and len(corners[0]) <= 4:
        raise ValueError(
            f"its first outline {reprlib.repr(segmentation[0])} has fewer than three corners, which pycocotools takes "
            "for a box and the original cannot draw; leave it out, or read it without following the original."
        )
    corners = [part for part in corners if len(part) >= 2]  # nothing else is drawn, and not looked for beside the list
    return coco_mask.frPyObjects(corners, *size) if corners else []


def _is_degenerate(part: Any) -> bool:
    return not isinstance(part, (list, array, np.ndarray)) or len(part) < _FEWEST_NUMBERS or len(part) % 2 == 1


def _num_degenerate(segmentation: Any) -> int:
    if not isinstance(segmentation, list):
        return 0
    return sum(_is_degenerate(part) for part in segmentation if not isinstance(part, Mapping))


def _size(record: Mapping[str, Any], what: str) -> tuple[int, int]:
    height, width = record.get("height"), record.get("width")
    if not isinstance(height, int) or not isinstance(width, int):
        raise ValueError(f"its height and width are {reprlib.repr((height, width))}; give whole numbers of pixels.")
    check_pixel_count(height, width, what, MAX_IMAGE_PIXELS)
    return height, width


def _references_file(folder: Path, kind: ReferringSet, split_by: str) -> Path:
    path = file_in(folder, kind.references.format(split_by=split_by))
    # gRefCOCO was given out in both forms, and the originals prefer the pickle.
    others = [path.with_suffix(".json")] if kind.lists_targets else []
    for file in (path, *others):
        if file.is_file():
            return file
    instead = "".join(f", nor does {file.name}" for file in others)
    raise DataFileError(f"{path} does not exist{instead}; it holds the references.")


def _read_references(path: Path) -> list[_Reference]:
    """Every reference of a file. Where two share an id, both are the last of them, as the originals find it."""
    entries = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(entries, list):
        raise DataFileError(f"{path} holds a {type(entries).__name__}; a list of references is needed.")
    references = [_reference(entry, f"{path}, reference number {number}") for number, entry in enumerate(entries, 1)]
    by_id = {reference.ref_id: reference for reference in references}
    return references if len(by_id) == len(references) else [by_id[reference.ref_id] for reference in references]


def _reference(entry: Any, what: str) -> _Reference:
    try:
        ref_id, image_id, split, ann_ids = entry["ref_id"], entry["image_id"], entry["split"], entry["ann_id"]
        sentences = [sentence["sent"] for sentence in entry["sentences"]]
    except (TypeError, KeyError, IndexError) as error:
        missing = f"has no {error}" if isinstance(error, KeyError) else f"is {reprlib.repr(entry)}"
        raise DataFileError(
            f"{what} {missing}; it needs ref_id, image_id, split, ann_id and sentences with sent."
        ) from None
    if not _is_whole(ref_id) or not _is_whole(image_id) or not isinstance(split, str):
        found = reprlib.repr({"ref_id": ref_id, "image_id": image_id, "split": split})
        raise DataFileError(f"{what} has {found}; both ids must be whole numbers and the split a text.")
    listed = isinstance(ann_ids, list)
    if not all(map(_is_whole, ann_ids)) if listed else not _is_whole(ann_ids):
        raise DataFileError(f"{what} has the ann_id {reprlib.repr(ann_ids)}; it must be whole numbers.")
    if listed and _NO_TARGET in ann_ids and len(ann_ids) > 1:
        raise DataFileError(f"{what} has the ann_id {reprlib.repr(ann_ids)}; -1 says that there is no target.")
    if not all(isinstance(text, str) for text in sentences):
        raise DataFileError(f"{what} has the sentences {reprlib.repr(sentences)}; each must be a text.")
    return _Reference(ref_id, image_id, split, ann_ids, sentences)


def _of_split(references: list[_Reference], split: str, name: str, path: Path) -> list[_Reference]:
    found = sorted({reference.split for reference in references})
    if name == "grefcoco":
        allowed = {*found, "train", "val", "testA", "testB"}
        chosen = {split}
    else:
        allowed = {"train", "val", "test", *(f"test{letters}" for letters in ("A", "B", "C", "AB", "BC", "AC"))}
        if split == "test":
            chosen = {given for given in found if "test" in given}
        elif split in ("testA", "testB", "testC"):
            chosen = {given for given in found if split[-1] in given}
        else:
            chosen = {split}
    if split not in allowed:
        raise DataFileError(
            f"{path} has no split {split!r}; it has {', '.join(found)}, and {name} is read by "
            f"{', '.join(sorted(allowed))}."
        )
    return [reference for reference in references if reference.split in chosen]


def _read_annotations(
    path: Path, references: list[_Reference], references_path: Path
) -> tuple[dict[int, Mapping[str, Any]], dict[int, Any]]:
    """The images of a file by their ids, and the segmentations that are referred to by theirs."""
    content = _read_instances(path)
    images, annotations = (_by_id(content, key, path) for key in ("images", "annotations"))
    segmentations = {}
    for reference in references:
        for ann_id in reference.referred:
            annotation = annotations.get(ann_id)
            if annotation is None or "segmentation" not in annotation:
                lacks = "does not have" if annotation is None else "gives no segmentation"
                raise DataFileError(
                    f"{references_path}: reference {reference.ref_id} of image {reference.image_id} refers to "
                    f"annotation {ann_id}, which {path} {lacks}."
                )
            segmentations[ann_id] = annotation["segmentation"]
    return images, segmentations


def _read_instances(path: Path) -> Any:
    """The file as JSON, its polygons as arrays: of a hundred megabytes of numbers, each would take four times as much
    as an object, and again in every worker process."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_with_packed_polygons)
    except (ValueError, RecursionError):
        return read_json(path)  # which says what is wrong with it, and where


def _with_packed_polygons(entry: dict[str, Any]) -> dict[str, Any]:
    parts = entry.get("segmentation")
    if isinstance(parts, list):
        with contextlib.suppress(TypeError, OverflowError):  # what is no list of numbers stays, and is refused later
            entry["segmentation"] = [array("d", part) if isinstance(part, list) else part for part in parts]
    return entry


def _by_id(content: Any, key: str, path: Path) -> dict[int, Mapping[str, Any]]:
    entries = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise DataFileError(f"{path} has no list {key!r}; it must be in COCO's format.")
    by_id = {}
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or not _is_whole(entry.get("id")):
            raise DataFileError(
                f"{path}, entry {number} of {key!r} is {reprlib.repr(entry)}; it must have a whole number as `id`."
            )
        by_id[entry["id"]] = entry
    return by_id


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _check_choice(what: str, given: str, allowed: Mapping[str, Any] | Sequence[str]) -> None:
    if given not in allowed:
        raise ValueError(f"{given!r} is not {what}; choose one of {', '.join(allowed)}.")


__all__ = [
    "ORIGINALS",
    "REFERRING_SETS",
    "Annotation",
    "Expression",
    "Quirks",
    "ReferredMask",
    "ReferringExpressions",
    "ReferringItem",
    "ReferringSet",
    "paint",
    "quirks_of",
    "refer_seg_folder",
]
