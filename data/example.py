"""One image with what is said about it: what every reader gives, and training and evaluation take."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Example:
    """
    One image with everything that is said about it.

    Args:
        image: Whatever the processor takes: a Pillow image, an array, a path.
        questions (`list[str]`): One user message per conversation.
        answers (`list[str]`): The answers, with one `[SEG]` or `[REJ]` per target; a plain answer has none.
        masks (`list[list[Any | None]]`): Per conversation one mask per slot, `None` for `[REJ]`: anything that
            `read_mask` takes, at the size of the upright image (EXIF orientation applied). Arrays may also hold
            floating-point values in [0, 1], for soft edges.
    """

    image: Any
    questions: list[str]
    answers: list[str]
    masks: list[list[Any | None]]


__all__ = ["Example"]
