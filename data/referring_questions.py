"""What the evaluations of LISA and GSVA ask about referring expressions. What training asks is in [`LisaMixture`].

LISA has one conversation per expression; GSVA one per image with all names in it, where `[REJ]` answers for an empty
mask.
"""

from dataclasses import dataclass

import numpy as np

from .example import Example
from .instruction_wording import answer_part
from .referring_expressions import ReferringItem


# Both have a space before the question and GSVA, in its own form, none between the names and `in`.
LISA_QUESTION, LISA_ANSWER = " What is {class_name} in this image? Please output segmentation mask.", "[SEG]."
GSVA_QUESTION = " What are {class_name} in this image? Please output segmentation masks."
GSVA_ANSWER = "{class_name}:[SEG]"


@dataclass
class ReferringSample:
    """What is asked about an image, with the right answers.

    Args:
        item (`ReferringItem`): The image.
        questions, answers (`list[str]`): One per conversation, without the token of the image and the chat template.
        masks (`np.ndarray`): `(expressions, height, width)` uint8; see `ReferredMask`.
    """

    item: ReferringItem
    questions: list[str]
    answers: list[str]
    masks: np.ndarray

    def example(self) -> Example:
        """For a processor, with bool masks. LISA's empty ones belong to a `[SEG]`, GSVA's are `None` for a `[REJ]`."""
        if self.item.original == "lisa":
            return Example(self.item.path, self.questions, self.answers, [[mask != 0] for mask in self.masks])
        masks = [mask != 0 if mask.any() else None for mask in self.masks]
        return Example(self.item.path, self.questions, self.answers, [masks])


def validation_sample(item: ReferringItem) -> ReferringSample:
    """
    All expressions of an image as the originals' evaluations ask for them. They give the answer, too, so that the
    model draws without writing.

    Args:
        item (`ReferringItem`): The image, read for `purpose="validation"`.

    Raises:
        DataFileError: If a mask cannot be painted.
    """
    masks, names = item.masks(), [text.strip().lower() for text in item.sentences]
    if item.original == "lisa":
        questions = [LISA_QUESTION.format(class_name=name) for name in names]
        return ReferringSample(item, questions, [LISA_ANSWER] * len(names), masks)
    # a space before the full stop stays
    names = [name.strip(".") for name in names]
    question = GSVA_QUESTION.replace("} in", "}in") if item.quirks.omits_space else GSVA_QUESTION
    parts = [answer_part(GSVA_ANSWER, name, not mask.any()) for name, mask in zip(names, masks, strict=True)]
    return ReferringSample(item, [question.format(class_name=", ".join(names))], [f"Sure,{', '.join(parts)}."], masks)


__all__ = ["ReferringSample", "validation_sample"]
