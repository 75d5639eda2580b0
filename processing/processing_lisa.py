"""LISA's processor: LLaVA-v1 prompts, CLIP's and SAM's view of the image, `[SEG]`."""

from typing import TYPE_CHECKING

from .chat import GENERIC_WORDING, IMAGE_TOKEN, MARKED_IMAGE
from .chat_processor import LlavaChatProcessor
from .slot_processor import SEG_TOKEN, SlotProcessor


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor  # noqa: F401


# LISA's validation sets (utils/dataset.py, ValDataset); the space follows the line break after the image. The
# questions for several phrases are those of its multiple-target instruction data.
LISA_WORDING = {
    **GENERIC_WORDING,
    "question": " What is {phrases} in this image? Please output segmentation mask.",
    "questions": "What are {phrases} in this image? Please output segmentation masks.",
    "answer": "{seg}.",
    "item": "{phrase} {seg}",
}


class LisaProcessor(SlotProcessor, LlavaChatProcessor):
    r"""
    Turns images and questions into inputs of [`LisaForReasoningSegmentation`], and its outputs into segments.

    Further arguments are those of [`LlavaChatProcessor`].

    Args:
        image_processor ([`ReasoningSegmentationImageProcessor`]): Makes both views.
        tokenizer (`PreTrainedTokenizerBase`): Knows `image_token`, `seg_token` and `rej_token`.
        template (`str`, *optional*): `"llava_v1"` or `"llava_llama_2"`: the prompt format the model was trained with.
        seg_token (`str`): The token that asks for a mask.
        rej_token (`str`, *optional*): The token that says "not in the image".
        wording (`dict`, *optional*): Fields of the checkpoint's wording of phrases that differ from `default_wording`.

    Example:
        ```python
        inputs = processor(images=image, text="Where could I pour coffee?", return_tensors="pt")
        output = model.generate_with_masks(**inputs, max_new_tokens=64)
        result = processor.post_process_segmentation(output, inputs)[0]
        ```
    """

    default_wording = LISA_WORDING
    template_image = MARKED_IMAGE

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=None,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        template="llava_v1",
        seg_token=SEG_TOKEN,
        rej_token=None,
        wording=None,
        **kwargs,
    ):
        self._set_slots(seg_token, rej_token, wording)
        super().__init__(
            image_processor,
            tokenizer,
            patch_size,
            vision_feature_select_strategy,
            chat_template,
            image_token,
            num_additional_image_tokens,
            template,
        )


__all__ = ["LISA_WORDING", "LisaProcessor"]
