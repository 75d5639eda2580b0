"""Images and messages in, model inputs out: what every processor of this package does, and how LLaVA's encode them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import ImageInput, get_image_size, to_numpy_array
from transformers.processing_utils import ImagesKwargs, MultiModalData, ProcessingKwargs, Unpack

from .chat import (
    IMAGE_TOKEN,
    NO_IMAGE,
    PromptRow,
    TurnMarkers,
    as_list,
    assistant_message,
    check_image_tokens,
    choose_chat_template,
    find_turn_markers,
    read_image_index,
    read_images,
    read_phrases,
    read_texts,
    user_message,
)
from .image_loading import MAX_IMAGE_PIXELS


IGNORED_LABEL = -100
# What fills the rows of everything that the tokenizer's own `pad` does not know.
_FILL = {"labels": IGNORED_LABEL, "offset_mapping": (0, 0)}
_PADDED_BY_THE_TOKENIZER = {"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"}
# What the processor itself does with rows of tokens after encoding; encoders get the rest.
_ROW_OPTIONS = ("padding", "padding_side", "pad_to_multiple_of", "max_length", "truncation", "return_tensors")

TokenRows = dict[str, list[list[Any]]]

# Called with a processor and what it made, at every call. Empty in published code; the package adds to it.
INPUT_OBSERVERS: list[Callable[["ChatProcessor", "ChatInputs"], None]] = []


class SizedImagesKwargs(ImagesKwargs, total=False):
    r"""
    max_image_pixels (`int`, *optional*): Largest allowed height x width of an input image.
    """

    max_image_pixels: int | None


class ChatProcessorKwargs(ProcessingKwargs, total=False):
    r"""
    return_labels (`bool`, *optional*, defaults to `False`):
        Whether to return `labels`: the ids of the answers with their end markers, -100 everywhere else.
    apply_template (`bool`, *optional*):
        Whether to wrap `text` in the chat template. By default a text that holds the image token is a whole prompt and
        everything else a message. `False` also allows prompts without an image.
    """

    images_kwargs: SizedImagesKwargs
    return_labels: bool
    apply_template: bool | None


class ChatInputs(BatchFeature):
    """
    Model inputs that remember their text.

    Attributes:
        rows (`list[PromptRow]`):
            Prompt, answer and phrases of each row. Not an entry, so that `model(**inputs)` works; it survives
            `.to(device)`, copies and pickling.
        awaits_answers (`bool`):
            Whether the model is to write the answers: some row has none, also where phrases were given. It survives
            the same.
        images (`list`):
            The images as they were given, for results to be drawn on. They survive `.to(device)` and copies; pickles,
            which travel between processes, leave them out.
    """

    rows: list[PromptRow] | None = None
    awaits_answers: bool = False
    images: list | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "rows": self.rows, "awaits_answers": self.awaits_answers}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.rows, self.awaits_answers = state.get("rows"), state.get("awaits_answers", False)


def image_of_row(inputs: Any, row: int) -> Any:
    """The image of a row of the inputs as it was given; None where they do not know it."""
    images = getattr(inputs, "images", None)
    if images is None:
        return None
    index = inputs.get("image_index")
    image = row if index is None else int(index[row])
    return None if image == NO_IMAGE else images[image]


class ChatProcessor(ProcessorMixin):
    """
    Prompts, answers, labels, truncation and padding.

    Subclasses have the attributes `tokenizer`, `chat_template`, `image_token` and `image_token_id`, and say how

    - `_encode(conversations, images, index, options)` encodes whole prompts with one image token each (none where
      `images` is `None`) and different images, `index` being the image of each prompt, -1 for one without, or `None`
      where each has its own: returns rows of ids, neither padded nor truncated, and the views of the images;
    - `_encode_images(images, options)` makes the views alone;
    - `_word_phrases(phrases)` says a row's phrases as a message and, where the model reads one, its answer.

    `options` are the arguments of a call, sorted by who takes them as in `ProcessorMixin`; under `"given"` they are
    as they came.
    """

    valid_processor_kwargs = ChatProcessorKwargs
    text_kwargs = {"padding": True}
    return_labels = False
    apply_template = None
    # Whether a message may come without an image.
    answers_without_images = False
    # Images that one prompt may hold, and whether it may hold earlier questions and answers.
    max_images_per_prompt = 1
    reads_history = True
    # Whether a question is answered by any number of objects, all of which together are what was asked for.
    answers_in_objects = False

    @property
    def max_image_pixels(self) -> int:
        """`int`: Largest height x width of an image; a larger one is refused before it is decoded."""
        return getattr(self.image_processor, "max_image_pixels", MAX_IMAGE_PIXELS)

    @property
    def feature_extractor(self) -> "ChatProcessor":
        """Itself: pipelines of transformers save what has this name, and not the processor, which loading needs."""
        return self

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        phrases: str | list[str] | list[list[str]] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[ChatProcessorKwargs],
    ) -> ChatInputs:
        r"""
        Every row is one prompt about one image. Three ways to say what is wanted: `text` alone (the model writes the
        answer), `text` and `answer` (a forced answer, read in one forward pass), or `phrases` (question and answer in
        the checkpoint's own words).

        Args:
            images (`ImageInput`):
                One image per row, or one for all rows; of any kind that `load_rgb_image` reads.
            text (`str` or `list[str]`, *optional*):
                The user's message, to which the checkpoint's chat template adds the image. A text that holds the image
                token is the whole prompt up to the answer, and stays as it is.
            answer (`str` or `list[str]`, *optional*):
                The answer to each text. Spacing and end token are the chat template's.
            phrases (`str`, `list[str]` or `list[list[str]]`, *optional*):
                What to segment, instead of `text` and `answer`: a list of phrases per row. A single list of strings is
                one row, a single string one phrase.
            image_index (`list[int]`, *optional*):
                The image of each row, where rows share images; -1 for a whole prompt without one.
            kwargs:
                `return_labels` and `apply_template`, see [`ChatProcessorKwargs`]; `padding_side`, by default left if a
                row awaits its answer and right if all have one; further arguments of the tokenizer (`padding`,
                `truncation`, `max_length`, `return_tensors`, ...) and of the image processor.

        Returns:
            [`ChatInputs`]: `input_ids`, `attention_mask`, the image's views (`pixel_values`, `sam_pixel_values`,
            `original_sizes`, `reshaped_input_sizes`), `image_index` where rows share images, and `labels` where asked
            for. With `images` alone only the views.

        Raises:
            ValueError: If texts, answers, phrases and images do not match, or truncation would cut off an image or a
                slot.
        """
        if images is None and text is None and phrases is None:
            raise ValueError(f"{type(self).__name__} needs `images` with `text` or `phrases`; nothing was given.")
        options = self._options(kwargs)
        if text is None and phrases is None:
            if answer is not None:
                raise ValueError("`answer` was given without `text`. Give the message that it answers.")
            return self._views_alone(images, options)
        rows = self._prompt_rows(text, answer, phrases, options["apply_template"], images is not None)
        if images is None and image_index is not None:
            raise ValueError("`image_index` was given without `images`.")
        images = None if images is None else read_images(images)
        num_images = None if images is None else len(images)
        check_image_tokens([row.conversation for row in rows], self.image_token, num_images, image_index)
        index = None if images is None else read_image_index(image_index, len(rows), num_images)
        return self._model_inputs(rows, images, index, options)

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """
        As [`ProcessorMixin.apply_chat_template`]. With `tokenize=True, return_dict=True` the same inputs as calling
        the processor with `text` and the images of the messages.
        """
        if kwargs.get("tokenize"):
            # What the template wrote is a whole prompt, also where it holds no image.
            kwargs["processor_kwargs"] = {"apply_template": False, **(kwargs.get("processor_kwargs") or {})}
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def question_of(self, phrases: Sequence[str]) -> str:
        """The message with which the checkpoint is asked for `phrases`."""
        return self._word_phrases(list(phrases))[0]

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs), "given": kwargs}

    # ---- rows of text -------------------------------------------------------------------------------------------

    def _prompt_rows(
        self, text: Any, answer: Any, phrases: Any, apply_template: bool | None, has_images: bool
    ) -> list[PromptRow]:
        if phrases is None:
            return [self._prompt_row(*row, apply_template, has_images) for row in read_texts(text, answer)]
        if text is not None or answer is not None:
            raise ValueError("`phrases` brings its own question and answer. Give either `phrases`, or `text`.")
        if apply_template is False:
            raise ValueError("`phrases` needs the chat template; apply_template=False is for whole prompts.")
        rows = []
        for row in read_phrases(phrases):
            question, reply = self._word_phrases(row)
            rows.append(replace(self._prompt_row(question, reply, True, has_images), phrases=tuple(row)))
        return rows

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
                "whole prompt without an image."
            )
        if self.chat_template is None:
            raise ValueError(
                f"This processor has no chat template. Give one, or a whole prompt with {self.image_token} as `text`."
            )
        reply = [] if answer is None else [assistant_message(answer)]
        return PromptRow(self._render([user_message(message, has_images), *reply], answer is None))

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

    # ---- rows of ids --------------------------------------------------------------------------------------------

    def _views_alone(self, images: Any, options: dict[str, Any]) -> ChatInputs:
        """The views of images that come without a text."""
        views = self._encode_images(read_images(images), options)
        return self._observed(ChatInputs(views, tensor_type=options["text_kwargs"].get("return_tensors")))

    def _model_inputs(
        self, rows: list[PromptRow], images: list | None, index: list[int] | None, options: dict[str, Any]
    ) -> ChatInputs:
        """The inputs of rows with their answers; `index` as in `_encode`."""
        conversations = [row.conversation for row in rows]
        tokens, views = self._encode(conversations, images, index, options)
        markers = self._markers()
        answers = [row.find_answers(markers) for row in rows]
        if options["return_labels"]:
            if markers is None:
                raise ValueError("Labels need a chat template that shows where answers are; this one does not.")
            special = options["text_kwargs"].get("add_special_tokens", True)
            tokens["labels"] = [
                label_answers(self.tokenizer, conversation, found, ids, add_special_tokens=special)
                for conversation, found, ids in zip(conversations, answers, tokens["input_ids"], strict=True)
            ]
        # Generation continues at the right end, so prompts that await their answer are padded on the left.
        awaits_answers = not all(found and found[-1][0] < found[-1][1] for found in answers)
        tokens = self._pad(self._truncate(tokens, options["text_kwargs"]), options, awaits_answers)
        inputs = ChatInputs(
            {**tokens, **views, **({} if index is None else {"image_index": index})},
            tensor_type=options["text_kwargs"].get("return_tensors"),
            skip_tensor_conversion=self.skip_tensor_conversion,
        )
        inputs.rows, inputs.awaits_answers, inputs.images = rows, awaits_answers, images
        return self._observed(inputs)

    def _observed(self, inputs: ChatInputs) -> ChatInputs:
        for observe in INPUT_OBSERVERS:
            observe(self, inputs)
        return inputs

    def _truncate(self, tokens: TokenRows, options: Mapping[str, Any]) -> TokenRows:
        """Cuts rows to `max_length`, but refuses to cut off what must stay, with both counts."""
        if options.get("truncation") in (None, False, "do_not_truncate"):
            return tokens
        max_length = options.get("max_length") or self.tokenizer.model_max_length
        kept = slice(None, max_length) if self.tokenizer.truncation_side == "right" else slice(-max_length, None)
        cut = {name: [row[kept] for row in values] for name, values in tokens.items()}
        for name, count in self._watched_tokens().items():
            old, new = [[count(row) for row in rows["input_ids"]] for rows in (tokens, cut)]
            if old != new:
                raise ValueError(
                    f"Truncation to max_length={max_length} cut off {name} tokens: the rows have {old}, {new} are "
                    f"left. The longest row has {max(map(len, tokens['input_ids']))} tokens; raise max_length or "
                    "shorten the text."
                )
        return cut

    def _watched_tokens(self) -> dict[str, Callable[[list[int]], int]]:
        """Counts tokens that truncation must not cut off, by their name."""
        return {self.image_token: lambda ids: list(ids).count(self.image_token_id)}

    def _pad(self, tokens: TokenRows, options: dict[str, Any], awaits_answer: bool) -> TokenRows:
        """Pads every row as the tokenizer does, also what the tokenizer does not know."""
        given, text_kwargs = options["given"], options["text_kwargs"]
        side = given.get("padding_side", (given.get("text_kwargs") or {}).get("padding_side"))
        side = side or ("left" if awaits_answer else "right")
        padding = text_kwargs.get("padding")
        padded = self.tokenizer.pad(
            {name: values for name, values in tokens.items() if name in _PADDED_BY_THE_TOKENIZER},
            padding=padding,
            max_length=text_kwargs.get("max_length") if padding == "max_length" else None,
            pad_to_multiple_of=text_kwargs.get("pad_to_multiple_of"),
            padding_side=side,
            return_attention_mask="attention_mask" in tokens,
        )
        result = dict(padded)
        for name in tokens.keys() - result.keys():
            result[name] = []
            for row, ids in zip(tokens[name], padded["input_ids"], strict=True):
                filling = [_FILL.get(name, 0)] * (len(ids) - len(row))
                result[name].append([*row, *filling] if side == "right" else [*filling, *row])
        return {name: result[name] for name in tokens}


def without_row_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that concern finished rows."""
    return {name: value for name, value in kwargs.items() if name not in _ROW_OPTIONS}


