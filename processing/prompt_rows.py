"""Check the arguments of a processor call and bring them into rows: one prompt about one picture each."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .chat_templates import TurnMarkers


@dataclass(frozen=True)
class PromptRow:
    """
    One row of a batch as text.

    Args:
        conversation (`str`): The whole prompt, with its answer where there is one; one image token per picture.
        phrases (`tuple[str, ...]`, *optional*): What was asked for, one phrase per slot of the answer, as given.
        answer_start (`int`, *optional*):
            Where a given answer begins in `conversation`, if it was put behind a prompt as it is: that prompt need
            not hold the words by which answers are found otherwise.
    """

    conversation: str
    phrases: tuple[str, ...] | None = None
    answer_start: int | None = None

    def find_answers(self, markers: TurnMarkers | None) -> list[tuple[int, int]]:
        """Character ranges of all answers, see [`TurnMarkers.find_answers`]."""
        answers = markers.find_answers(self.conversation) if markers else []
        start = self.answer_start
        if start is not None and not any(first <= start <= last for first, last in answers):
            answers.append((start, len(self.conversation)))
        return answers


def read_texts(text: Any, answer: Any) -> list[tuple[str, str | None]]:
    """
    Returns:
        `list[tuple[str, str | None]]`: Message and answer of each row.

    Raises:
        ValueError: If something is not a string, a text is blank, or there are not as many answers as texts.
    """
    texts = _strings(text, "text")
    for place, message in enumerate(texts):
        if not message.strip():
            raise ValueError(f"Entry {place} of text is empty. Ask something.")
    if answer is None:
        return [(message, None) for message in texts]
    answers = _strings(answer, "answer")
    if len(texts) != len(answers):
        raise ValueError(f"{len(texts)} texts and {len(answers)} answers were given. Give one answer per text.")
    return list(zip(texts, answers, strict=True))


def read_phrases(phrases: Any) -> list[list[str]]:
    """
    Args:
        phrases: One list of strings per row; a single list of strings is one row, a single string one phrase of one.

    Raises:
        ValueError: If there is no phrase, a row has none, or something else than a string was given.
    """
    rows = [phrases] if isinstance(phrases, str) else _ordered(phrases)
    if rows is None:
        raise ValueError(
            f"phrases is of type {type(phrases).__name__}. Give a phrase, a list of phrases for one row, or a list of "
            "such lists, one per row."
        )
    if rows and all(isinstance(phrase, str) for phrase in rows):
        rows = [rows]
    if not rows:
        raise ValueError("phrases is empty. Give at least one row of at least one string.")
    read = [None if isinstance(row, str) else _ordered(row) for row in rows]
    for index, row in enumerate(read):
        if not row or not all(isinstance(phrase, str) for phrase in row):
            raise ValueError(
                f"Row {index} of phrases is {rows[index]!r}. Each row must be a list of at least one string."
            )
    return read


def read_images(images: Any) -> list:
    """
    Args:
        images: One picture, a list of them, an array of several, or a list with one list of one picture per row.

    Returns:
        `list`: The pictures.

    Raises:
        ValueError: If there is no picture, or a row has none or several.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    if not isinstance(images, (list, tuple)):
        return [images]
    if any(isinstance(row, (list, tuple)) for row in images):
        counts = [len(row) if isinstance(row, (list, tuple)) else 1 for row in images]
        if set(counts) != {1}:
            raise ValueError(f"The rows have {counts} images. Each row needs exactly one.")
        return [row[0] if isinstance(row, (list, tuple)) else row for row in images]
    if not images:
        raise ValueError("images is an empty list. Give one image per text, or one for all.")
    return list(images)


def read_image_index(image_index: Any, num_rows: int, num_images: int) -> list[int] | None:
    """
    Returns:
        `list[int]`, *optional*: The image of each row; `None` where row and image have the same place.

    Raises:
        ValueError: If rows and images do not match or an index names no image.
    """
    if image_index is None:
        if num_images == num_rows:
            return None
        if num_images == 1:
            return [0] * num_rows
        raise ValueError(
            f"{num_rows} texts and {num_images} images were given: the number of image tokens in the prompts should "
            "be the same as the number of images. Give one image per text, one image for all, or `image_index` with "
            "the image of each text. Phrases count as one text per list of them: one phrase for each of two images is "
            '[["a cup"], ["a dog"]].'
        )
    index = image_index.tolist() if isinstance(image_index, (np.ndarray, torch.Tensor)) else list(image_index)
    if len(index) != num_rows or not all(0 <= place < num_images for place in index):
        raise ValueError(
            f"image_index {index} must have one entry per text ({num_rows}), each naming an image (0 to "
            f"{num_images - 1})."
        )
    return [int(place) for place in index]


def check_image_tokens(conversations: Sequence[str], image_token: str, num_images: int | None) -> bool:
    """
    Args:
        conversations (`Sequence[str]`): Whole prompts.
        image_token (`str`): What stands for a picture in them.
        num_images (`int`, *optional*): Number of given pictures; `None` where none were given.

    Returns:
        `bool`: Whether the prompts are about pictures.

    Raises:
        ValueError: If a prompt does not hold exactly one image token, or tokens without pictures.
    """
    counts = [conversation.count(image_token) for conversation in conversations]
    if num_images is None:
        if any(counts):
            raise ValueError(
                f"The texts hold {counts} {image_token} tokens but no images were passed. Every text needs its image: "
                "one per text, one for all, or `image_index`."
            )
        return False
    if set(counts) != {1}:
        raise ValueError(
            f"The texts hold {counts} {image_token} tokens, and {num_images} images were passed. Each text must hold "
            f"exactly one {image_token}; leave it out of plain messages, which the chat template puts behind it."
        )
    return True


def _ordered(values: Any) -> list | None:
    """The entries of a list, a tuple, an array, a column, ...; `None` for what is no row of entries."""
    has_entries = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, Set))
    return list(values) if has_entries else None


def _strings(values: Any, name: str) -> list[str]:
    values = [values] if isinstance(values, str) else list(values)
    if not values:
        raise ValueError(f"{name} is empty. Give at least one string.")
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"Entry {place} of {name} is of type {type(value).__name__}; each must be a string.")
    return values


__all__ = ["PromptRow", "check_image_tokens", "read_image_index", "read_images", "read_phrases", "read_texts"]
