"""How LISA and GSVA word training data: questions, answers with slots, and the random calls that choose them.

The strings are those of the public code (dvlab-research/LISA utils/utils.py, LeapLabTHU/GSVA
model/llava/constants.py): a model that was trained with them expects them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .data_files import DataFileError
from .visual_conversations import IMAGE_TOKEN


SEG, REJ = "[SEG]", "[REJ]"

# One thing is asked for; ReasonSeg's short queries use these in both systems.
SHORT_QUESTIONS = (
    "<image>\nCan you segment the {class_name} in this image?",
    "<image>\nPlease segment the {class_name} in this image.",
    "<image>\nWhat is {class_name} in this image? Please respond with segmentation mask.",
    "<image>\nWhat is {class_name} in this image? Please output segmentation mask.",
)
# GSVA asks for several things at once.
SHORT_QUESTIONS_FOR_SEVERAL = (
    "<image>\nCan you segment {class_name} in this image?",
    "<image>\nPlease segment {class_name} in this image.",
    "<image>\nWhat are {class_name} in this image? Please respond with segmentation masks.",
    "<image>\nWhat are {class_name} in this image? Please output segmentation masks.",
)
LONG_QUESTIONS = (
    "<image>\n{sent} Please respond with segmentation mask.",
    "<image>\n{sent} Please output segmentation mask.",
)
EXPLANATORY_QUESTIONS = (
    "Please output segmentation mask and explain why.",
    "Please output segmentation mask and explain the reason.",
    "Please output segmentation mask and give some explanation.",
)
# GSVA's copy has a slip.
MISSPELT_EXPLANATORY_QUESTIONS = (
    *EXPLANATORY_QUESTIONS[:2],
    "Please output segmentation mask and give some explaination.",
)
ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
# Of GSVA's answers the beginning, and what is said about each thing; they end with a full stop.
ANSWER_STYLES = (
    ("The segmentation results are", "{class_name} [SEG]"),
    ("Sure, they are", "{class_name}:[SEG]"),
    ("Sure,", "the mask of {class_name} is [SEG]"),
    ("Sure,", "the segmentation of {class_name} is [SEG]"),
    ("Sure,", "the referred {class_name} is [SEG]"),
)

SYSTEM_MESSAGE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


class RandomCalls(Protocol):
    """The random calls of the originals. They come from two generators, Python's and numpy's, in a fixed order, so
    that an item can be replayed from a log of them."""

    def index(self, count: int) -> int:
        """`random.randint(0, count - 1)`."""

    def fraction(self) -> float:
        """`random.random()`."""

    def choice(self, count: int) -> int:
        """Index of what `random.choice` takes from a list of so many."""

    def subset(self, count: int, size: int) -> list[int]:
        """Indices of what `np.random.choice(list, size, replace=False)` takes, in the order it draws them."""

    def weighted(self, probabilities: Sequence[float]) -> int:
        """`np.random.choice(len(probabilities), p=probabilities)`."""

    def style(self, count: int) -> int:
        """`np.random.randint(0, count)`."""


class SeededCalls:
    """
    [`RandomCalls`] that give what the originals give after `random.seed` and `np.random.seed`.

    Args:
        seed (`int`): Of Python's generator.
        numpy_seed (`int`, *optional*): Of numpy's, below 2**32; the same by default.
    """

    def __init__(self, seed: int, numpy_seed: int | None = None):
        self.python = random.Random(seed)
        self.numpy = np.random.RandomState(seed if numpy_seed is None else numpy_seed)

    def index(self, count: int) -> int:
        return self.python.randint(0, count - 1)

    def fraction(self) -> float:
        return self.python.random()

    def choice(self, count: int) -> int:
        return self.python.choice(range(count))

    def subset(self, count: int, size: int) -> list[int]:
        return self.numpy.choice(count, size=size, replace=False).tolist()

    def weighted(self, probabilities: Sequence[float]) -> int:
        return int(self.numpy.choice(len(probabilities), p=probabilities))

    def style(self, count: int) -> int:
        return int(self.numpy.randint(0, count))


@dataclass(frozen=True)
class Wording:
    """
    Args:
        together (`bool`): One conversation per image asks for everything at once, as in GSVA; else each target has a
            conversation of its own, as in LISA.
        rejects (`bool`): Empty masks of referring expressions are answered by `[REJ]`.
        explanatory (`tuple[str, ...]`): Requests for a mask and an explanation.
        fixed (`bool`): GSVA replaces the letters SEG by REJ wherever they stand, in names, too. `True` replaces the
            slot alone.
    """

    together: bool
    rejects: bool
    explanatory: tuple[str, ...]
    fixed: bool = False


def wording_of(system: str, fixed: bool = False) -> Wording:
    """The wording of `"lisa"` or `"gsva"`, its slips mended if `fixed`."""
    if system == "lisa":
        return Wording(together=False, rejects=False, explanatory=EXPLANATORY_QUESTIONS, fixed=fixed)
    if system == "gsva":
        explanatory = EXPLANATORY_QUESTIONS if fixed else MISSPELT_EXPLANATORY_QUESTIONS
        return Wording(together=True, rejects=True, explanatory=explanatory, fixed=fixed)
    raise ValueError(f"The system is {system!r}; allowed are 'lisa' and 'gsva'.")


def ask_for_one(text: str, random_calls: RandomCalls) -> list[str]:
    """Question and answer about one thing: the text in lower case, which the answer does not name."""
    question = SHORT_QUESTIONS[random_calls.choice(len(SHORT_QUESTIONS))].format(class_name=text.lower())
    return [question, ANSWERS[random_calls.choice(len(ANSWERS))]]


def ask_for_several(
    texts: Sequence[str], rejected: Sequence[bool], separator: str, random_calls: RandomCalls, fixed: bool = False
) -> list[str]:
    """
    One question about several things and its answer with a slot for each.

    Args:
        texts (`Sequence[str]`): What they are called: the question is in lower case, the answer keeps the case.
        rejected (`Sequence[bool]`): Which of them are answered by `[REJ]`.
        separator (`str`): Between the parts of the answer: `","` for classes and `", "` for expressions, as in GSVA.
        random_calls ([`RandomCalls`]): Chooses the style of the answer, then the question.
        fixed (`bool`): See [`Wording`].
    """
    start, part = ANSWER_STYLES[random_calls.style(len(ANSWER_STYLES))]
    question = SHORT_QUESTIONS_FOR_SEVERAL[random_calls.choice(len(SHORT_QUESTIONS_FOR_SEVERAL))]
    parts = [answer_part(part, text, no_target, fixed) for text, no_target in zip(texts, rejected, strict=True)]
    return [question.format(class_name=", ".join(texts).lower()), f"{start} {separator.join(parts)}."]


def answer_part(template: str, text: str, rejected: bool, fixed: bool = False) -> str:
    """What GSVA's answer says of one thing: `template` with its name and its slot; for `fixed` see [`Wording`]."""
    if rejected and fixed:
        return template.replace(SEG, REJ).format(class_name=text)
    written = template.format(class_name=text)
    return written.replace("SEG", "REJ") if rejected else written


