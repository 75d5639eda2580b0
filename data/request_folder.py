"""Your own data: a folder of images with questions, answers and masks, checked as a whole before it is used.

    FOLDER/metadata.jsonl       one line per image, as `datasets` reads it (`imagefolder`)
    FOLDER/photo.jpg ...        the images, and masks as files, by their names relative to the folder

A line holds `file_name` and `requests`. A request holds `question`, `answer` and `phrases`, one for each `[SEG]` and
`[REJ]` of the answer, in order. A phrase holds `segmentation` and, if wanted, `text` (what it names) and `type` (a
group that is scored on its own). A segmentation is COCO's run lengths, polygons, the name of an image file, or null
for `[REJ]`; see `read_mask`.

Masks lie in the upright frame, in which viewers show the image. Where an image has an EXIF orientation and that
leaves open whether this is so, the line must say it: `"mask_frame": "upright"`, or `"stored"` for masks that were
drawn on the pixels as they are stored.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..processing.image_loading import MAX_IMAGE_PIXELS, upright_mask
from ..processing.mask_reading import read_mask
from ..processing.regions import check_mask_size, read_run_lengths
from ..processing.segments import mask_to_rle
from .annotation_reading import FRAMES, ImageHead, problems_text, read_head
from .data_files import LINE_ADVICE, DataFileError, file_in, read_json_lines
from .example import Example


METADATA_FILE = "metadata.jsonl"
REJECTION = "[REJ]"
SLOTS = re.compile(r"\[SEG\]|\[REJ\]")


@dataclass(frozen=True)
class Phrase:
    """
    Args:
        text (`str`): What it names; may be empty.
        type (`str`, *optional*): The group it is scored in, beside all.
        mask (`dict`, *optional*): Compressed run lengths in the upright frame; `None` for `[REJ]`.
    """

    text: str
    type: str | None
    mask: dict[str, Any] | None


@dataclass(frozen=True)
class Request:
    """A question, its right answer, and a phrase for each `[SEG]` and `[REJ]` of the answer."""

    question: str
    answer: str
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True)
class RequestImage:
    """
    One line of the file.

    Args:
        line (`int`): Its number, from 1 on.
        source (`Path` or `bytes`): File of the image; its content where it lies inside another file.
        requests (`tuple[Request, ...]`): What is asked about it, at least one.
    """

    line: int
    source: Path | bytes
    requests: tuple[Request, ...]

    def example(self) -> Example:
        """The same as training takes it, with decoded masks."""
        return Example(
            image=str(self.source),
            questions=[request.question for request in self.requests],
            answers=[request.answer for request in self.requests],
            masks=[
                [
                    None if phrase.mask is None else read_mask(phrase.mask, tuple(phrase.mask["size"]))
                    for phrase in request.phrases
                ]
                for request in self.requests
            ],
        )


def read_request_folder(folder: str | Path, max_image_pixels: int = MAX_IMAGE_PIXELS) -> list[RequestImage]:
    """
    Read and check a whole folder: every line, every mask, and the head of every image.

    Args:
        folder (`str` or `Path`): Folder of one split.
        max_image_pixels (`int`): Largest allowed height x width of an image.

    Raises:
        FileNotFoundError: If there is no `metadata.jsonl`.
        DataFileError: If it has no lines, or lines that cannot be used: with the first of them, what was found and
            what is allowed.
    """
    folder = Path(folder)
    metadata = folder / METADATA_FILE
    if not metadata.is_file():
        raise FileNotFoundError(
            f"{folder} has no {METADATA_FILE}; name the folder of one split of an image folder data set. Annotations "
            "of other tools are read with the option `format`, such as format=coco."
        )
    reader, problems, images = _LineReader(folder, max_image_pixels), {}, []
    not_json: dict[int, str] = {}
    for number, row in read_json_lines(metadata, problems=not_json):
        try:
            images.append(reader.read(number, row))
        except ValueError as error:
            problems[number] = str(error)
    problems |= {number: f"{reason}. {LINE_ADVICE}" for number, reason in not_json.items()}
    if problems:
        told = [f"{metadata}, line {number}: {text}" for number, text in sorted(problems.items())]
        raise DataFileError(problems_text(told, "lines"))
    if not images:
        raise DataFileError(f"{metadata} has no lines; give one per image, with `file_name` and `requests`.")
    return images


class ImageFolderExamples(Dataset):
    """
    The images of a folder with their conversations and decoded masks.

    Args:
        folder (`str` or `Path`): As for `read_request_folder`, which says what is raised, too.
        images (`list[RequestImage]`, *optional*): Its images, where they were read already, from another format.
    """

    def __init__(self, folder: str | Path, images: list[RequestImage] | None = None):
        self.folder = Path(folder)
        self.images = read_request_folder(self.folder) if images is None else images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return self.images[index].example()  # also what ends an iteration, by its IndexError


def first_rejection(images: list[RequestImage]) -> RequestImage | None:
    """The first image with a `[REJ]` in an answer."""
    answered = (image for image in images if any(REJECTION in request.answer for request in image.requests))
    return next(answered, None)


class _LineReader:
    """Reads lines of a folder; every method raises ValueError with what was found and what is allowed."""

    def __init__(self, folder: Path, max_image_pixels: int):
        self.folder = folder
        self.max_image_pixels = max_image_pixels
        self._heads: dict[Path, ImageHead] = {}

    def read(self, number: int, row: Any) -> RequestImage:
        _check_object(row, "the line", ("file_name", "requests"))
        path = file_in(self.folder, row["file_name"])
        head = self._head(path)
        _check_stated_size(row, head)
        frame = row.get("mask_frame")
        if frame is not None and frame not in FRAMES:
            raise ValueError(f"`mask_frame` is {frame!r}; it is {' or '.join(map(repr, FRAMES))}.")
        given = _check_list(row["requests"], "`requests`")
        if not given:
            raise ValueError("`requests` is empty; give at least one request per image.")
        requests = []
        for index, request in enumerate(given):
            where = f"request {index + 1}: " if len(given) > 1 else ""
            try:
                requests.append(self._request(request, head, frame))
            except ValueError as error:
                raise ValueError(f"{where}{error}") from None
        return RequestImage(number, path, tuple(requests))

    def _head(self, path: Path) -> ImageHead:
        if path not in self._heads:
            self._heads[path] = read_head(path, self.max_image_pixels)
        return self._heads[path]

    def _request(self, request: Any, head: ImageHead, frame: str | None) -> Request:
        _check_object(request, "a request", ("question", "answer"))
        for name in ("question", "answer"):
            if not isinstance(request[name], str) or not request[name].strip():
                raise ValueError(f"`{name}` is {request[name]!r}; it must be a text.")
        question, answer = request["question"], request["answer"]
        if SLOTS.search(question):
            raise ValueError(f"the question {question!r} holds [SEG] or [REJ]; only answers do.")
        slots = SLOTS.findall(answer)
        phrases = _check_list(request.get("phrases", []), "`phrases`")
        if len(slots) != len(phrases):
            raise ValueError(
                f"the answer {answer!r} has {len(slots)} slots but there are {len(phrases)} phrases; give one per "
                "[SEG] or [REJ], in order."
            )
        read = []
        for number, (slot, phrase) in enumerate(zip(slots, phrases, strict=True), start=1):
            read.append(self._phrase(slot, phrase, f"phrase {number}", head, frame))
        return Request(question, answer, tuple(read))

    def _phrase(self, slot: str, phrase: Any, where: str, head: ImageHead, frame: str | None) -> Phrase:
        _check_object(phrase, where, ("segmentation",))
        text, kind = phrase.get("text", ""), phrase.get("type")
        if not isinstance(text, str) or not isinstance(kind, (str, type(None))):
            raise ValueError(f"{where} has the `text` {text!r} and the `type` {kind!r}; both must be texts.")
        segmentation = phrase["segmentation"]
        if (segmentation is None) != (slot == REJECTION):
            raise ValueError(
                f"{where} has the slot {slot} and {'no' if segmentation is None else 'a'} segmentation; [SEG] needs a "
                "mask, and [REJ], for what is not in the image, has null."
            )
        if segmentation is None:
            return Phrase(text, kind, None)
        return Phrase(text, kind, self._mask(segmentation, f"the mask of {where}", head, frame))

    def _mask(self, segmentation: Any, what: str, head: ImageHead, frame: str | None) -> dict[str, Any]:
        """Compressed run lengths in the upright frame."""
        if not isinstance(segmentation, (Mapping, list, str)):
            raise ValueError(
                f"{what} is {reprlib.repr(segmentation)}; allowed are COCO's run lengths, polygons, or the name of an "
                "image file."
            )
        sides_tell = head.upright != head.stored and not isinstance(segmentation, list)
        if head.orientation != 1 and frame is None and not sides_tell:
            raise ValueError(
                f"{what} may have been drawn on the upright image or on the pixels as they are stored: the image has "
                f'the EXIF orientation {head.orientation}. Say which, with "mask_frame": "upright" or "stored" in '
                "the line."
            )
        size = head.stored if frame == "stored" else head.upright
        if isinstance(segmentation, Mapping) and frame != "stored":
            found, _ = read_run_lengths(segmentation, what)
            check_mask_size(found, size, what)
            if isinstance(segmentation["counts"], str):
                return {"size": list(size), "counts": segmentation["counts"]}
        if isinstance(segmentation, str):
            segmentation = file_in(self.folder, segmentation)
        mask = read_mask(segmentation, size, what)
        return mask_to_rle(upright_mask(mask, head.orientation) if frame == "stored" else mask)


def _check_object(value: Any, what: str, needed: tuple[str, ...]) -> None:
    names = " and ".join(f"`{name}`" for name in needed)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {reprlib.repr(value)}; it must be an object with {names}.")
    if missing := [f"`{name}`" for name in needed if name not in value]:
        raise ValueError(f"{what} has no {' and no '.join(missing)}; it has {', '.join(value) or 'nothing'}.")


def _check_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {reprlib.repr(value)}; it must be a list.")
    return value


def _check_stated_size(row: dict[str, Any], head: ImageHead) -> None:
    stated = (row.get("height"), row.get("width"))
    if None not in stated and stated not in (head.upright, head.stored):
        raise ValueError(
            f"the line says {stated[1]} x {stated[0]} pixels (width x height), the image has {head.upright[1]} x "
            f"{head.upright[0]}."
        )


__all__ = [
    "METADATA_FILE",
    "REJECTION",
    "SLOTS",
    "ImageFolderExamples",
    "Phrase",
    "Request",
    "RequestImage",
    "first_rejection",
    "read_request_folder",
]
