"""What is asked of a model, and the images of a request, which are never fetched from anywhere."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..processing.chat import check_words
from ..processing.image_loading import MAX_IMAGE_PIXELS, ImageTooLargeError, load_rgb_image, open_image
from .limits import Limits, RefusedError


_LONGEST_WORD = 64  # bytes; longer than those of any language


@dataclass(frozen=True)
class ReadImage:
    """
    Args:
        pixels (`PIL.Image.Image`): Upright, RGB.
        key (`str`): Equal for equal images.
    """

    pixels: Image.Image
    key: str


@dataclass(frozen=True)
class Question:
    """
    One request: exactly one of `text`, `phrases` and `messages`.

    Args:
        images (`tuple[ReadImage, ...]`): One for `text` and `phrases`, any number for `messages`.
        text (`str`, *optional*): A question, or a whole prompt with its image token; the model writes the answer.
        phrases (`tuple[str, ...]`, *optional*): The answer is forced, with one segment per phrase.
        messages (`tuple[dict, ...]`, *optional*):
            A conversation as chat templates take it, the last message a user's, for processors that are not this
            package's.
        max_new_tokens (`int`, *optional*): Longest answer; by default as the model says, within the limits.
        mask_threshold (`float`): Pixels with a larger mask logit belong to a segment.
        reject_threshold (`float`, *optional*): Reject slots whose probability of being `[SEG]` is lower.
        sampling (`dict`): Options of generation where the most likely token is not always to be taken.
        seed (`int`, *optional*): Of the sampling.
        stream (`bool`): Whether the answer is sent while it is written.
    """

    images: tuple[ReadImage, ...]
    text: str | None = None
    phrases: tuple[str, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    max_new_tokens: int | None = None
    mask_threshold: float = 0.0
    reject_threshold: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    stream: bool = False

    @property
    def num_pixels(self) -> int:
        """`int`: of all images."""
        return sum(image.pixels.width * image.pixels.height for image in self.images)

    @property
    def batch_key(self) -> tuple | None:
        """What questions of one batch have in common; `None` for one that is answered on its own."""
        # What is drawn from a seed would depend on the neighbours.
        if self.messages is not None or (self.sampling and self.seed is not None):
            return None
        kind, sampling = "text" if self.phrases is None else "phrases", tuple(sorted(self.sampling.items()))
        return (kind, self.mask_threshold, self.reject_threshold, sampling)


# ---- images ---------------------------------------------------------------------------------------------------------


def image_bytes(given: str) -> bytes:
    """The file that a string holds, as base64 or as a `data:` URL.

    Raises:
        RefusedError: It is another URL, which is not fetched, or no base64 (422).
    """
    text = given.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RefusedError(422, "The image is a data: URL without base64. Send `data:image/png;base64,...`.")
    elif "://" in text[:40]:
        raise RefusedError(
            422,
            f"The image is the URL {text[:60]!r}, and this server fetches none. Send the file itself, as base64 or as "
            "`data:image/png;base64,...`.",
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            422, "The image is not valid base64. Encode the whole file, such as a PNG or JPEG."
        ) from None


def read_image(content: bytes, max_image_pixels: int) -> ReadImage:
    """Decode an image file.

    Raises:
        RefusedError: It is none (422), or has too many pixels (413).
    """
    if not content:
        raise RefusedError(422, "The image is empty. Send a file such as a PNG or JPEG.")
    try:
        with open_image(content, max_image_pixels) as opened:
            pixels = load_rgb_image(opened, max_image_pixels)
    except ImageTooLargeError as error:
        raise RefusedError(413, str(error).replace("`max_image_pixels`", "the server's --max-image-pixels")) from None
    except ValueError as error:
        # Pillow names the object in memory where a file would have a path.
        raise RefusedError(422, re.sub(r"\s*<_io\.BytesIO[^>]*>", "", str(error))) from None
    return ReadImage(pixels, hashlib.sha256(content).hexdigest())


def pixel_limit(processor: Any, limits: Limits) -> int:
    """Largest height x width of an image for this processor."""
    return limits.max_image_pixels or getattr(processor, "max_image_pixels", MAX_IMAGE_PIXELS)


# ---- texts ----------------------------------------------------------------------------------------------------------


def check_texts(processor: Any, asked: list[str], answered: list[str], limits: Limits) -> None:
    """Refuse texts that the model cannot read as they are meant.

    Args:
        processor: Has a tokenizer.
        asked (`list[str]`): What users say, or phrases.
        answered (`list[str]`): Earlier answers, which may hold `[SEG]` and `[REJ]`.
        limits ([`Limits`]): `max_text_tokens` of it.

    Raises:
        RefusedError: A text is no Unicode, holds a token with a meaning of its own, or they are too long (422).
    """
    for text in (*asked, *answered):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RefusedError(
                422, "A text holds halves of characters (lone surrogates), so it is no Unicode. Send valid UTF-8."
            ) from None
    # No text has more tokens than bytes; to search in a text or to count its tokens takes time.
    size = sum(len(text.encode()) for text in (*asked, *answered))
    if size > _LONGEST_WORD * limits.max_text_tokens:
        raise _too_long(size, "bytes", limits)
    try:
        for texts, are_answers in ((asked, False), (answered, True)):
            for text in texts:
                check_words(processor, text, "The text", are_answers)
    except ValueError as error:
        raise RefusedError(422, f"{error} Images are sent beside the text.") from None
    if size > limits.max_text_tokens:
        count = sum(map(len, processor.tokenizer([*asked, *answered])["input_ids"]))
        if count > limits.max_text_tokens:
            raise _too_long(count, "tokens", limits)


def _too_long(count: int, what: str, limits: Limits) -> RefusedError:
    return RefusedError(
        422,
        f"The text has {count} {what}, more than the {limits.max_text_tokens} tokens allowed. Shorten it, or have the "
        "server started with a larger --max-text-tokens.",
    )


def check_new_tokens(asked: int | None, limits: Limits) -> None:
    """Refuse an answer that would be too long (422)."""
    if asked is not None and asked > limits.max_new_tokens:
        raise RefusedError(
            422,
            f"An answer of up to {asked} tokens was asked for, more than the {limits.max_new_tokens} allowed. Ask for "
            "fewer, or have the server started with a larger --max-new-tokens.",
        )


def check_phrases(phrases: list[str], limits: Limits) -> None:
    """Refuse no phrases, empty ones and too many (422)."""
    if len(phrases) > limits.max_phrases:
        raise RefusedError(
            422,
            f"{len(phrases)} phrases were given, more than the {limits.max_phrases} allowed. Send them in several "
            "requests, or have the server started with a larger --max-phrases.",
        )
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise RefusedError(422, "A phrase is empty. Give the name or description of something.")


__all__ = [
    "Question",
    "ReadImage",
    "check_new_tokens",
    "check_phrases",
    "check_texts",
    "image_bytes",
    "pixel_limit",
    "read_image",
]