def ask_by_reasoning(
    text: str, is_sentence: bool, case: int | None, explanation: str, wording: Wording, random_calls: RandomCalls
) -> list[str]:
    """
    Question and answer about a query of ReasonSeg.

    Args:
        text (`str`): The query, in its own case.
        is_sentence (`bool`): It is a sentence; else a name, which is asked for in lower case.
        case (`int`, *optional*): With an explanation: 0 answers with the slot alone, 1 with the slot and the
            explanation, 2 with the explanation alone. `None` where there is no explanation.
        explanation (`str`): What is answered in cases 1 and 2.
        wording ([`Wording`]): The system's.
        random_calls ([`RandomCalls`]): Chooses the question in every case, also where another is asked instead.
    """
    if is_sentence:
        question = LONG_QUESTIONS[random_calls.choice(len(LONG_QUESTIONS))].format(sent=text)
    else:
        question = SHORT_QUESTIONS[random_calls.choice(len(SHORT_QUESTIONS))].format(class_name=text.lower())
    if case == 2:
        return [f"{IMAGE_TOKEN}\n{text}", explanation]
    answer = ANSWERS[random_calls.choice(len(ANSWERS))]
    if case == 1:
        request = wording.explanatory[random_calls.choice(len(wording.explanatory))]
        return [f"{IMAGE_TOKEN}\n{text} {request}", f"{answer} {explanation}"]
    return [question, answer]


def checked_text(text: str, what: str, may_be_empty: bool = True) -> str:
    """
    Raises:
        DataFileError: If a text holds `||`, with which the originals separate texts, or is empty and may not be.
    """
    if "||" in text or not (text or may_be_empty):
        raise DataFileError(f"{what} has the text {text!r}; it must not {'hold ||' if text else 'be empty'}.")
    return text


def render_conversation(messages: Sequence[str]) -> str:
    """
    A conversation as the originals' template `llava_v1` writes it, with `<image>` as it stands.

    Args:
        messages (`Sequence[str]`): The user's and the assistant's in turns.

    Example:
        >>> render_conversation(["Hi", "Hello"])[-30:]
        'USER: Hi ASSISTANT: Hello</s>'
    """
    turns = (
        # a message without text loses its separator, too
        f"{('USER', 'ASSISTANT')[number % 2]}:" + (f" {text}{(' ', '</s>')[number % 2]}" if text else "")
        for number, text in enumerate(messages)
    )
    return f"{SYSTEM_MESSAGE} {''.join(turns)}"


__all__ = [
    "ANSWERS",
    "ANSWER_STYLES",
    "EXPLANATORY_QUESTIONS",
    "LONG_QUESTIONS",
    "MISSPELT_EXPLANATORY_QUESTIONS",
    "REJ",
    "SEG",
    "SHORT_QUESTIONS",
    "SHORT_QUESTIONS_FOR_SEVERAL",
    "SYSTEM_MESSAGE",
    "RandomCalls",
    "SeededCalls",
    "Wording",
    "answer_part",
    "ask_by_reasoning",
    "ask_for_one",
    "ask_for_several",
    "checked_text",
    "render_conversation",
    "wording_of",
]
