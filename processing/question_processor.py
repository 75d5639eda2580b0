"""What the processors of LLaVA models that only write text share: every row is a prompt about one image or none."""

from collections.abc import Sequence
from typing import Any

from transformers.image_utils import ImageInput
from transformers.processing_utils import Unpack

from .chat import read_image_index, read_images, read_texts
from .chat_processor import ChatInputs, ChatProcessorKwargs, LlavaChatProcessor, TokenRows


class LlavaQuestionProcessor(LlavaChatProcessor):
    """
    The models take one image per row that has one, in the order of the rows.

    Arguments are those of [`LlavaChatProcessor`].
    """

    answers_without_images = True

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[ChatProcessorKwargs],
    ) -> ChatInputs:
        r"""
        Every row is one prompt, about one image or none.

        Args:
            images (`ImageInput`, *optional*):
                One image per row, or one for all rows; of any kind that `load_rgb_image` reads. `None` in a list is
                a row without an image.
            text, answer, image_index, kwargs: As in [`ChatProcessor`].

        Returns:
            [`ChatInputs`]: `input_ids`, `attention_mask`, `pixel_values` with one entry per row that has an image, and
            `labels` where asked for. With `images` alone only `pixel_values`.

        Raises:
            ValueError: If texts, answers and images do not match, or truncation would cut off image tokens.
        """
        options = self._options(kwargs)
        if text is None:
            return self._images_alone(images, options, answer=answer)
        texts = read_texts(text, answer)
        return self._inputs_of_rows(texts, images_of_rows(images, len(texts), image_index), options)

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if "phrases" in kwargs:
            raise ValueError(
                f"{type(self).__name__} takes no `phrases`: its model writes text and draws no masks. Ask with `text`."
            )
        return super()._options(kwargs)

    def _images_alone(self, images: Any, options: dict[str, Any], **belonging_to_text) -> ChatInputs:
        if images is None:
            raise ValueError(f"{type(self).__name__} needs `text`, `images` or both; nothing was given.")
        for name, value in belonging_to_text.items():
            if value is not None:
                raise ValueError(f"`{name}` was given without `text`. Give the message that it belongs to.")
        return self._views_alone(images, options)

    def _inputs_of_rows(
        self, texts: Sequence[tuple[str, str | None]], images: Sequence[Any], options: dict[str, Any]
    ) -> ChatInputs:
        """
        Args:
            texts (`Sequence[tuple[str, str | None]]`): Message and answer of each row.
            images (`Sequence`): The image of each row, `None` for a row without one.
            options (`dict`): Arguments of the call, see [`ChatProcessor`].

        Raises:
            ValueError: If a row does not hold as many image tokens as it has images, or truncation would cut one off.
        """
        rows = []
        for index, ((message, reply), image) in enumerate(zip(texts, images, strict=True)):
            row = self._prompt_row(message, reply, options["apply_template"], image is not None)
            count = row.conversation.count(self.image_token)
            if count != (image is not None):
                raise ValueError(
                    f"Row {index} holds {count} {self.image_token} tokens and has "
                    f"{'no image' if image is None else 'one image'}. Every row takes one image, with one token in "
                    "a whole prompt, or neither; plain messages need no token."
                )
            rows.append(row)
        images = [image for image in images if image is not None]
        return self._model_inputs(rows, images or None, None, options)

    def _encode(
        self, conversations: list[str], images: list | None, index: list[int] | None, options: dict[str, Any]
    ) -> tuple[TokenRows, dict[str, Any]]:
        """Encodes an image that several rows share only once."""
        if images is None:
            return super()._encode(conversations, images, index, options)
        different = {id(image): image for image in images}
        position = {key: index for index, key in enumerate(different)}
        index = [position[id(image)] for image in images]
        tokens, views = super()._encode(conversations, list(different.values()), index, options)
        seen = views["pixel_values"]
        views["pixel_values"] = [seen[image] for image in index] if isinstance(seen, list) else seen[index]
        return tokens, views


def images_of_rows(images: ImageInput | None, num_rows: int, image_index: list[int] | None) -> list[Any]:
    """
    Returns:
        `list`: The image of each row, `None` for rows without one.

    Raises:
        ValueError: If rows and images do not match or an index names no image.
    """
    if images is None:
        if image_index is not None:
            raise ValueError("`image_index` was given without `images`.")
        return [None] * num_rows
    images = read_images(images)
    index = read_image_index(image_index, num_rows, len(images))
    return list(images) if index is None else [images[image] for image in index]


__all__ = ["LlavaQuestionProcessor", "images_of_rows"]
