"""
Reads the JSON files that ViP-LLaVA was trained and tested with: conversations about regions.

The mixes of stage 2 and 3 and the test files of Visual7W, PointQA-LookTwice and VCR are lists of rows; the first part
of a row's `id` names its data set (`refcocog-gpt4v-17`). Rows of other data sets are plain conversations; with boxes
they are custom regions, named `<bbox0>`, `<bbox1>` ... in the text.
"""

import json
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .data_files import DataFileError, file_in, read_json, read_json_lines


@dataclass(frozen=True)
class RowField:
    """
    Args:
        is_valid (`Callable[[Any], bool]`): Whether a row's value can be used.
        wanted (`str`): What it must be, for messages.
    """

    is_valid: Callable[[Any], bool]
    wanted: str


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Lists of what `is_valid` accepts."""
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(side, (int, float)) for side in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("from")) and _is_text(value.get("value"))


_is_mixed_text = _all(lambda part: _is_text(part) or _all(_is_whole)(part))

ANYTHING = RowField(lambda value: True, "anything")
TEXT = RowField(_is_text, "a text")
TEXTS = RowField(_all(_is_text), "a list of texts")
MIXED_TEXT = RowField(_is_mixed_text, "a list of words and of lists of object numbers")
CHOICES = RowField(
    lambda value: _all(_is_mixed_text)(value) and len(value) == 4, "four lists of words and of lists of object numbers"
)
LABEL = RowField(lambda value: _is_whole(value) and 0 <= value < 4, "the number of the right choice, 0 to 3")
BOXES = RowField(_all(_is_box), "a list of [x1, y1, x2, y2] in pixels of the image")
BOX_GROUPS = RowField(
    _all(_all(_is_box)), "a list of the boxes [x1, y1, x2, y2] of each phrase, in the image's pixels"
)
OUTLINES = RowField(lambda value: isinstance(value, (list, type(None))), "a list, one per box")
MESSAGES = RowField(_all(_is_message), "a list of objects with `from` (human or gpt) and `value`, the text")

# What a row of each data set must hold; docs/Finetune_Custom_Data.md and visual_prompt_organizer.py, `vip_processor`.
REQUIRED_FIELDS = {
    "refcocog": {"bboxes": BOXES, "segmentations": OUTLINES},
    "vg_rel": {"bboxes": BOXES},
    "vcr": {
        **{"meta_dir": TEXT, "class_names": TEXTS, "question": MIXED_TEXT, "answer_choices": CHOICES},
        **{"answer_label": LABEL, "rationale_choices": CHOICES, "rationale_label": LABEL},
    },
    "flickr30k": {"bbox": BOX_GROUPS, "grounding": TEXT},
    "v7w": {"bboxes": BOXES, "question": TEXT, "answer": ANYTHING},
    "pointQA_twice": {"bboxes": BOXES, "answer": ANYTHING},
}
PLAIN, CUSTOM = "plain", "custom"
# Rows written by GPT-4V have whole conversations with placeholders instead of one answer.
GPT4V = "gpt4v"


@dataclass
class RegionSample:
    """
    One row.

    Args:
        id (`str`): As in the file.
        dataset (`str`): One of `REQUIRED_FIELDS`, `custom` (other rows with boxes) or `plain` (no regions).
        variant (`str`): The second part of the id; `gpt4v` stands for conversations with placeholders.
        image (`Path`, *optional*): The image's file; `None` for a conversation without an image.
        boxes (`list`): `[x1, y1, x2, y2]` in pixels of the image, one per region.
        segmentations (`list`): Per region polygons `[[x, y, x, y, ...], ...]`, a COCO run-length encoding, or `None`.
        fields (`dict`): The whole row.
    """

    id: str
    dataset: str
    variant: str
    image: Path | None
    boxes: list[list[float]] = field(default_factory=list)
    segmentations: list[Any] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


class RegionFile:
    """
    All rows of a JSON file, read when they are asked for.

    The rows are kept as text: a mix has more than a million, and workers of a data loader share them only this way.

    Args:
        path (`str` or `Path`): A JSON list, or one JSON object per line (`.jsonl`).
        image_folder (`str` or `Path`, *optional*): What `image` and VCR's `./dataset` are relative to; the file's own
            folder by default.
        keep (`Callable`, *optional*): Called with each row; rows for which it returns `False` are left out.

    Raises:
        DataFileError: If the file is not such JSON or a row lacks fields of its data set.
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        keep: Callable[[dict[str, Any]], bool] | None = None,
    ):
        self.path = Path(path)
        self.image_folder = Path(image_folder) if image_folder is not None else self.path.parent
        parts, ends = [], [0]
        for where, row in _read_rows(self.path):
            self._check(row, where)
            if keep is None or keep(row):
                parts.append(json.dumps(row, ensure_ascii=False).encode())
                ends.append(ends[-1] + len(parts[-1]))
        self._text, self._ends = b"".join(parts), np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def row(self, index: int) -> dict[str, Any]:
        """The row as the file has it.

        Raises:
            IndexError: If there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows; there is no row {index}.")
        return json.loads(self._text[self._ends[index] : self._ends[index + 1]])

    def __getitem__(self, index: int) -> RegionSample:
        row = self.row(index)
        dataset, variant = row_dataset(row)
        image = row.get("image")
        sample = RegionSample(
            id=str(row.get("id", index)),
            dataset=dataset,
            variant=variant,
            image=None if image is None else self._image(image, f"{self.path}, id {row.get('id')!r}"),
            fields=row,
        )
        if dataset == "vcr":
            sample.boxes, sample.segmentations = self._vcr_objects(row)
        elif dataset in ("flickr30k", PLAIN):
            pass  # a Flickr30k phrase may have several boxes: its question builder reads them
        else:
            sample.boxes = row["bboxes"] if "bboxes" in row else row["bbox"]
            # For these the original draws only boxes, whatever the file holds.
            ignored = dataset in ("vg_rel", "v7w", "pointQA_twice")
            found = None if ignored else row.get("segmentations")
            sample.segmentations = found if found is not None else [None] * len(sample.boxes)
        if len(sample.boxes) != len(sample.segmentations):
            raise DataFileError(
                f"{self.path}, id {sample.id!r}: there are {len(sample.boxes)} boxes and {len(sample.segmentations)} "
                "segmentations; give one segmentation (or null) per box."
            )
        return sample

    def _vcr_objects(self, row: dict[str, Any]) -> tuple[list, list]:
        """Boxes without their score, and polygons of all objects of a VCR image, from its own JSON file."""
        given = row["meta_dir"]
        path = self.image_folder / given.removeprefix("./dataset").lstrip("/")
        what = f"{self.path}, id {row['id']!r}:"
        if not path.is_file():
            raise DataFileError(
                f"{what} there is no file {path} (meta_dir is {given!r}); put VCR's images with their JSON files into "
                "the image folder."
            )
        meta = read_json(path)
        try:
            boxes = [box[:4] for box in meta["boxes"]]
            # Last to first, without those of three points: so does the original, and its draws depend on it.
            outlines = [[polygon for polygon in polygons[::-1] if len(polygon) > 3] for polygons in meta["segms"]]
            segmentations = [
                [np.asarray(polygon, dtype=float).ravel().tolist() for polygon in polygons] or None
                for polygons in outlines
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"{path} does not hold VCR's `boxes` and `segms` of an image: {error!r}.") from error
        if not BOXES.is_valid(boxes):
            raise DataFileError(f"{path} has the boxes {reprlib.repr(boxes)}; give {BOXES.wanted}.")
        if len(row["class_names"]) != len(boxes):
            raise DataFileError(
                f"{what} there are {len(row['class_names'])} class_names and {len(boxes)} boxes in {path}; both must "
                "describe the same objects."
            )
        return boxes, segmentations

    def _check(self, row: Any, where: str) -> None:
        """
        Raises:
            DataFileError: If the row lacks a field of its data set, or one cannot be used.
        """
        if not isinstance(row, dict):
            raise DataFileError(f"{self.path}, {where} is a {type(row).__name__}; it must be a JSON object.")
        dataset, variant = row_dataset(row)
        what = f"{self.path}, {where} (id {row.get('id')!r}), read as {dataset},"
        required = dict(REQUIRED_FIELDS.get(dataset, {"conversations": MESSAGES}))
        if dataset in ("refcocog", "vg_rel"):
            required |= {"conversations": MESSAGES} if variant == GPT4V else {"answer": TEXT}
        missing = [name for name in (*required, *(("image",) if dataset != PLAIN else ())) if name not in row]
        if missing:
            raise DataFileError(f"{what} lacks {', '.join(missing)}.")
        if row.get("image") is not None:
            self._image(row["image"], what)
        if dataset == CUSTOM:
            required |= {"bboxes" if "bboxes" in row else "bbox": BOXES, "segmentations": OUTLINES}
        for name, field_kind in required.items():
            if not field_kind.is_valid(row.get(name)):
                raise DataFileError(f"{what} has the {name} {reprlib.repr(row.get(name))}; give {field_kind.wanted}.")

    def _image(self, name: Any, what: str) -> Path:
        try:
            return file_in(self.image_folder, name)
        except ValueError as error:
            raise DataFileError(f"{what} has an `image` that cannot be used: {error}") from None


def row_dataset(row: dict[str, Any]) -> tuple[str, str]:
    """Data set and variant of a row, from the first two parts of its id and, for others, from whether it has boxes."""
    parts = str(row.get("id", "")).split("-")
    if parts[0] in REQUIRED_FIELDS:
        return parts[0], parts[1] if len(parts) > 1 else ""
    return CUSTOM if row.get("bboxes") or row.get("bbox") else PLAIN, ""


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows with their position in the file: the line, or the number of the row in the list."""
    if not path.is_file():
        raise DataFileError(f"There is no file {path}; give a JSON list of rows or a .jsonl file.")
    if path.suffix == ".jsonl":
        yield from ((f"line {number}", row) for number, row in read_json_lines(path))
        return
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataFileError(f"{path} holds a {type(rows).__name__}; it must hold a list of rows.")
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


__all__ = [
    "CUSTOM",
    "GPT4V",
    "PLAIN",
    "REQUIRED_FIELDS",
    "RegionFile",
    "RegionSample",
    "row_dataset",
]
