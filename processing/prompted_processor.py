"""What every processor with `[SEG]` does: questions about pictures in, model inputs out; outputs in, segments out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack

from .chat_templates import TurnMarkers, assistant_message, find_turn_markers, user_message
from .prompt_rows import (
    PromptRow,
    check_image_tokens,
    read_image_index,
    read_images,
    read_phrases,
    read_texts,
)
from .segments import SegmentationResult
from .slot_results import SlotReader
from .token_rows import TokenRows, check_nothing_cut, label_answers, pad, truncate
from .wording import GENERIC_WORDING, ask_and_answer, clean_phrase


if TYPE_CHECKING:
    # So that these travel with a saved processor: files named in such lines are copied.
    from .image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor  # noqa: F401
    from .pipeline_reasoning_segmentation import ReasoningSegmentationPipeline  # noqa: F401


SEG_TOKEN = "[SEG]"
# What the processor itself does with rows of tokens after encoding; encoders get the rest.
_ROW_OPTIONS = ("padding", "padding_side", "pad_to_multiple_of", "max_length", "truncation", "return_tensors")


def without_row_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that concern finished rows."""
    return {name: value for name, value in kwargs.items() if name not in _ROW_OPTIONS}


class ReasoningSegmentationProcessorKwargs(ProcessingKwargs, total=False):
    r"""
    return_labels (`bool`, *optional*, defaults to `False`):
        Whether to return `labels`: the ids of the answers with their end markers, -100 everywhere else.
    apply_template (`bool`, *optional*):
        Whether to wrap `text` in the chat template. By default a text that holds the image token is a whole prompt and
        everything else a message. `False` also allows prompts without a picture.
    """

    return_labels: bool
    apply_template: bool | None


class ReasoningSegmentationInputs(BatchFeature):
    """
    Model inputs that remember their text.

    Attributes:
        rows (`list[PromptRow]`):
            Prompt, answer and phrases of each row. Not an entry, so that `model(**inputs)` works; it survives
            `.to(device)`, copies and pickling.
    """

    rows: list[PromptRow] | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "rows": self.rows}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.rows = state.get("rows")


