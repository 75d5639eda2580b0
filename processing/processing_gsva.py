"""GSVA's processor: LISA's, with `[REJ]` and GSVA's wording of phrases."""

from .chat_templates import IMAGE_TOKEN
from .processing_lisa import LisaProcessor
from .prompted_processor import SEG_TOKEN, ReasoningSegmentationProcessorKwargs
from .wording import GSVA_WORDING


REJ_TOKEN = "[REJ]"


class GsvaProcessorKwargs(ReasoningSegmentationProcessorKwargs, total=False):
    pass


class GsvaProcessor(LisaProcessor):
    r"""
    Turns pictures and questions into inputs of [`GsvaForReasoningSegmentation`], and its outputs into segments.

    Arguments are those of [`LisaProcessor`]. `phrases` are put into one question, in lower case and without full stops
    around them, word for word as GSVA was evaluated on gRefCOCO; every phrase gets a `[SEG]`, and the model's own
    prediction at that place decides whether it is rejected.
    """

    valid_processor_kwargs = GsvaProcessorKwargs
    default_wording = GSVA_WORDING

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
        rej_token=REJ_TOKEN,
        wording=None,
        **kwargs,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            template=template,
            seg_token=seg_token,
            rej_token=rej_token,
            wording=wording,
        )


__all__ = ["GsvaProcessor"]
