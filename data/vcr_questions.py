"""Visual Commonsense Reasoning: questions whose objects are numbers in the text, visual prompts in the image."""

from collections.abc import Sequence

from ..processing.chat import IMAGE_TOKEN
from ..processing.visual_prompt_sampling import PromptRandom, PromptStyle, sample_styles
from .data_files import DataFileError
from .region_conversation import SHAPES_OF, PromptedRegion, RegionConversation, multiple_choice
from .region_data import RegionSample
from .region_wording import (
    ADJECTIVES,
    LETTER_ANSWERS,
    LETTERS,
    OPTIONS_PREFIXES,
    PUNCTUATION,
    QUESTION_PREFIXES,
    RATIONALE,
    WHY_QUESTIONS,
)


# A text of VCR: words, and lists of object numbers.
MixedText = Sequence[str | list[int]]
# No space is written before these.
_CLOSING = {".", ",", "?", "!", ":", ";"}


def vcr_conversation(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """Training: a question and its reason; each freely answered or with four choices, one time in two."""
    row = sample.fields
    has_choices, reason_has_choices = rng.python.random() < 0.5, rng.python.random() < 0.5
    answers, label = _choices(row["answer_choices"], row["answer_label"], has_choices)
    reasons, reason_label = _choices(row["rationale_choices"], row["rationale_label"], reason_has_choices)
    prompted = _PromptedObjects(sample, [row["question"], *answers, *reasons], "vcr", rng)

    question = prompted.in_words(row["question"])
    answers = [prompted.in_words(answer) for answer in answers]
    reasons = [prompted.in_words(reason) for reason in reasons]
    first = f"{IMAGE_TOKEN}\n{rng.python.choice(QUESTION_PREFIXES)}{question}"
    first += choose_options(answers, rng) if has_choices else ""
    answer = choose_answer(label, answers[label], rng) if has_choices else answers[label]
    second = rng.python.choice(WHY_QUESTIONS)
    second += choose_options(reasons, rng) if reason_has_choices else ""
    reason = choose_answer(reason_label, reasons[reason_label], rng) if reason_has_choices else reasons[reason_label]
    return prompted.conversation([(first, answer), (second, reason)])


def vcr_answer_test(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """Q->A: which of four answers is right."""
    row = sample.fields
    prompted = _PromptedObjects(sample, [row["question"], *row["answer_choices"]], "vcr_qa", rng, classes_only=True)
    question = prompted.in_words(row["question"])
    answers = [prompted.in_words(answer) for answer in row["answer_choices"]]
    text = f"{IMAGE_TOKEN}\n{multiple_choice(question, answers)}"
    return prompted.conversation([(text, LETTERS[row["answer_label"]])])


def vcr_rationale_test(sample: RegionSample, rng: PromptRandom) -> RegionConversation:
    """QA->R: which of four reasons is right, given the right answer."""
    row = sample.fields
    answer = row["answer_choices"][row["answer_label"]]
    prompted = _PromptedObjects(
        sample, [row["question"], answer, *row["rationale_choices"]], "vcr_qar", rng, classes_only=True
    )
    question, answer = prompted.in_words(row["question"]), prompted.in_words(answer)
    reasons = [prompted.in_words(reason) for reason in row["rationale_choices"]]
    text = IMAGE_TOKEN + "\n" + RATIONALE.format(question=question, answer=answer) + multiple_choice("", reasons)
    return prompted.conversation([(text, LETTERS[row["rationale_label"]])])


class _PromptedObjects:
    """The styles of all objects that some texts name, and these texts with the objects in words."""

    def __init__(
        self,
        sample: RegionSample,
        texts: Sequence[MixedText],
        shapes_of: str,
        rng: PromptRandom,
        classes_only: bool = False,
    ):
        shapes, self.drawing_style = SHAPES_OF[shapes_of]
        named = [number for text in texts for part in text if isinstance(part, list) for number in part]
        if unknown := sorted({number for number in named if not 0 <= number < len(sample.boxes)}):
            raise DataFileError(f"Row {sample.id!r} names the objects {unknown}; it has {len(sample.boxes)}.")
        # A set's order decides which object gets which style, here as in the original.
        self.objects = list(set(named))
        styles = sample_styles(rng, len(self.objects), shapes)
        self.styles: dict[int, PromptStyle] = dict(zip(self.objects, styles, strict=True))
        self.sample, self.rng, self.classes_only = sample, rng, classes_only

    def in_words(self, text: MixedText) -> str:
        """The text with "the person within the red rectangle" for its numbers."""
        words = ""
        for index, part in enumerate(text):
            if isinstance(part, str):
                words += part
            else:
                for nth, number in enumerate(part):
                    words += "The " if index == nth == 0 else " the "
                    words += self._one(number) + (" and" if nth < len(part) - 1 else "")
            following = text[index + 1] if index + 1 < len(text) else None
            if isinstance(following, str) and following not in _CLOSING:
                words += " "
        return words

    def _one(self, number: int) -> str:
        # Drawn even where the class is always named, so that later draws are the same as in the original.
        hide_class = self.rng.python.random() < 0.5 and not self.classes_only
        noun = (
            self.rng.python.choice(["object", "instance"]) if hide_class else self.sample.fields["class_names"][number]
        )
        return f"{noun} {self.styles[number].describe(article=self.rng.python.random() < 0.5)}"

    def conversation(self, turns: list[tuple[str, str]]) -> RegionConversation:
        regions = [
            PromptedRegion(self.styles[number], self.sample.boxes[number], self.sample.segmentations[number])
            for number in self.objects
        ]
        return RegionConversation(turns, regions, self.drawing_style)


def choose_options(choices: Sequence[str], rng: PromptRandom) -> str:
    """The choices in brackets, after the question."""
    lettered = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return f" {rng.python.choice(OPTIONS_PREFIXES)}{' '.join(lettered)}"


def choose_answer(label: int, content: str, rng: PromptRandom) -> str:
    """The letter of the right choice, in one of several wordings."""
    content = content[:1].lower() + content[1:]
    # The original fills all wordings before it draws one of them.
    adjectives = [rng.python.choice(ADJECTIVES) for _ in range(2)]
    punctuation = [rng.python.choice(PUNCTUATION) for _ in range(2)]
    adjectives += [rng.python.choice(ADJECTIVES) for _ in range(4)]
    wording = rng.python.choice(LETTER_ANSWERS)
    filled = wording.format(letter=LETTERS[label], content=content, adjectives=adjectives, punctuation=punctuation)
    return filled.replace("—", "-")


def _choices(choices: list[MixedText], label: int, all_of_them: bool) -> tuple[list[MixedText], int]:
    return (choices, label) if all_of_them else ([choices[label]], 0)


__all__ = ["choose_answer", "choose_options", "vcr_answer_test", "vcr_conversation", "vcr_rationale_test"]
