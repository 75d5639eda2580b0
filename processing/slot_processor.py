"""What every processor with `[SEG]` adds to prompts: phrases with a slot each, and the way back to segments."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .chat import GENERIC_WORDING, PromptRow, ask_and_answer, complete_wording
from .chat_processor import ChatProcessor
from .segments import SegmentationResult
from .slot_results import SlotReader


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .pipeline_reasoning_segmentation import ReasoningSegmentationPipeline  # noqa: F401


SEG_TOKEN = "[SEG]"
REJ_TOKEN = "[REJ]"


class SlotProcessor(ChatProcessor):
    """
    Prompts whose answers hold slots, one mask each, for any way to encode them.

    Subclasses call `_set_slots`, and name the image processor that makes the segmenter's view as `_segmenter_view`.
    """

    # Of the phrases where a checkpoint says nothing else, and whether it has a token for "not in the image".
    default_wording = GENERIC_WORDING
    default_rej_token = None

    def _set_slots(self, seg_token: str, rej_token: str | None, wording: dict[str, Any] | None) -> None:
        self.seg_token = seg_token
        self.rej_token = self.default_rej_token if rej_token is None else rej_token
        self.wording = complete_wording(wording, self.default_wording)

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
            inputs ([`ChatInputs`], *optional*):
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

    def _word_phrases(self, phrases: list[str]) -> tuple[str, str]:
        reserved = [*self.slot_tokens.values(), self.image_token]
        return ask_and_answer(self.wording, phrases, self.seg_token, reserved)

    def _watched_tokens(self) -> dict[str, Callable[[list[int]], int]]:
        slots = self.slot_tokens
        names = "/".join(slots.values())
        return {**super()._watched_tokens(), names: lambda ids: sum(token_id in slots for token_id in ids)}


__all__ = ["REJ_TOKEN", "SEG_TOKEN", "SlotProcessor"]
