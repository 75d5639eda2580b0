"""What the processors of LLaVA models share that only talk: every row is a prompt about one picture or none."""

from collections.abc import Sequence
from typing import Any

from transformers.image_utils import ImageInput

from .chat_processor import ChatInputs, ChatProcessor
from .chat_templates import IMAGE_TOKEN, choose_chat_template
from .llava_image_tokens import LlavaImageTokens
from .prompt_rows import read_image_index, read_images
from .token_rows import TokenRows


class LlavaChatProcessor(LlavaImageTokens, ChatProcessor):
    """
    The models take one picture per row that has one, in the order of the rows.

    Subclasses name the arguments of `__init__` with their defaults, and hand rows and pictures to `_inputs_of_rows`.
    """

    answers_without_images = True

    def __init__(
        self,
        image_processor,
        tokenizer,
        patch_size,
        vision_feature_select_strategy,
        chat_template,
        image_token,
        num_additional_image_tokens,
        template,
    ):
        self._set_image_geometry(
            tokenizer, image_token, patch_size, vision_feature_select_strategy, num_additional_image_tokens
        )
        self.template = template
        # The marks around a picture are LLaVA v1's; no checkpoint of these models has them.
        super().__init__(
            image_processor, tokenizer, chat_template=choose_chat_template(template, chat_template, IMAGE_TOKEN)
        )

    def _merge_kwargs(self, *args, **kwargs):
        if "phrases" in kwargs:
            raise ValueError(
                f"{type(self).__name__} takes no `phrases`: its model writes text and draws no masks. Ask with `text`."
            )
        return super()._merge_kwargs(*args, **kwargs)

    def _inputs_of_rows(
        self,
        texts: Sequence[tuple[str, str | None]],
        pictures: Sequence[Any],
        options: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> ChatInputs:
        """
        Args:
            texts (`Sequence[tuple[str, str | None]]`): Message and answer of each row.
            pictures (`Sequence`): The picture of each row, `None` for a row without one.
            options (`dict`): Keyword arguments of the call, sorted by who takes them.
            kwargs (`dict`): The same as they were given.

        Raises:
            ValueError: If a row does not hold as many image tokens as it has pictures, or truncation would cut one
                off.
        """
        rows = [
            self._prompt_row(message, reply, kwargs.get("apply_template"), picture is not None)
            for (message, reply), picture in zip(texts, pictures, strict=True)
        ]
        for place, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
            count = row.conversation.count(self.image_token)
            if count != (picture is not None):
                raise ValueError(
                    f"Row {place} holds {count} {self.image_token} tokens and has "
                    f"{'no image' if picture is None else 'one image'}. Every row takes one image, with one token in "
                    "a whole prompt, or none of both; plain messages need no token."
                )
        pictures = [picture for picture in pictures if picture is not None]
        return self._model_inputs(rows, pictures or None, None, options, kwargs)

    def _image_of_rows(self, conversations, num_images, image_index):
        """Checked per row already; every row that holds the token has a picture of its own."""
        return None

    def _encode(
        self,
        conversations: list[str],
        images: list | None,
        index: list[int] | None,
        options: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> tuple[TokenRows, dict[str, Any]]:
        """Looks at a picture that several rows share once."""
        if images is None:
            return super()._encode(conversations, images, index, options, kwargs)
        different = {id(image): image for image in images}
        places = {key: place for place, key in enumerate(different)}
        index = [places[id(image)] for image in images]
        tokens, views = super()._encode(conversations, list(different.values()), index, options, kwargs)
        seen = views["pixel_values"]
        views["pixel_values"] = [seen[place] for place in index] if isinstance(seen, list) else seen[index]
        return tokens, views


def picture_of_rows(images: ImageInput | None, num_rows: int, image_index: list[int] | None) -> list[Any]:
    """
    Returns:
        `list`: The picture of each row, `None` for rows without one.

    Raises:
        ValueError: If rows and images do not match or an index names no image.
    """
    if images is None:
        if image_index is not None:
            raise ValueError("`image_index` was given without `images`.")
        return [None] * num_rows
    images = read_images(images)
    index = read_image_index(image_index, num_rows, len(images))
    return list(images) if index is None else [images[place] for place in index]


__all__ = ["LlavaChatProcessor", "picture_of_rows"]
