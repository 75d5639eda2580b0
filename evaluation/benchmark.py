"""Runs a model over questions with known masks and scores it, on any number of processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from .contact_sheet import Case
from .metrics import SegmentationMetrics


PROTOCOLS = ("free", "paper")


@dataclass
class Question:
    """
    One request about one picture.

    Args:
        image: The picture, `(height, width, 3)` uint8 or whatever the processor takes.
        text (`str`): The user's message.
        answer (`str`): The right answer, with `[SEG]` or `[REJ]` for every phrase in order.
        phrases (`list[str]`): What is asked for.
        masks (`list[np.ndarray | None]`): Per phrase the bool mask `(height, width)`, `None` when absent.
        types (`list[str]`): Per phrase the name of the group it is reported in.
    """

    image: Any
    text: str
    answer: str
    phrases: list[str]
    masks: list[np.ndarray | None]
    types: list[str]


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
        """Everything but the pictures, as plain JSON values."""
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
    max_new_tokens: int = 128,
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
        max_new_tokens (`int`): Length of free answers.
        rule (`str`): How the sums are made; see [`SegmentationMetrics`].
        progress (`Callable`, *optional*): Called with the number of finished and of all questions of this process.

    Raises:
        ValueError: If the protocol does not exist.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    answer = _answer_freely if protocol == "free" else _answer_as_given
    types = sorted({name for question in questions for name in question.types})
    metrics = SegmentationMetrics(rule, types=types, zero_rejected=protocol == "free")
    state = PartialState()
    mine = list(questions)[state.process_index :: state.num_processes]
    missing, decisions, cases = 0, [], []
    model.eval()
    for done, batch in _batches(mine, batch_size):
        with torch.no_grad():
            answers = answer(model, processor, batch, max_new_tokens)
        for question, (masks, rejected, written) in zip(batch, answers, strict=True):
            targets = _targets(question, masks.shape[-2:])
            ious = metrics.update(masks, targets, rejected, question.types)
            missing += len(question.phrases) - written
            decisions += rejected
            cases += _cases(question, masks, rejected, ious)
        if progress is not None:
            progress(done, len(mine))

    if state.num_processes > 1:
        sums = gather_object([(metrics.state_tensor().cpu(), missing)])
        metrics.load_state_tensor(sum(part for part, _ in sums))
        missing = sum(count for _, count in sums)
        decisions, cases = gather_object(decisions), gather_object(cases)
    return EvaluationResult(protocol, metrics.compute(), metrics.compute_by_type(), missing, decisions, cases)


def _batches(questions: Sequence[Question], size: int) -> Iterator[tuple[int, list[Question]]]:
    for start in range(0, len(questions), size):
        batch = list(questions[start : start + size])
        yield start + len(batch), batch


def _shared_images(batch: Iterable[Question]) -> tuple[list, list[int]]:
    """The different pictures of a batch and the picture of each question, so that each is encoded once."""
    images, index, seen = [], [], {}
    for question in batch:
        if id(question.image) not in seen:
            seen[id(question.image)] = len(images)
            images.append(question.image)
        index.append(seen[id(question.image)])
    return images, index


Answer = tuple[torch.BoolTensor, list[bool], int]


def _answer_freely(model, processor, batch: list[Question], max_new_tokens: int) -> list[Answer]:
    images, index = _shared_images(batch)
    inputs = processor(
        images=images, text=[question.text for question in batch], image_index=index, return_tensors="pt"
    ).to(model.device)
    output = model.generate_with_masks(**inputs, max_new_tokens=max_new_tokens)
    return _read_slots(processor, batch, output, inputs)


def _answer_as_given(model, processor, batch: list[Question], max_new_tokens: int) -> list[Answer]:
    images, index = _shared_images(batch)
    inputs = processor(
        images=images,
        text=[question.text for question in batch],
        answer=[question.answer for question in batch],
        image_index=index,
        return_tensors="pt",
    ).to(model.device)
    options = {"reeval": True} if model.config.rej_token_id is not None else {}
    output = model(**inputs, **options)
    decisions = output.rejected
    output.rejected = [torch.zeros_like(flags) for flags in decisions]
    answers = _read_slots(processor, batch, output, inputs)
    return [(masks, flags.tolist(), written) for (masks, _, written), flags in zip(answers, decisions, strict=True)]


def _read_slots(processor, batch: list[Question], output, inputs) -> list[Answer]:
    """Per question the masks of its phrases `(phrases, height, width)`, the rejections and the slots written."""
    answers = []
    for question, result in zip(batch, processor.post_process_segmentation(output, inputs), strict=True):
        masks = torch.zeros(len(question.phrases), *result.image_size, dtype=torch.bool)
        # A phrase without a slot is wrong whichever way it is: an absent one was not rejected, a present one was.
        rejected = [mask is not None for mask in question.masks]
        segments = result.segments[: len(question.phrases)]
        for place, segment in enumerate(segments):
            rejected[place] = segment.rejected
            if segment.mask is not None:
                masks[place] = torch.from_numpy(segment.mask)
        answers.append((masks, rejected, len(segments)))
    return answers


def _targets(question: Question, size: torch.Size) -> torch.BoolTensor:
    targets = torch.zeros(len(question.phrases), *size, dtype=torch.bool)
    for place, mask in enumerate(question.masks):
        if mask is not None:
            targets[place] = torch.from_numpy(np.asarray(mask, dtype=bool))
    return targets


def _cases(question: Question, masks: torch.Tensor, rejected: list[bool], ious: list[float]) -> list[Case]:
    image = np.asarray(question.image)
    return [
        Case.from_masks(image, phrase, iou, target, None if flag else mask.numpy())
        for phrase, iou, target, flag, mask in zip(
            question.phrases, ious, question.masks, rejected, masks, strict=True
        )
    ]


__all__ = ["PROTOCOLS", "EvaluationResult", "Question", "evaluate"]
