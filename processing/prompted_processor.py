"""What every processor with `[SEG]` does: questions about pictures in, model inputs out; outputs in, segments out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, Unpack

from .chat_processor import ChatInputs, ChatProcessor, ChatProcessorKwargs, without_row_options
from .prompt_rows import PromptRow, read_phrases, read_texts
from .segments import SegmentationResult
from .slot_results import SlotReader
from .wording import GENERIC_WORDING, ask_and_answer, clean_phrase


if TYPE_CHECKING:
    # So that these travel with a saved processor: files named in such lines are copied.
    from .image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor  # noqa: F401
    from .pipeline_reasoning_segmentation import ReasoningSegmentationPipeline  # noqa: F401


SEG_TOKEN = "[SEG]"


class PictureKwargs(ImagesKwargs, total=False):
    r"""
    max_image_pixels (`int`, *optional*):
        Largest allowed height x width of an input picture.
    """

    max_image_pixels: int | None


class ReasoningSegmentationProcessorKwargs(ChatProcessorKwargs, total=False):
    images_kwargs: PictureKwargs


class ReasoningSegmentationInputs(ChatInputs):
    pass


class PromptedSegmentationProcessor(ChatProcessor):
    """
    What all processors with `[SEG]` share: prompts, answers, labels, padding and the way back to segments.

    Subclasses have the attributes `tokenizer`, `chat_template`, `image_token`, `image_token_id`, `seg_token`,
    `rej_token` and `wording`, and implement `_encode`, `_encode_images` and `_segmenter_view`.
    """

    valid_processor_kwargs = ReasoningSegmentationProcessorKwargs
    inputs_class = ReasoningSegmentationInputs
    default_wording = GENERIC_WORDING

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        phrases: str | list[str] | list[list[str]] | None = None,
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
            phrases (`str`, `list[str]` or `list[list[str]]`, *optional*):
                What to segment, instead of `text` and `answer`: a list of phrases per row. A single list of strings is
                one row, a single string one phrase.
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
        if text is None and phrases is None:
            if answer is not None:
                raise ValueError("`answer` was given without `text`. Give the message that it answers.")
            return self._views_alone(images, options, kwargs)
        rows = self._prompt_rows(text, answer, phrases, kwargs.get("apply_template"), images is not None)
        return self._model_inputs(rows, images, image_index, options, kwargs)

    def post_process_segmentation(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        mask_threshold: float = 0.0,
        target_sizes: Any = None,
        reject_threshold: float | None = None,
        rows: list[PromptRow] | None = None,
    ) -> list[SegmentationResult]:
        r"""
        Args:
            outputs ([`ReasoningSegmentationOutput`]):
                What the model returned, of a forward pass or of `generate_with_masks`. With several returned sequences
                per prompt, rows belong to inputs in order.
            inputs ([`ReasoningSegmentationInputs`], *optional*):
                What the processor returned. A plain dict does too: prompts and answers are then decoded from its ids,
                and labels read off the answer. Needed for a forward pass; for a generation it says where the answer
                begins, which is else found by the chat template's words before it.
            mask_threshold (`float`, *optional*, defaults to 0.0):
                Pixels with a larger mask logit belong to the segment.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                (height, width) of the masks, one per image, one per row, or one for all; `original_sizes` of `inputs`
                by default.
            reject_threshold (`float`, *optional*):
                Reject slots whose `slot_probs` is lower, instead of by `outputs.rejected`.
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
            segmenter_view=self._segmenter_view,
        )
        rows = rows if rows is not None else getattr(inputs, "rows", None)
        return reader.read(outputs, inputs, rows, mask_threshold, target_sizes, reject_threshold)

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

    def _watched_tokens(self) -> dict[str, Callable[[list[int]], int]]:
        slots = self.slot_tokens
        names = "/".join(slots.values())
        return {**super()._watched_tokens(), names: lambda ids: sum(token_id in slots for token_id in ids)}

    # ---- what subclasses implement besides `_encode` and `_encode_images` ---------------------------------------

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