def label_answers(
    tokenizer: PreTrainedTokenizerBase,
    conversation: str,
    answers: Sequence[tuple[int, int]],
    input_ids: list[int],
    **tokenizer_kwargs,
) -> list[int]:
    """
    One label per id: the id inside an answer, end marker included, and -100 everywhere else.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer, which knows where tokens are in the text.
        conversation (`str`): The prompt with its answers, image tokens not expanded.
        answers (`Sequence[tuple[int, int]]`): Character ranges of the answers.
        input_ids (`list[int]`): Ids of the same prompt with expanded image tokens, not truncated.

    Raises:
        ValueError: If an answer holds what the ids hold otherwise, such as an image among several.
    """
    encoded = tokenizer(conversation, return_offsets_mapping=True, **tokenizer_kwargs)
    shift = len(input_ids) - len(encoded["input_ids"])
    pairs = zip(encoded["input_ids"], input_ids, strict=False)
    # Up to the image, which stands for more than one id, both are the same.
    same = next((index for index, (one, other) in enumerate(pairs) if one != other), len(input_ids))
    labels = [IGNORED_LABEL] * len(input_ids)
    for start, stop in answers:
        # Tokens without a width (the space that LLaMA tokenizers put after an added token) belong to what surrounds
        # them, hence the first and the last token of the answer rather than each on its own.
        inside = [
            index
            for index, (token_start, token_stop) in enumerate(encoded["offset_mapping"])
            if token_start < stop and token_stop > start and token_stop > token_start
        ]
        if not inside:
            continue
        for index in range(inside[0], inside[-1] + 1):
            label, position = encoded["input_ids"][index], index if index < same else index + shift
            if input_ids[position] != label:
                raise ValueError("An answer stands between images, so it cannot be labelled. Give one image per row.")
            labels[position] = label
    return labels


