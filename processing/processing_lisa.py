"""LISA's processor: LLaVA-v1 prompts, CLIP's and SAM's view of the picture, `[SEG]`."""

from typing import Any

from transformers.image_utils import get_image_size, to_numpy_array
from transformers.processing_utils import MultiModalData

from .chat_templates import IMAGE_TOKEN, choose_chat_template
from .prompted_processor import (
    SEG_TOKEN,
    PromptedSegmentationProcessor,
    ReasoningSegmentationProcessorKwargs,
    without_row_options,
)
from .token_rows import TokenRows
from .wording import LISA_WORDING, complete_wording


class LisaProcessorKwargs(ReasoningSegmentationProcessorKwargs, total=False):
    pass


class LisaProcessor(PromptedSegmentationProcessor):
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
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.image_token = getattr(tokenizer, "image_token", None) or image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"The tokenizer has no token {self.image_token!r}; add it or name another `image_token`.")
        self.template = template
        self.seg_token = seg_token
        self.rej_token = rej_token
        self.wording = complete_wording(wording, self.default_wording)
        super().__init__(image_processor, tokenizer, chat_template=choose_chat_template(template, chat_template))

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The image token as often as the picture has features."""
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self._num_image_tokens(height, width)

    def _num_image_tokens(self, height: int, width: int) -> int:
        patches = (height // self.patch_size) * (width // self.patch_size)
        class_token = 1 if self.vision_feature_select_strategy == "default" else 0
        return patches + self.num_additional_image_tokens - class_token

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """Number of image tokens for pictures of the given (height, width), without processing them."""
        if image_sizes is None:
            return MultiModalData()
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        crop_size = options.get("crop_size") or self.image_processor.crop_size
        num_tokens = self._num_image_tokens(crop_size["height"], crop_size["width"])
        return MultiModalData(
            num_image_tokens=[num_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    @property
    def _segmenter_view(self) -> Any:
        return self.image_processor

    def _encode(
        self,
        conversations: list[str],
        images: list | None,
        index: list[int] | None,
        options: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> tuple[TokenRows, dict[str, Any]]:
        views, replacements = {}, []
        if images is not None:
            images = self.image_processor.fetch_images(images)
            views, replacements = self._process_images(images, **options["images_kwargs"])
            if index is not None:
                replacements = [replacements[place] for place in index]
        texts, offsets = self.get_text_with_replacements(list(conversations), replacements)
        text_kwargs = without_row_options(options["text_kwargs"])
        for name in ("return_mm_token_type_ids", "return_text_replacement_offsets"):
            text_kwargs.pop(name, None)
        tokens = dict(self.tokenizer(texts, padding=False, **text_kwargs))
        if options["return_mm_token_type_ids"]:
            tokens["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        views = dict(views)
        if options["return_text_replacement_offsets"]:
            views["text_replacement_offsets"] = offsets
        return tokens, views

    def _encode_images(self, images: list, options: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(self.image_processor(self.image_processor.fetch_images(images), **options["images_kwargs"]))


__all__ = ["LisaProcessor"]
