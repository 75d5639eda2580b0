"""One image with what is said about it: what every reader gives, and training and evaluation take."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


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


@dataclass
class MaskingExample:
    """
    One image with an instruction and what of the image it needs, for visual masking.

    Args:
        image (`PIL.Image.Image`): RGB.
        instruction (`str`): What somebody wants to know or do.
        mask (`np.ndarray`): `(height, width)` of the image, float32 in [0, 1]: how much each pixel matters for it.
        human (`bool`): Whether a person drew the mask, not a machine.
        weight (`float`): Weight of this example's loss.
    """

    image: Image.Image
    instruction: str
    mask: np.ndarray
    human: bool = True
    weight: float = 1.0


__all__ = ["Example", "MaskingExample"]
