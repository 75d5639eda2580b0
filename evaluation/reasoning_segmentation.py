"""Reasoning segmentation: a model answers questions whose masks are known, and its masks are scored."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.table import Table

from ..data.label_requests import labelled_requests
from ..data.reading_ahead import read_ahead
from ..data.request_folder import REJECTION, read_request_folder
from ..modeling.outputs import answer_length
from ..processing.image_loading import MAX_IMAGE_PIXELS, load_rgb_image
from ..processing.mask_reading import read_mask
from ..processing.segments import Segment
from .metrics import SegmentationMetrics
from .registry import EvaluationOptions, Outcome
from .report import Case


# In tokens, of models that say nothing themselves. Chains of thought, of models that do, have up to 1024.
LONGEST_ANSWER = 128
_COLUMNS = ("giou", "ciou", "n_acc", "t_acc", "pr@0.5", "pr@0.7", "pr@0.9")


@dataclass
class Question:
    """
    One request about one image.

    Args:
        image: Whatever `load_rgb_image` reads: the path of a file or its content, a Pillow image of any mode, an array
            or tensor.
        text (`str`): The user's message.
        answer (`str`): The right answer, with `[SEG]` or `[REJ]` for every phrase in order.
        phrases (`list[str]`): What is asked for.
        masks (`list[Any | None]`): Per phrase its mask at the size of the upright image, of any kind that `read_mask`
            takes, `None` when absent.
        types (`list[str | None]`): Per phrase the name of the group it is reported in, beside all; `None` for none.
    """

    image: Any
    text: str
    answer: str
    phrases: list[str]
    masks: list[Any | None]
    types: list[str | None]


def image_folder_questions(
    folder: str | Path, images: Path | None = None, settings: Mapping[str, Any] | None = None
) -> list[Question]:
    """
    All requests of an image folder data set; see `reasonseg.data.request_folder` for its format.

    Args:
        folder (`str` or `Path`): The folder; with `images` or `settings` annotations in any other format, also a name
            on the Hub. Images inside other files are held in memory, as they are stored.
        images (`Path`, *optional*): The folder of their images.
        settings (`Mapping`, *optional*): Options of [`labelled_requests`].

    Raises:
        FileNotFoundError: If there is no `metadata.jsonl`.
        DataFileError: If it cannot be used; with the lines, what was found there and what is allowed.
    """
    options = {**(settings or {}), **({} if images is None else {"images": images})}
    if not Path(folder).exists():
        options = {"format": "datasets", **options}
    read = labelled_requests(folder, options) if options else read_request_folder(folder)
    return [
        Question(
            image=image.source if isinstance(image.source, bytes) else str(image.source),
            text=request.question,
            answer=request.answer,
            phrases=[phrase.text for phrase in request.phrases],
            masks=[phrase.mask for phrase in request.phrases],
            types=[phrase.type for phrase in request.phrases],
        )
        for image in read
        for request in image.requests
    ]


@dataclass
class EvaluationResult:
    """
    Args:
        protocol (`str`): `free` or `paper`.
        overall (`dict`): `giou`, `ciou`, `n_acc`, `t_acc`, `pr@0.5` ... and the counts behind them.
        by_type (`dict[str, dict]`): The same for each type of phrase.
        slots_missing (`int`): Phrases for which the model wrote no slot; each counts as wrong.
        rejected (`list[bool]`): The decision on every phrase; in the same order for both protocols.
        cases (`list[Case]`): What a contact sheet shows.
    """

    protocol: str
    overall: dict[str, Any]
    by_type: dict[str, dict[str, Any]]
    slots_missing: int
    rejected: list[bool] = field(repr=False)
    cases: list[Case] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain JSON values."""
        return {
            "protocol": self.protocol,
            "overall": self.overall,
            "by_type": self.by_type,
            "slots_missing": self.slots_missing,
        }


