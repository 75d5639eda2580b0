"""How a checkpoint asks for phrases and how it answers: the words around them, as plain fields of its processor."""

import re
from typing import Any


# Fields of a wording:
#   question, questions   message for one phrase and for several; {phrases}
#   answer, answers       answer to them; {items} and, where one phrase needs no name, {seg}
#   item                  one phrase of the answer with its slot; {phrase}, {seg}
#   separator             between phrases and between items
#   lower_case, strip_full_stops
#                         whether phrases are written in lower case and without full stops around them
#   omit_space_after_phrases
#                         leaves out the space behind {phrases} in the question

# LISA's validation sets (utils/dataset.py, ValDataset); the space follows the line break behind the image. The
# questions for several phrases are those of its multiple-target instruction data.
LISA_WORDING = {
    "question": " What is {phrases} in this image? Please output segmentation mask.",
    "questions": "What are {phrases} in this image? Please output segmentation masks.",
    "answer": "{seg}.",
    "answers": "Sure, {items}.",
    "item": "{phrase} {seg}",
    "separator": ", ",
    "lower_case": False,
    "strip_full_stops": False,
    "omit_space_after_phrases": False,
}

# GSVA's evaluation (data/refer_seg_dataset.py). `omit_space_after_phrases` repeats a slip of that code, "umbrellain
# this image": the published numbers were measured with it.
GSVA_WORDING = {
    "question": " What are {phrases} in this image? Please output segmentation masks.",
    "questions": " What are {phrases} in this image? Please output segmentation masks.",
    "answer": "Sure,{items}.",
    "answers": "Sure,{items}.",
    "item": "{phrase}:{seg}",
    "separator": ", ",
    "lower_case": True,
    "strip_full_stops": True,
    "omit_space_after_phrases": True,
}

GENERIC_WORDING = {
    "question": "Please segment {phrases} in this image.",
    "questions": "Please segment {phrases} in this image.",
    "answer": "Sure, {items}.",
    "answers": "Sure, {items}.",
    "item": "{phrase}: {seg}",
    "separator": ", ",
    "lower_case": False,
    "strip_full_stops": False,
    "omit_space_after_phrases": False,
}

# Attend-and-segment has no slot token: the words of a phrase point. The question is that of its evaluations.
DESCRIPTION_WORDING = {
    **GENERIC_WORDING,
    "question": "Describe the image in detail.",
    "questions": "Describe the image in detail.",
    "answer": "The image shows {items}.",
    "answers": "The image shows {items}.",
    "item": "{phrase}{seg}",
}

_PLACEHOLDERS = {
    "question": {"phrases"},
    "questions": {"phrases"},
    "answer": {"phrases", "items", "seg"},
    "answers": {"phrases", "items"},
    "item": {"phrase", "seg"},
}


def complete_wording(wording: dict[str, Any] | None, default: dict[str, Any]) -> dict[str, Any]:
    """
    Args:
        wording (`dict`, *optional*): Fields that differ from `default`.
        default (`dict`): A complete wording.

    Returns:
        `dict`: All fields.

    Raises:
        ValueError: If a field or a placeholder is unknown, or a slot would be missing.
    """
    unknown = sorted(set(wording or {}) - set(default))
    if unknown:
        raise ValueError(f"Unknown wording fields {unknown}; there are {sorted(default)}.")
    complete = {**default, **(wording or {})}
    for field, allowed in _PLACEHOLDERS.items():
        used = set(re.findall(r"\{(\w*)\}", complete[field]))
        if not used <= allowed:
            raise ValueError(
                f"The wording's {field} {complete[field]!r} may use {sorted(allowed)}, not {sorted(used)}."
            )
    for field, slot in (("item", {"{seg}"}), ("answer", {"{seg}", "{items}"}), ("answers", {"{items}"})):
        if not any(name in complete[field] for name in slot):
            raise ValueError(f"The wording's {field} {complete[field]!r} must hold {' or '.join(sorted(slot))}.")
    return complete


def clean_phrase(wording: dict[str, Any], phrase: str) -> str:
    """The phrase as the prompt shall hold it."""
    phrase = phrase.strip()
    if wording["strip_full_stops"]:
        phrase = phrase.strip(".")
    return phrase.lower() if wording["lower_case"] else phrase


def ask_and_answer(wording: dict[str, Any], phrases: list[str], seg_token: str) -> tuple[str, str]:
    """
    Args:
        wording (`dict`): A complete wording.
        phrases (`list[str]`): What is asked for, at least one phrase, already cleaned.
        seg_token (`str`): The token that asks for a mask.

    Returns:
        `tuple[str, str]`: The user's message and the answer with one slot per phrase, in order.
    """
    question, answer = ("question", "answer") if len(phrases) == 1 else ("questions", "answers")
    question, answer = wording[question], wording[answer]
    if wording["omit_space_after_phrases"]:
        question = question.replace("{phrases} ", "{phrases}")
    items = [_fill(wording["item"], phrase=phrase, seg=seg_token) for phrase in phrases]
    joined = wording["separator"].join(phrases)
    return (
        _fill(question, phrases=joined),
        _fill(answer, phrases=joined, items=wording["separator"].join(items), seg=seg_token),
    )


def _fill(template: str, **values: str) -> str:
    # in one pass, so that braces in a phrase stay what they are
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


__all__ = [
    "DESCRIPTION_WORDING",
    "GENERIC_WORDING",
    "GSVA_WORDING",
    "LISA_WORDING",
    "ask_and_answer",
    "clean_phrase",
    "complete_wording",
]
