"""What LISA and GSVA ask about referring expressions, in training and in evaluation, and how they draw it.

LISA has one conversation per expression, `Can you segment the {} in this image?` - `Sure, it is [SEG].`; GSVA one per
image with all names in it, `Sure, they are a cat:[SEG], a dog:[REJ].` An `[REJ]` stands where the mask is empty.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .data_files import DataFileError
from .example import Example
from .referring_expressions import ReferringItem


LISA_QUESTIONS = (
    "Can you segment the {class_name} in this image?",
    "Please segment the {class_name} in this image.",
    "What is {class_name} in this image? Please respond with segmentation mask.",
    "What is {class_name} in this image? Please output segmentation mask.",
)
LISA_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
GSVA_QUESTIONS = (
    "Can you segment {class_name} in this image?",
    "Please segment {class_name} in this image.",
    "What are {class_name} in this image? Please respond with segmentation masks.",
    "What are {class_name} in this image? Please output segmentation masks.",
)
# How an answer begins, and what it says of each name.
GSVA_ANSWERS = (
    ("The segmentation results are ", "{class_name} [SEG]"),
    ("Sure, they are ", "{class_name}:[SEG]"),
    ("Sure, ", "the mask of {class_name} is [SEG]"),
    ("Sure, ", "the segmentation of {class_name} is [SEG]"),
    ("Sure, ", "the referred {class_name} is [SEG]"),
)
# The originals' evaluations have a space in front of the question and, GSVA, none between names and `in`.
LISA_EVALUATION = (" What is {class_name} in this image? Please output segmentation mask.", "[SEG].")
GSVA_EVALUATION = " What are {class_name}in this image? Please output segmentation masks."
GSVA_EVALUATION_ANSWER = ("Sure,", "{class_name}:[SEG]")


class RandomCalls(Protocol):
    """Those of the originals that choose what is asked; from Python's generator and from numpy's."""

    def choice(self, count: int) -> int:
        """Index of what `random.choice` takes from a list of so many."""

    def subset(self, count: int, size: int) -> list[int]:
        """Indices of what `np.random.choice(list, size, replace=False)` takes, in the order it draws them."""

    def style(self, count: int) -> int:
        """`np.random.randint(0, count)`."""


@dataclass
class ReferringSample:
    """What is asked about an image.

    Args:
        item (`ReferringItem`): The image.
        indices (`list[int]`): Which of its expressions, in the order in which they are asked.
        questions, answers (`list[str]`): One per conversation, without the image's place and the chat template.
        masks (`np.ndarray`): `(expressions, height, width)` uint8; see `ReferredMask`.
    """

    item: ReferringItem
    indices: list[int]
    questions: list[str]
    answers: list[str]
    masks: np.ndarray

    @property
    def sentences(self) -> list[str]:
        return [self.item.targets[index].text for index in self.indices]

    def example(self) -> Example:
        """As training and evaluation take it. LISA's empty masks belong to a `[SEG]`, GSVA's to a `[REJ]`."""
        if self.item.original == "lisa":
            return Example(self.item.path, self.questions, self.answers, [[mask] for mask in self.masks])
        masks = [mask if mask.any() else None for mask in self.masks]
        return Example(self.item.path, self.questions, self.answers, [masks])


def draw(item: ReferringItem, rng: RandomCalls, count: int = 3) -> ReferringSample | None:
    """
    Draw what is asked about an image in training, with the originals' random calls in their order.

    Args:
        item (`ReferringItem`): The image.
        rng (`RandomCalls`): Decides everything.
        count (`int`): Expressions; all, in the order of the file, where there are fewer.

    Returns:
        `ReferringSample` or `None`: `None` where GSVA draws another image, as no expression has a mask.

    Raises:
        DataFileError: If a mask cannot be painted, or GSVA has no name for an expression.
    """
    indices = list(range(len(item.targets)))
    if len(indices) >= count:
        indices = rng.subset(len(indices), count)
    if item.original == "lisa":
        texts = [
            (LISA_QUESTIONS[rng.choice(len(LISA_QUESTIONS))], LISA_ANSWERS[rng.choice(len(LISA_ANSWERS))])
            for _ in indices
        ]
        return _lisa_sample(item, indices, texts)
    style = GSVA_ANSWERS[rng.style(len(GSVA_ANSWERS))]
    sample = _gsva_sample(item, indices, GSVA_QUESTIONS[rng.choice(len(GSVA_QUESTIONS))], style)
    return sample if sample.masks.any() else None


def candidates(item: ReferringItem, template: int = 0) -> ReferringSample:
    """All that can be drawn of an image, in the order of the file, worded by one question and one answer.

    Args:
        item (`ReferringItem`): The image.
        template (`int`): Number of the question and of the answer, each counted round its list.
    """
    indices = list(range(len(item.targets)))
    if item.original == "lisa":
        texts = (LISA_QUESTIONS[template % len(LISA_QUESTIONS)], LISA_ANSWERS[template % len(LISA_ANSWERS)])
        return _lisa_sample(item, indices, [texts] * len(indices))
    question, style = GSVA_QUESTIONS[template % len(GSVA_QUESTIONS)], GSVA_ANSWERS[template % len(GSVA_ANSWERS)]
    return _gsva_sample(item, indices, question, style)


def validation_sample(item: ReferringItem) -> ReferringSample:
    """All expressions of an image as the originals' evaluations ask them, with the right answer, which they give."""
    indices = list(range(len(item.targets)))
    if item.original == "lisa":
        return _lisa_sample(item, indices, [LISA_EVALUATION] * len(indices))
    question = GSVA_EVALUATION if item.quirks.omits_space else GSVA_EVALUATION.replace("}in", "} in")
    return _gsva_sample(item, indices, question, GSVA_EVALUATION_ANSWER)


def _lisa_sample(item: ReferringItem, indices: list[int], texts: list[tuple[str, str]]) -> ReferringSample:
    questions = [
        question.format(class_name=item.targets[index].text.strip().lower())
        for index, (question, _) in zip(indices, texts, strict=True)
    ]
    return ReferringSample(item, indices, questions, [answer for _, answer in texts], item.masks(indices))


def _gsva_sample(item: ReferringItem, indices: list[int], question: str, style: tuple[str, str]) -> ReferringSample:
    masks, names = item.masks(indices), [_gsva_name(item, index) for index in indices]
    start, part = style
    parts = [
        part.format(class_name=name) if mask.any() else _rejected(part, name, item.quirks.rejects_in_names)
        for name, mask in zip(names, masks, strict=True)
    ]
    asked = question.format(class_name=", ".join(names).lower())
    return ReferringSample(item, indices, [asked], [f"{start}{', '.join(parts)}."], masks)


def _gsva_name(item: ReferringItem, index: int) -> str:
    """A sentence without spaces and full stops around it; a space before the full stop stays."""
    expression, training = item.targets[index], item.purpose == "training"
    name = expression.text.strip()
    if training and not name:
        raise DataFileError(
            f"{item.source}, reference {expression.ref_id} of image {item.image_id} has a sentence without a word, at "
            "which GSVA's training stops; leave it out, or read it without following the original."
        )
    return (name if training else name.lower()).strip(".")


def _rejected(part: str, name: str, in_name: bool) -> str:
    if in_name:
        return part.format(class_name=name).replace("SEG", "REJ")
    return part.replace("SEG", "REJ").format(class_name=name)


__all__ = [
    "GSVA_ANSWERS",
    "GSVA_QUESTIONS",
    "LISA_ANSWERS",
    "LISA_QUESTIONS",
    "ReferringSample",
    "candidates",
    "draw",
    "validation_sample",
]