def evaluate(
    model,
    processor,
    questions: Sequence[Question],
    protocol: str = "free",
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    rule: str = "grefcoco",
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """
    Scores a model. With several processes (`torchrun`, `accelerate launch`) each takes a part of the questions; the
    sums are added, and every process returns the same result.

    Args:
        model: Has `generate_with_masks` and `forward`.
        processor: Its processor.
        questions (`Sequence[Question]`): What to ask.
        protocol (`str`):
            `free`: the model writes its answer; the n-th slot is the answer to the n-th phrase, a missing one is
            wrong, and a rejection leaves no mask. `paper`: as GSVA's numbers were made, the right answer is given
            with its `[SEG]` and `[REJ]`, the model decides at each, and masks come from a second pass in which every
            slot reads `[SEG]`; a rejected target is still scored by its mask.
        batch_size (`int`): Questions per step.
        max_new_tokens (`int`, *optional*):
            Length of free answers; by default what the model's generation configuration says, else 128.
        rule (`str`): How the sums are made; see [`SegmentationMetrics`].
        progress (`Callable`, *optional*): Called with the number of finished and of all questions of this process.

    Raises:
        ValueError: If the protocol does not exist or gives an answer to a model that reads none, there is no question,
            an answer holds a `[REJ]` that the model does not know under `paper`, a question has several phrases that a
            model's answers would not tell apart, an image cannot be read, or a mask has not the size of its image or
            values that may mean several things.
    """
    if protocol not in _ANSWERED_BY:
        raise ValueError(f"There is no protocol {protocol!r}; choose one of {', '.join(_ANSWERED_BY)}.")
    if not len(questions):
        raise ValueError("There is no question to evaluate; an empty data set has no scores.")
    check_questions(processor, questions, protocol)
    if protocol == "paper" and getattr(model.config, "seg_token_id", None) is None:
        raise ValueError(
            f"The protocol 'paper' gives an answer with [SEG] for every target, and {type(model).__name__} has no "
            "such token. Use the protocol 'free'."
        )
    types = sorted({name for question in questions for name in question.types if name is not None})
    metrics = SegmentationMetrics(rule, types=types, zero_rejected=protocol == "free")
    max_pixels = getattr(processor, "max_image_pixels", MAX_IMAGE_PIXELS)
    state = PartialState()
    mine = list(questions)[state.process_index :: state.num_processes]
    missing, done, finished = 0, 0, {}
    model.eval()
    for numbers, batch, images, index, inputs in _prepared(processor, mine, protocol, batch_size, max_pixels):
        with torch.no_grad():
            length = answer_length(model, max_new_tokens, LONGEST_ANSWER)
            answers = _ANSWERED_BY[protocol](model, processor, batch, inputs.to(model.device), length)
        for number, question, image, (masks, rejected, written) in zip(numbers, batch, index, answers, strict=True):
            targets = _targets(question, masks.shape[-2:])
            ious = metrics.update(masks, targets, rejected, question.types)
            missing += len(question.phrases) - written
            shown = _cases(question, images[image], targets.numpy(), masks.numpy(), rejected, ious)
            finished[number] = rejected, shown
        done += len(batch)
        if progress is not None:
            progress(done, len(mine))
    decisions = [decision for number in range(len(mine)) for decision in finished[number][0]]
    cases = [case for number in range(len(mine)) for case in finished[number][1]]

    if state.num_processes > 1:
        sums = gather_object([(metrics.state_tensor().cpu(), missing)])
        metrics.load_state_tensor(sum(part for part, _ in sums))
        missing = sum(count for _, count in sums)
        decisions, cases = gather_object(decisions), gather_object(cases)
    return EvaluationResult(protocol, metrics.compute(), metrics.compute_by_type(), missing, decisions, cases)


def check_questions(processor, questions: Sequence[Question], protocol: str) -> None:
    """
    Check that a model that is given the right answers knows their `[REJ]`, for one that it does not know is not a
    slot, and the masks after it would be taken for those of other phrases; and that answers tell phrases apart.

    Raises:
        ValueError: With the first question that this model cannot be asked.
    """
    knows_rejections = getattr(processor, "rej_token", None) is not None
    for question in questions:
        if protocol == "paper" and not knows_rejections and REJECTION in question.answer:
            raise ValueError(
                f"The answer {question.answer!r} holds {REJECTION}, which this model does not know; the protocol "
                "`paper` gives it the right answers. Use the protocol `free`, or a model with [REJ], such as GSVA."
            )
        if protocol == "free" and _is_asked_by_phrases(processor, question):
            processor.question_of(question.phrases)


def _is_asked_by_phrases(processor, question: Question) -> bool:
    """Objects, in any number, are known to be those of the only target that a question has. Of several targets the
    objects are told apart by the phrases."""
    return processor.answers_in_objects and len(question.phrases) > 1


def _batches(processor, questions: Sequence[Question], size: int) -> Iterator[tuple[list[int], list[Question]]]:
    """Questions that are asked in the same way, and their numbers, some at a time."""
    numbers: dict[bool, list[int]] = {False: [], True: []}
    for number, question in enumerate(questions):
        numbers[_is_asked_by_phrases(processor, question)].append(number)
    for alike in numbers.values():
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            yield batch, [questions[number] for number in batch]


def _prepared(
    processor, questions: Sequence[Question], protocol: str, size: int, max_pixels: int
) -> Iterator[tuple[list[int], list[Question], list[np.ndarray], list[int], Any]]:
    """Batches, read and prepared ahead: the numbers of its questions, these, what `_shared_images` says of them, and
    the model's inputs, with the right answers where the protocol gives them."""

    def prepare(
        numbered: tuple[list[int], list[Question]],
    ) -> tuple[list[int], list[Question], list[np.ndarray], list[int], Any]:
        numbers, batch = numbered
        images, index = _shared_images(batch, max_pixels)
        asked: dict[str, Any] = {"text": [question.text for question in batch]}
        if protocol == "paper":
            asked["answer"] = [question.answer for question in batch]
        elif _is_asked_by_phrases(processor, batch[0]):
            asked = {"phrases": [question.phrases for question in batch]}
        return numbers, batch, images, index, processor(images=images, image_index=index, return_tensors="pt", **asked)

    return read_ahead(prepare, _batches(processor, questions, size))


def _shared_images(batch: Iterable[Question], max_pixels: int) -> tuple[list[np.ndarray], list[int]]:
    """The different images of a batch, RGB and upright, and the image of each question: each is encoded once."""
    images, index, seen = [], [], {}
    for question in batch:
        key = question.image if _is_path(question.image) else id(question.image)
        if key not in seen:
            seen[key] = len(images)
            images.append(_pixels(question.image, max_pixels))
        index.append(seen[key])
    return images, index


def _pixels(image: Any, max_pixels: int) -> np.ndarray:
    """`(height, width, 3)` uint8; what is such an array is not copied, so that the cases of an image share it."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    return np.asarray(load_rgb_image(image, max_pixels))


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


Answer = tuple[torch.BoolTensor, list[bool], int]


def _answer_freely(model, processor, batch: list[Question], inputs, max_new_tokens: int) -> list[Answer]:
    output = model.generate_with_masks(**inputs, max_new_tokens=max_new_tokens)
    is_joined = processor.answers_in_objects and not _is_asked_by_phrases(processor, batch[0])
    joined = {"union": True} if is_joined else {}
    return _read_slots(processor, batch, output, inputs, **joined)


def _answer_as_given(model, processor, batch: list[Question], inputs, max_new_tokens: int) -> list[Answer]:
    options = {"reeval": True} if model.config.rej_token_id is not None else {}
    output = model(**inputs, **options)
    decisions = output.rejected
    output.rejected = [torch.zeros_like(flags) for flags in decisions]
    answers = _read_slots(processor, batch, output, inputs)
    return [(masks, flags.tolist(), written) for (masks, _, written), flags in zip(answers, decisions, strict=True)]


_ANSWERED_BY = {"free": _answer_freely, "paper": _answer_as_given}


def _read_slots(processor, batch: list[Question], output, inputs, **options) -> list[Answer]:
    """Per question the masks of its phrases `(phrases, height, width)`, the rejections and the slots written."""
    answers = []
    results = processor.post_process_segmentation(output, inputs, **options)
    for question, result in zip(batch, results, strict=True):
        masks = torch.zeros(len(question.phrases), *result.image_size, dtype=torch.bool)
        # A phrase without a slot is wrong whichever way it is: an absent one was not rejected, a present one was.
        rejected = [mask is not None for mask in question.masks]
        segments = result.segments[: len(question.phrases)]
        if options.get("union") and not segments:  # who names nothing says that nothing is there
            segments = [Segment(rejected=True)][: len(question.phrases)]
        for index, segment in enumerate(segments):
            rejected[index] = segment.rejected
            if segment.mask is not None:
                masks[index] = torch.from_numpy(segment.mask)
        answers.append((masks, rejected, len(segments)))
    return answers


def _targets(question: Question, size: torch.Size) -> torch.BoolTensor:
    targets = torch.zeros(len(question.phrases), *size, dtype=torch.bool)
    for index, mask in enumerate(question.masks):
        if mask is not None:
            targets[index] = torch.tensor(read_mask(mask, tuple(size), f"The mask of {question.phrases[index]!r}"))
    return targets


def _cases(
    question: Question,
    image: np.ndarray,
    targets: np.ndarray,
    masks: np.ndarray,
    rejected: list[bool],
    ious: list[float],
) -> list[Case]:
    """One case per phrase; of an image in a file only its path or content is kept, so that whole data sets fit into
    memory."""
    source = Path(question.image) if _is_path(question.image) else image
    if isinstance(question.image, bytes):
        source = question.image
    cases = []
    for index, phrase in enumerate(question.phrases):
        target = None if question.masks[index] is None else targets[index]
        prediction = None if rejected[index] else masks[index]
        cases.append(Case.from_masks(source, phrase, ious[index], target, prediction))
    return cases


def results_table(result: EvaluationResult) -> Table:
    """One row per type of phrase, where there are types, and one for all."""
    table = Table(title=f"protocol: {result.protocol}")
    for name in ("type", "phrases", *_COLUMNS):
        table.add_column(name, justify="left" if name == "type" else "right")
    total = "all" if "all" not in result.by_type else "all types"
    for name, numbers in [*result.by_type.items(), (total, result.overall)]:
        values = ["-" if numbers[column] is None else f"{numbers[column]:.3f}" for column in _COLUMNS]
        table.add_row(name, str(numbers["masks"]), *values)
    return table


def run_questions(options: EvaluationOptions, questions: list[Question]) -> Outcome:
    """Have a model answer the questions of a data set, and score its masks."""
    # What cannot be scored is refused before the model is loaded.
    SegmentationMetrics(options.rule)
    questions, processor = questions[: options.limit], options.load_processor()
    check_questions(processor, questions, options.protocol)
    result = evaluate(
        options.load_model(),
        processor,
        questions,
        protocol=options.protocol,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        rule=options.rule,
        progress=options.report("evaluating"),
    )
    about = {
        "model": options.model,
        "dataset": options.dataset,
        "split": options.split,
        "questions": len(questions),
        "rule": options.rule,
    }
    return Outcome(result, results_table(result), about)


__all__ = [
    "LONGEST_ANSWER",
    "EvaluationResult",
    "Question",
    "check_questions",
    "evaluate",
    "image_folder_questions",
    "run_questions",
]
