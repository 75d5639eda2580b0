"""LISA's processor: LLaVA-v1 prompts, CLIP's and SAM's view of the picture, `[SEG]`."""

from typing import Any

from .chat_templates import IMAGE_TOKEN, choose_chat_template
from .llava_image_tokens import LlavaImageTokens
from .prompted_processor import SEG_TOKEN, PromptedSegmentationProcessor, ReasoningSegmentationProcessorKwargs
from .wording import LISA_WORDING, complete_wording


class LisaProcessorKwargs(ReasoningSegmentationProcessorKwargs, total=False):
    pass


class LisaProcessor(LlavaImageTokens, PromptedSegmentationProcessor):
    r"""
    Turns pictures and questions into inputs of [`LisaForReasoningSegmentation`], and its outputs into segments.

    Args:
        image_processor ([`ReasoningSegmentationImageProcessor`]): Makes both views.
        tokenizer (`PreTrainedTokenizerBase`): Knows `image_token`, `seg_token` and `rej_token`.
        patch_size (`int`): Side of CLIP's patches in pixels.
        vision_feature_select_strategy (`str`): `"default"` leaves CLIP's class token out, `"full"` keeps it.
        chat_template (`str` or `dict`, *optional*): Jinja template; that of the name `template` by default.
        image_token (`str`): What stands for a picture in texts.
        num_additional_image_tokens (`int`): Tokens that CLIP adds to its patches; 1 for the class token.
        template (`str`, *optional*): `"llava_v1"` or `"llava_llama_2"`: the prompt format the model was trained with.
        seg_token (`str`): The token that asks for a mask.
        rej_token (`str`, *optional*): The token that says "not in the picture".
        wording (`dict`, *optional*): Fields of the checkpoint's wording of phrases that differ from `default_wording`.

    Example:
        ```python
        inputs = processor(images=image, text="Where could I pour coffee?", return_tensors="pt")
        output = model.generate_with_masks(**inputs, max_new_tokens=64)
        result = processor.post_process_segmentation(output, inputs)[0]
        ```
    """

    valid_processor_kwargs = LisaProcessorKwargs
    default_wording = LISA_WORDING

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
        self._set_image_geometry(
            tokenizer, image_token, patch_size, vision_feature_select_strategy, num_additional_image_tokens
        )
        self.template = template
        self.seg_token = seg_token
        self.rej_token = rej_token
        self.wording = complete_wording(wording, self.default_wording)
        super().__init__(image_processor, tokenizer, chat_template=choose_chat_template(template, chat_template))

    @property
    def _segmenter_view(self) -> Any:
        return self.image_processor


__all__ = ["LisaProcessor"]
