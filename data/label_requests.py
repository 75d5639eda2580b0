"""Questions and answers about images that have labels alone: from any annotation format to what is trained on."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from ..processing.chat import GENERIC_WORDING, ask_and_answer, complete_wording
from .annotation_formats import AnnotationFormat, ReadingOptions, find_format, guess_format
from .annotation_writing import UNNAMED
from .data_files import DataFileError
from .labelled_images import LabelledImage, LabelledObject, LabelledRequest
from .request_folder import REJECTION, SLOTS, Phrase, Request, RequestImage


_SEGMENT = "[SEG]"
# Stands for a slot until it is known which one.
_OPEN = "\0"


@dataclass(frozen=True)
class AskingOptions:
    """
    How labels become questions and answers.

    Args:
        question (`str`, *optional*): With `{phrases}` for the labels; by default "Please segment {phrases} in this
            image.".
        answer (`str`, *optional*): With `{items}`, one for each label; by default "Sure, {items}.".
        item (`str`, *optional*): With `{phrase}` and `{seg}`; by default "{phrase}: {seg}".
        per (`str`): One question for each `"image"`, or for each `"label"` in it.
        slot (`str`): A slot for each `"label"`, with all its objects in one mask, or for each `"object"`.
        absent (`int`): How many labels of the data set that an image does not have are asked for, too, and answered by
            `[REJ]`; only for data in which each label is marked wherever it is.
        seed (`int`): Of the choice among these.
    """

    question: str | None = None
    answer: str | None = None
    item: str | None = None
    per: str = "image"
    slot: str = "label"
    absent: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (("per", ("image", "label")), ("slot", ("label", "object"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}.")
        if isinstance(self.absent, bool) or not isinstance(self.absent, int) or self.absent < 0:
            raise ValueError(f"absent is {self.absent!r}; it must be a whole number, 0 or more.")
        for name in ("question", "answer", "item"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a text.")
        _ = self.wording

    @property
    def wording(self) -> dict[str, Any]:
        """All fields of a processor's wording.

        Raises:
            ValueError: A placeholder is missing or unknown.
        """
        given = {name: text for name in ("question", "answer", "item") if (text := getattr(self, name)) is not None}
        both = {f"{name}s": text for name, text in given.items() if name != "item"}
        return complete_wording({**given, **both}, GENERIC_WORDING)


def with_requests(
    images: Iterable[LabelledImage], options: AskingOptions, labels: Sequence[str] = ()
) -> Iterator[LabelledImage]:
    """
    Images whose every object belongs to a request with a question and an answer.

    Args:
        images (`Iterable[LabelledImage]`): What was asked about them stays as it is; a missing answer is made.
        options ([`AskingOptions`]): As chosen.
        labels (`Sequence[str]`): All labels of the data set, for `options.absent`.

    Raises:
        DataFileError: A label holds `[SEG]` or `[REJ]`; with the image.
    """
    for image in images:
        try:
            asked = _completed(image, options) if image.requests else _asked(image, options, labels)
        except DataFileError as error:
            raise DataFileError(f"The image {image.file_name!r}: {error}") from None
        yield asked


def labels_of(images: Iterable[LabelledImage]) -> list[str]:
    """All labels, in order of appearance."""
    labels = (found.label.strip() for image in images for found in image.objects)
    return list(dict.fromkeys(label for label in labels if label))


def _asked(image: LabelledImage, options: AskingOptions, labels: Sequence[str]) -> LabelledImage:
    """An image with questions by the labels of its objects."""
    chosen = random.Random(f"{options.seed} {image.file_name}")
    objects = list(image.objects) if options.slot == "object" else list(_by_label(image.objects))
    present = {_word(found) for found in objects}
    lacking = [label for label in labels if label not in present]
    for label in chosen.sample(lacking, min(options.absent, len(lacking))):
        objects.append(LabelledObject(label, None, rejected=True))
    if options.absent:
        chosen.shuffle(objects)  # else the last of a question would always be the absent ones
    groups = list(_named_alike(objects)) if options.per == "label" else [objects] if objects else []
    return replace(
        image,
        objects=tuple(replace(found, request=number) for number, each in enumerate(groups) for found in each),
        requests=tuple(LabelledRequest(_question(each, options), _answer(each, options)) for each in groups),
    )


def _word(found: LabelledObject) -> str:
    """What an object is asked for by: its label without the blanks around it."""
    return found.label.strip() or UNNAMED


def _named_alike(objects: Iterable[LabelledObject]) -> Iterable[list[LabelledObject]]:
    """Objects that are asked for by the same word, in the order of the first of each."""
    groups: dict[str, list[LabelledObject]] = {}
    for found in objects:
        groups.setdefault(_word(found), []).append(found)
    return groups.values()


def _by_label(objects: Iterable[LabelledObject]) -> Iterator[LabelledObject]:
    """One object per label, with all pixels that have it."""
    for members in _named_alike(objects):
        masks = [found.mask for found in members if found.mask is not None]
        if len(masks) <= 1:
            yield next((found for found in members if found.mask is not None), members[0])
            continue
        merged = coco_mask.merge([{**mask, "counts": mask["counts"].encode("ascii")} for mask in masks])
        yield LabelledObject(
            members[0].label, {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}
        )


def _completed(image: LabelledImage, options: AskingOptions) -> LabelledImage:
    """What was asked, each request with an answer that has a slot for each of its objects."""
    requests = []
    for number in range(max([len(image.requests), *(found.request + 1 for found in image.objects)])):
        objects = [found for found in image.objects if found.request == number]
        asked = image.requests[number] if number < len(image.requests) else LabelledRequest()
        question, answer = (asked.question or "").strip(), asked.answer or ""
        if not answer.strip() or SLOTS.findall(answer) != [_slot(found) for found in objects]:
            answer = _answer(objects, options)
        requests.append(LabelledRequest(asked.question if question else _question(objects, options), answer))
    return replace(image, requests=tuple(requests))


def _question(objects: Sequence[LabelledObject], options: AskingOptions) -> str:
    """A question for what is called so; empty without objects."""
    labels = list(dict.fromkeys(map(_word, objects)))
    return _asked_and_answered(labels, options)[0] if labels else ""


def _answer(objects: Sequence[LabelledObject], options: AskingOptions) -> str:
    """An answer with a slot for each object, in order; empty without objects."""
    if not objects:
        return ""
    _, answer = _asked_and_answered([*map(_word, objects)], options)
    *texts, last = answer.split(_OPEN)
    if len(texts) != len(objects):
        raise DataFileError(f"The answer {answer.replace(_OPEN, '{seg}')!r} has more than one slot per label.")
    return "".join(text + _slot(found) for text, found in zip(texts, objects, strict=True)) + last


def _asked_and_answered(labels: Sequence[str], options: AskingOptions) -> tuple[str, str]:
    try:
        return ask_and_answer(options.wording, labels, _OPEN, reserved=(_SEGMENT, REJECTION, _OPEN))
    except ValueError as error:
        raise DataFileError(f"A label cannot be asked for: {error}") from None


def _slot(found: LabelledObject) -> str:
    return REJECTION if found.mask is None else _SEGMENT


# ---- straight into training and evaluation --------------------------------------------------------------------------


def split_options(
    values: Mapping[str, Any], source: str | Path
) -> tuple[AnnotationFormat, ReadingOptions, AskingOptions]:
    """
    Options by name: `format`, and those of [`ReadingOptions`] and [`AskingOptions`].

    Raises:
        ValueError: An option does not exist, or has a value that is not allowed.
    """
    values = dict(values)
    entry = find_format(named) if (named := values.pop("format", None)) is not None else guess_format(source)
    reading = {one.name for one in fields(ReadingOptions)} - {"left_out"}
    asking = {one.name for one in fields(AskingOptions)}
    if unknown := sorted(set(values) - reading - asking):
        raise ValueError(
            f"There is no option {unknown[0]!r}; there are format, {', '.join(sorted(reading | asking))}."
        )
    if isinstance(values.get("images"), str):
        values["images"] = Path(values["images"])
    if isinstance(skipped := values.get("skip_labels"), (str, list)):
        values["skip_labels"] = (skipped,) if isinstance(skipped, str) else tuple(skipped)
    return (
        entry,
        ReadingOptions(**{name: value for name, value in values.items() if name in reading}),
        AskingOptions(**{name: value for name, value in values.items() if name in asking}),
    )


def read_with_requests(
    source: str | Path, entry: AnnotationFormat, reading: ReadingOptions, asking: AskingOptions
) -> Iterator[LabelledImage]:
    """
    The images of a data set in any format, with questions and answers; read twice where absent labels are asked for.

    Raises:
        DataFileError: The data set cannot be used.
    """
    entry.check()
    labels = labels_of(entry.read(source, replace(reading, left_out=reading.left_out.copy()))) if asking.absent else ()
    return with_requests(entry.read(source, reading), asking, labels)


def read_labelled_requests(source: str | Path, **options: Any) -> list[RequestImage]:
    """
    A data set in any format as [`read_request_folder`] gives one of our own, without a copy of it.

    Args:
        source (`str` or `Path`): A file, a folder, or a name on the Hub.
        options: See [`split_options`].

    Raises:
        DataFileError: The data set cannot be used, or holds its images in other files than their own.
    """
    requested = []
    for image in labelled_requests(source, options):
        if not isinstance(image.source, Path):
            raise DataFileError(f"{source} holds images inside other files; `reasonseg import` makes files of them.")
        requested.append(image)
    return requested


def labelled_requests(source: str | Path, options: Mapping[str, Any]) -> Iterator[RequestImage]:
    """
    As [`read_labelled_requests`], one image after the other, also those inside other files.

    Raises:
        DataFileError: The data set cannot be used.
    """
    is_empty = True
    for number, image in enumerate(read_with_requests(source, *split_options(options, source)), start=1):
        if requests := tuple(_requests_of(image)):
            yield RequestImage(number, image.source, requests)
            is_empty = False
    if is_empty:
        raise DataFileError(f"{source} has no image with an object or a question, so that nothing could be learned.")


def _requests_of(image: LabelledImage) -> Iterator[Request]:
    for number, asked in enumerate(image.requests):
        phrases = [
            Phrase(found.label, found.attributes.get("type"), found.mask)
            for found in image.objects
            if found.request == number
        ]
        if asked.question and asked.answer:
            yield Request(asked.question, asked.answer, tuple(phrases))


__all__ = [
    "AskingOptions",
    "labelled_requests",
    "labels_of",
    "read_labelled_requests",
    "read_with_requests",
    "split_options",
    "with_requests",
]
