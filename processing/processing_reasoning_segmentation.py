"""The processor of any vision-language model with any segmenter, and `[SEG]`."""

from .composed_processor import ComposedProcessor
from .slot_processor import SEG_TOKEN, SlotProcessor


class ReasoningSegmentationProcessor(SlotProcessor, ComposedProcessor):
    r"""
    The processor of any vision-language model together with the segmenter's view of the same images.

    Args:
        vlm_processor (`ProcessorMixin`): Processor of the vision-language model (`LlavaProcessor`, ...).
        segmenter_image_processor ([`SegmenterImageProcessor`], *optional*): The segmenter's view; SAM's by default.
        chat_template (`str` or `dict`, *optional*): Instead of the vision-language model's own.
        seg_token (`str`): The token that asks for a mask; the tokenizer must know it.
        rej_token (`str`, *optional*): The token that says "not in the image".
        wording (`dict`, *optional*): Fields of `GENERIC_WORDING` that differ.
    """

    own_fields = ("seg_token", "rej_token", "wording")

    def __init__(
        self,
        vlm_processor=None,
        segmenter_image_processor=None,
        chat_template=None,
        seg_token=SEG_TOKEN,
        rej_token=None,
        wording=None,
        **kwargs,
    ):
        self._set_slots(seg_token, rej_token, wording)
        super().__init__(vlm_processor, segmenter_image_processor, chat_template)


__all__ = ["ReasoningSegmentationProcessor"]