def answer_ranges(inputs: Mapping[str, Any]) -> Any:
    """
    Where the last answer of each row is among its ids.

    Args:
        inputs (`Mapping[str, Any]`): Has `input_ids`, and `labels` as [`label_answers`] makes them.

    Returns:
        Positions `(rows, 2)` from the first id to after the end token, of the kind of `input_ids`; empty ranges at the
        end for rows without an answer.
    """
    ranges = []
    for row in inputs["labels"]:
        labels = as_list(row)
        stop = max((index + 1 for index, label in enumerate(labels) if label != IGNORED_LABEL), default=len(labels))
        start = stop
        while start and labels[start - 1] != IGNORED_LABEL:
            start -= 1
        ranges.append([start, stop])
    ids = inputs["input_ids"]
    if isinstance(ids, torch.Tensor):
        return torch.tensor(ranges, device=ids.device)
    return np.array(ranges) if isinstance(ids, np.ndarray) else ranges


class LlavaChatProcessor(ChatProcessor):
    """
    LLaVA's prompts, with as many image tokens as an image has patches for the model.

    Args:
        image_processor (`BaseImageProcessor`): Makes the views of an image.
        tokenizer (`PreTrainedTokenizerBase`): Knows `image_token`.
        patch_size (`int`, *optional*): Side in pixels of what one image token stands for.
        vision_feature_select_strategy (`str`, *optional*):
            `"default"` leaves one token out, CLIP's class token; `"full"` none.
        chat_template (`str` or `dict`, *optional*): Jinja template; that of the name `template` by default.
        image_token (`str`, *optional*): What stands for an image in texts.
        num_additional_image_tokens (`int`, *optional*): Image tokens that stand for no patch; 1 for the class token.
        template (`str`, *optional*): Name of the prompt format that the model was trained with.

    Raises:
        ValueError: If the tokenizer does not know the image token.
    """

    # The geometry of a class of models where nobody says another.
    default_geometry = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    # What stands for an image in the chat template of a name.
    template_image = IMAGE_TOKEN

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=None,
        vision_feature_select_strategy=None,
        chat_template=None,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=None,
        template="llava_v1",
        **kwargs,
    ):
        geometry = {
            "patch_size": patch_size,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "num_additional_image_tokens": num_additional_image_tokens,
        }
        for name, value in geometry.items():
            setattr(self, name, self.default_geometry[name] if value is None else value)
        self.image_token = getattr(tokenizer, "image_token", None) or image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"The tokenizer has no token {self.image_token!r}; add it or name another `image_token`.")
        self.template = template
        chat_template = choose_chat_template(template, chat_template, self.template_image)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def _segmenter_view(self) -> Any:
        """What makes the segmenter's view, where there is one."""
        return self.image_processor

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """As [`ChatProcessor.apply_chat_template`]."""
        if not kwargs.get("tokenize"):
            return super().apply_chat_template(conversation, chat_template, **kwargs)
        returns_inputs, given = kwargs.pop("return_dict", False), kwargs.get("processor_kwargs") or {}
        inputs = super().apply_chat_template(conversation, chat_template, **kwargs, return_dict=True)
        texts, bos = [row.conversation for row in inputs.rows], self.tokenizer.bos_token
        # Where the prompt opens with the token that the tokenizer puts there, transformers leaves one of both out;
        # models with such a template were trained with both.
        if bos and texts[0].startswith(bos) and "add_special_tokens" not in given:
            images = iter(inputs.images or ())
            images = [next(images) if self.image_token in text else None for text in texts]
            options = {"apply_template": False, "return_tensors": kwargs.get("return_tensors"), **given}
            inputs = self(images=images if inputs.images else None, text=texts, **options)
        return inputs if returns_inputs else inputs["input_ids"]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The image token as often as the image has features."""
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self._num_image_tokens(height, width)

    def _num_image_tokens(self, height: int, width: int) -> int:
        patches = (height // self.patch_size) * (width // self.patch_size)
        class_token = 1 if self.vision_feature_select_strategy == "default" else 0
        return patches + self.num_additional_image_tokens - class_token

    def _view_size(self, images_kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """(height, width) of what the model sees of an image."""
        crop_size = images_kwargs.get("crop_size") or self.image_processor.crop_size
        if isinstance(crop_size, int):
            return crop_size, crop_size
        return crop_size["height"], crop_size["width"]

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """Number of image tokens for images of the given (height, width), without processing them."""
        if image_sizes is None:
            return MultiModalData()
        num_tokens = self._num_image_tokens(*self._view_size(self._merge_kwargs(**kwargs)["images_kwargs"]))
        return MultiModalData(
            num_image_tokens=[num_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def _encode(
        self, conversations: list[str], images: list | None, index: list[int] | None, options: dict[str, Any]
    ) -> tuple[TokenRows, dict[str, Any]]:
        views, replacements = {}, []
        if images is not None:
            images = self.image_processor.fetch_images(images)
            views, replacements = self._process_images(images, **options["images_kwargs"])
            if index is not None:
                replacements = [replacements[image] for image in index if image != NO_IMAGE]
        texts, offsets = self.get_text_with_replacements(list(conversations), replacements)
        text_kwargs = without_row_options(options["text_kwargs"])
        text_kwargs.pop("return_mm_token_type_ids", None)
        text_kwargs.pop("return_text_replacement_offsets", None)
        tokens = dict(self.tokenizer(texts, padding=False, **text_kwargs))
        if options["return_mm_token_type_ids"]:
            tokens["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        placed = {"text_replacement_offsets": offsets} if options["return_text_replacement_offsets"] else {}
        return tokens, {**views, **placed}

    def _encode_images(self, images: list, options: dict[str, Any]) -> dict[str, Any]:
        return dict(self.image_processor(self.image_processor.fetch_images(images), **options["images_kwargs"]))
