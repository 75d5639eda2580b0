"""Pictures and messages in, model inputs out: what every processor of this package does with prompts."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .chat_templates import TurnMarkers, assistant_message, find_turn_markers, user_message
from .image_loading import MAX_IMAGE_PIXELS
from .prompt_rows import PromptRow, check_image_tokens, read_image_index, read_images
from .token_rows import TokenRows, check_nothing_cut, label_answers, pad, truncate


# What the processor itself does with rows of tokens after encoding; encoders get the rest.
_ROW_OPTIONS = ("padding", "padding_side", "pad_to_multiple_of", "max_length", "truncation", "return_tensors")


# Called with a processor and what it made, at every call. Empty in published code; the package adds to it.
INPUT_OBSERVERS: list[Callable[["ChatProcessor", "ChatInputs"], None]] = []


def without_row_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that concern finished rows."""
    return {name: value for name, value in kwargs.items() if name not in _ROW_OPTIONS}


class ChatProcessorKwargs(ProcessingKwargs, total=False):
    r"""
    return_labels (`bool`, *optional*, defaults to `False`):
        Whether to return `labels`: the ids of the answers with their end markers, -100 everywhere else.
    apply_template (`bool`, *optional*):
        Whether to wrap `text` in the chat template. By default a text that holds the image token is a whole prompt and
        everything else a message. `False` also allows prompts without a picture.
    """

    return_labels: bool
    apply_template: bool | None


class ChatInputs(BatchFeature):
    """
    Model inputs that remember their text.

    Attributes:
        rows (`list[PromptRow]`):
            Prompt, answer and phrases of each row. Not an entry, so that `model(**inputs)` works; it survives
            `.to(device)`, copies and pickling.
        images (`list`):
            The images as they were given, for results to be drawn on. They survive `.to(device)` and copies; pickles,
            which travel between processes, leave them out.
    """

    rows: list[PromptRow] | None = None
    images: list | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "rows": self.rows}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.rows = state.get("rows")


def image_of_row(inputs: Any, row: int) -> Any:
    """The image of a row of the inputs as it was given; None where they do not know it."""
    images = getattr(inputs, "images", None)
    if images is None:
        return None
    index = inputs.get("image_index")
    return images[row if index is None else int(index[row])]