class PromptedSegmentationProcessor(ProcessorMixin):
    """
    What all processors with `[SEG]` share: prompts, answers, labels, padding and the way back to segments.

    Subclasses have the attributes `tokenizer`, `chat_template`, `image_token`, `image_token_id`, `seg_token`,
    `rej_token` and `wording`, and implement `_encode`, `_encode_images` and `_segmenter_view`.
    """

    valid_processor_kwargs = ReasoningSegmentationProcessorKwargs
    default_wording = GENERIC_WORDING
    text_kwargs = {"padding": True}
    return_labels = False

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        phrases: list[list[str]] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Unpack[ReasoningSegmentationProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Every row is one prompt about one picture. Three ways to say what is wanted: `text` alone (the model writes the
        answer), `text` and `answer` (a forced answer, read in one forward pass), or `phrases` (question and answer in
        the checkpoint's own words, one slot per phrase).

        Args:
            images (`ImageInput`):
                One picture per row, or one for all rows; of any kind that `load_rgb_image` reads.
            text (`str` or `list[str]`, *optional*):
                The user's message, put behind the picture in the checkpoint's chat template. A text that holds the
                image token is the whole prompt up to the answer, and stays as it is.
            answer (`str` or `list[str]`, *optional*):
                The answer to each text. Spacing and end token are the chat template's.
            phrases (`list[list[str]]`, *optional*):
                What to segment, instead of `text` and `answer`. A single list of strings is one row.
            image_index (`list[int]`, *optional*):
                The image of each row, where rows share images.
            return_labels (`bool`, *optional*, defaults to `False`):
                Whether to return `labels`.
            apply_template (`bool`, *optional*):
                Whether to wrap `text` in the chat template; by default unless it holds the image token.
            padding_side (`str`, *optional*):
                `"left"` or `"right"`; by default left if a row awaits its answer, right if all have one.
            kwargs:
                Further arguments of the tokenizer (`padding`, `truncation`, `max_length`, `return_tensors`, ...) and
                of the image processor.

        Returns:
            [`ReasoningSegmentationInputs`]: `input_ids`, `attention_mask`, the picture's views (`pixel_values`,
            `sam_pixel_values`, `original_sizes`, `sam_resized_sizes`), `image_index` where rows share images, and
            `labels` where asked for. With `images` alone only the views.

        Raises:
            ValueError: If texts, answers, phrases and images do not match, or truncation would cut off a slot.
        """
        if images is None and text is None and phrases is None:
            raise ValueError(f"{type(self).__name__} needs `images` with `text` or `phrases`; nothing was given.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        row_options = {name: options["text_kwargs"].get(name) for name in _ROW_OPTIONS}
        if text is None and phrases is None:
            if answer is not None:
                raise ValueError("`answer` was given without `text`. Give the message that it answers.")
            views = self._encode_images(read_images(images), options, kwargs)
            return ReasoningSegmentationInputs(views, tensor_type=row_options["return_tensors"])

        rows = self._prompt_rows(text, answer, phrases, kwargs.get("apply_template"), images is not None)
        conversations = [row.conversation for row in rows]
        if images is None and image_index is not None:
            raise ValueError("`image_index` was given without `images`.")
        images = None if images is None else read_images(images)
        has_images = check_image_tokens(conversations, self.image_token, None if images is None else len(images))
        index = read_image_index(image_index, len(rows), len(images)) if has_images else None

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
        inputs = ReasoningSegmentationInputs(
            data, tensor_type=row_options["return_tensors"], skip_tensor_conversion=self.skip_tensor_conversion
        )
        inputs.rows = rows
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

    def post_process_segmentation(
        self,
        output: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        threshold: float = 0.0,
        reject_threshold: float | None = None,
        original_sizes: Any = None,
        rows: list[PromptRow] | None = None,
    ) -> list[SegmentationResult]:
        r"""
        Args:
            output ([`ReasoningSegmentationOutput`]):
                What the model returned, of a forward pass or of `generate_with_masks`. With several returned sequences
                per prompt, rows belong to inputs in order.
            inputs ([`ReasoningSegmentationInputs`], *optional*):
                What the processor returned. A plain dict does too: prompts and answers are then decoded from its ids,
                and labels read off the answer. Needed for a forward pass; for a generation it says where the answer
                begins, which is else found by the chat template's words before it.
            threshold (`float`, *optional*, defaults to 0.0):
                Pixels with a larger mask logit belong to the segment.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of by `output.rejected`.
            original_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                (height, width) that masks shall have, one per image, per row or one for all; those of `inputs` by
                default.
            rows (`list[PromptRow]`, *optional*):
                `inputs.rows`, where `inputs` has lost it on the way.

        Returns:
            `list[SegmentationResult]`: One per row of the output. `text` is the answer; each `[SEG]` and `[REJ]` in it
            is a segment, in reading order: `span` is the character range of the token in `text`, `label` the phrase it
            stands for, `mask` is `None` where it is rejected.

        Raises:
            ValueError: If texts, masks and images do not match; with both counts.
        """
        reader = SlotReader(
            tokenizer=self.tokenizer,
            slot_tokens=self.slot_tokens,
            image_token_id=self.image_token_id,
            markers=self._markers(),
            segmenter_image_processor=self._segmenter_view,
        )
        rows = rows if rows is not None else getattr(inputs, "rows", None)
        return reader.read(output, inputs, rows, threshold, reject_threshold, original_sizes)

    @property
    def slot_tokens(self) -> dict[int, str]:
        """`dict[int, str]`: The tokens that open a slot, by id: `[SEG]` and, where the model has it, `[REJ]`.

        Raises:
            ValueError: If the tokenizer lacks one.
        """
        tokens = [token for token in (self.seg_token, self.rej_token) if token is not None]
        ids = self.tokenizer.convert_tokens_to_ids(tokens)
        for token, token_id in zip(tokens, ids, strict=True):
            if token_id is None or token_id == self.tokenizer.unk_token_id:
                raise ValueError(
                    f"The tokenizer has no token {token!r}. Add it with tokenizer.add_tokens([{token!r}]) and resize "
                    "the model's embeddings, or name another `seg_token` or `rej_token`."
                )
        return dict(zip(ids, tokens, strict=True))

    def _prompt_rows(
        self, text: Any, answer: Any, phrases: Any, apply_template: bool | None, has_images: bool
    ) -> list[PromptRow]:
        if phrases is None:
            return [
                self._prompt_row(message, reply, apply_template, has_images)
                for message, reply in read_texts(text, answer)
            ]
        if text is not None or answer is not None:
            raise ValueError("`phrases` brings its own question and answer. Give either `phrases`, or `text`.")
        if apply_template is False:
            raise ValueError("`phrases` needs the chat template; apply_template=False is for whole prompts.")
        rows = []
        for row in read_phrases(phrases):
            cleaned = [clean_phrase(self.wording, phrase) for phrase in row]
            for given, phrase in zip(row, cleaned, strict=True):
                reserved = [token for token in (*self.slot_tokens.values(), self.image_token) if token in phrase]
                if not phrase or reserved:
                    problem = f"holds {reserved[0]}" if reserved else "is empty"
                    raise ValueError(f"The phrase {given!r} {problem}. Give the name or description of something.")
            question, reply = ask_and_answer(self.wording, cleaned, self.seg_token)
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
        if not has_images:
            raise ValueError(
                f"The text {message[:60]!r} comes without an image. Pass `images`, or apply_template=False for a "
                "whole prompt without a picture."
            )
        if self.chat_template is None:
            raise ValueError(
                f"This processor has no chat template. Give one, or a whole prompt with {self.image_token} as `text`."
            )
        messages = [user_message(message)]
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
        slots = self.slot_tokens
        watched = {
            self.image_token: lambda ids: list(ids).count(self.image_token_id),
            "/".join(slots.values()): lambda ids: sum(token_id in slots for token_id in ids),
        }
        check_nothing_cut(tokens, cut, watched, max_length)
        return cut

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

    @property
    def _segmenter_view(self) -> Any:
        """The image processor that makes the segmenter's view."""
        raise NotImplementedError


__all__ = [
    "SEG_TOKEN",
    "PromptedSegmentationProcessor",
    "ReasoningSegmentationInputs",
    "ReasoningSegmentationProcessorKwargs",
    "without_row_options",
]