class ChatProcessor(ProcessorMixin):
    """
    Prompts, answers, labels, truncation and padding.

    Subclasses have the attributes `tokenizer`, `chat_template`, `image_token` and `image_token_id`, read their
    arguments into rows, hand these to `_model_inputs`, and implement `_encode` and `_encode_images`.
    """

    valid_processor_kwargs = ChatProcessorKwargs
    inputs_class = ChatInputs
    text_kwargs = {"padding": True}
    return_labels = False
    # Whether a message may come without a picture.
    answers_without_images = False

    @property
    def max_image_pixels(self) -> int:
        """`int`: Largest height x width of a picture; a larger one is refused before it is decoded."""
        return getattr(self.image_processor, "max_image_pixels", MAX_IMAGE_PIXELS)

    @property
    def feature_extractor(self) -> "ChatProcessor":
        """
        [`ChatProcessor`]: Itself. Pipelines of transformers save what their processor has under this name, and not the
        processor, without which the checkpoint cannot be loaded.
        """
        return self

    def _model_inputs(
        self,
        rows: list[PromptRow],
        images: Any,
        image_index: list[int] | None,
        options: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> ChatInputs:
        """
        Args:
            rows (`list[PromptRow]`): Prompts with their answers.
            images: One picture per row, or one for all rows; `None` without pictures.
            image_index (`list[int]`, *optional*): The image of each row, where rows share images.
            options (`dict`): Keyword arguments of the call, sorted by who takes them.
            kwargs (`dict`): The same as they were given.

        Raises:
            ValueError: If prompts and images do not match, or truncation would cut off what must stay.
        """
        conversations = [row.conversation for row in rows]
        if images is None and image_index is not None:
            raise ValueError("`image_index` was given without `images`.")
        images = None if images is None else read_images(images)
        index = self._image_of_rows(conversations, None if images is None else len(images), image_index)
        row_options = {name: options["text_kwargs"].get(name) for name in _ROW_OPTIONS}
        tokens, views = self._encode(conversations, images, index, options, kwargs)
        markers = self._markers()
        answers = [row.find_answers(markers) for row in rows]
        if options["return_labels"]:
            if markers is None:
                raise ValueError("Labels need a chat template that shows where answers stand; this one does not.")
            special = options["text_kwargs"].get("add_special_tokens", True)
            tokens["labels"] = [
                label_answers(self.tokenizer, conversation, found, ids, add_special_tokens=special)
                for conversation, found, ids in zip(conversations, answers, tokens["input_ids"], strict=True)
            ]
        tokens = self._truncate(tokens, row_options)
        # Generation continues at the right end, so prompts that await their answer are padded on the left.
        awaits_answer = not all(found and found[-1][0] < found[-1][1] for found in answers)
        side = kwargs.get("padding_side", (kwargs.get("text_kwargs") or {}).get("padding_side"))
        tokens = pad(
            self.tokenizer,
            tokens,
            padding=row_options["padding"],
            max_length=row_options["max_length"] if row_options["padding"] == "max_length" else None,
            pad_to_multiple_of=row_options["pad_to_multiple_of"],
            side=side or ("left" if awaits_answer else "right"),
        )
        data = {**tokens, **views}
        if index is not None:
            data["image_index"] = index
        inputs = self.inputs_class(
            data, tensor_type=row_options["return_tensors"], skip_tensor_conversion=self.skip_tensor_conversion
        )
        inputs.rows, inputs.images = rows, images
        return self._observed(inputs)

    def _views_alone(self, images: Any, options: dict[str, Any], kwargs: dict[str, Any]) -> ChatInputs:
        """The views of pictures that come without a text."""
        views = self._encode_images(read_images(images), options, kwargs)
        return self._observed(self.inputs_class(views, tensor_type=options["text_kwargs"].get("return_tensors")))

    def _observed(self, inputs: ChatInputs) -> ChatInputs:
        for observe in INPUT_OBSERVERS:
            observe(self, inputs)
        return inputs

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """
        As [`ProcessorMixin.apply_chat_template`]. With `tokenize=True, return_dict=True` the same inputs as calling
        the processor with `text` and the images of the messages.
        """
        if kwargs.get("tokenize"):
            # What the template wrote is a whole prompt, also where it holds no picture.
            kwargs["processor_kwargs"] = {"apply_template": False, **(kwargs.get("processor_kwargs") or {})}
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _image_of_rows(
        self, conversations: list[str], num_images: int | None, image_index: list[int] | None
    ) -> list[int] | None:
        """Check that prompts and images match; returns the image of each row where row and image differ in place."""
        if not check_image_tokens(conversations, self.image_token, num_images):
            return None
        return read_image_index(image_index, len(conversations), num_images)

    def _prompt_row(
        self, message: str, answer: str | None, apply_template: bool | None, has_images: bool
    ) -> PromptRow:
        """The whole prompt, with the answer where one is given."""
        if apply_template is None:
            apply_template = self.image_token not in message
        if not apply_template:
            if answer is None:
                return PromptRow(message)
            markers = self._markers()
            if markers is None:
                raise ValueError(
                    "The chat template does not show how an answer follows a prompt. Write the answer into `text`."
                )
            return PromptRow(markers.with_answer(message, answer), answer_start=len(message))
        if not has_images and not self.answers_without_images:
            raise ValueError(
                f"The text {message[:60]!r} comes without an image. Pass `images`, or apply_template=False for a "
                "whole prompt without a picture."
            )
        if self.chat_template is None:
            raise ValueError(
                f"This processor has no chat template. Give one, or a whole prompt with {self.image_token} as `text`."
            )
        messages = [user_message(message, has_images)]
        if answer is not None:
            messages.append(assistant_message(answer))
        return PromptRow(self._render(messages, answer is None))

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        return self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)

    def _markers(self) -> TurnMarkers | None:
        """What the chat template in use writes around answers; `None` where there is no template or it hides them."""
        if self.chat_template is None:
            return None
        template = self._resolve_chat_template(None)
        known_template, markers = self.__dict__.get("_known_markers", (None, None))
        if template != known_template:
            markers = find_turn_markers(self._render)
            self.__dict__["_known_markers"] = (template, markers)
        return markers

    def _truncate(self, tokens: TokenRows, options: dict[str, Any]) -> TokenRows:
        if options["truncation"] in (None, False, "do_not_truncate"):
            return tokens
        max_length = options["max_length"] or self.tokenizer.model_max_length
        cut = truncate(tokens, max_length, self.tokenizer.truncation_side)
        check_nothing_cut(tokens, cut, self._watched_tokens(), max_length)
        return cut

    def _watched_tokens(self) -> dict[str, Callable[[list[int]], int]]:
        """Counts tokens that truncation must not cut off, by their name."""
        return {self.image_token: lambda ids: list(ids).count(self.image_token_id)}

    # ---- what subclasses implement ------------------------------------------------------------------------------

    def _encode(
        self,
        conversations: list[str],
        images: list | None,
        index: list[int] | None,
        options: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> tuple[TokenRows, dict[str, Any]]:
        """
        Args:
            conversations (`list[str]`): Whole prompts with one image token each (none where `images` is `None`).
            images (`list`, *optional*): Different pictures.
            index (`list[int]`, *optional*): The picture of each prompt; `None` where both have the same place.
            options (`dict`): Keyword arguments of the call, sorted by who takes them.
            kwargs (`dict`): The same as they were given.

        Returns:
            Rows of ids, neither padded nor truncated, and the views of the images.
        """
        raise NotImplementedError

    def _encode_images(self, images: list, options: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The views of the images."""
        raise NotImplementedError


__all__ = [
    "INPUT_OBSERVERS",
    "ChatInputs",
    "ChatProcessor",
    "ChatProcessorKwargs",
    "image_of_row",
    "without_row_options",
]
