"""GSVA: many `[SEG]` per answer, `[REJ]` for what is not in the picture (arXiv 2312.10103)."""

import torch

from .configuration_gsva import GsvaConfig
from .modeling_reasoning_segmentation import ReasoningSegmentationModel
from .outputs import ImageCache, ReasoningSegmentationOutput


class GsvaForReasoningSegmentation(ReasoningSegmentationModel):
    r"""
    GSVA: [`ReasoningSegmentationModel`] with a `[REJ]` token and the two-pass protocol of the published numbers.

    Args:
        config ([`GsvaConfig`]): What to compose.
    """

    config: GsvaConfig
    config_class = GsvaConfig

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        sam_resized_sizes: torch.LongTensor | None = None,
        image_cache: ImageCache | None = None,
        reeval: bool = False,
        **kwargs,
    ) -> ReasoningSegmentationOutput | tuple:
        r"""
        As [`ReasoningSegmentationModel.forward`], with one more argument.

        Args:
            reeval (`bool`):
                Draw all masks from a second pass in which every `[REJ]` of the answer reads `[SEG]`; the decisions
                stay those of the first pass. GSVA's gRefCOCO and RefZOM numbers are made this way (model_forward with
                `reeval=True`). Only for evaluation: it takes no labels.

        Raises:
            ValueError: If `reeval` is asked for together with labels or without `[REJ]` in the configuration.
        """
        images = {
            "pixel_values": pixel_values,
            "sam_pixel_values": sam_pixel_values,
            "original_sizes": original_sizes,
            "sam_resized_sizes": sam_resized_sizes,
        }
        if not reeval:
            return super().forward(input_ids, attention_mask, image_cache=image_cache, **images, **kwargs)
        if self.config.rej_token_id is None:
            raise ValueError("reeval replaces [REJ] by [SEG], but the configuration names no rej_token_id.")
        if kwargs.get("mask_labels") is not None or kwargs.get("labels") is not None:
            raise ValueError("reeval is a protocol of evaluation; call forward without it to get losses.")
        return_dict = kwargs.pop("return_dict", None)
        if image_cache is None and pixel_values is not None:
            image_cache = self.encode_image(**images)
        first = super().forward(input_ids, attention_mask, image_cache=image_cache, **kwargs)
        asked_again = input_ids.masked_fill(input_ids == self.config.rej_token_id, self.config.seg_token_id)
        second = super().forward(asked_again, attention_mask, image_cache=image_cache, **kwargs)
        for field in ("pred_masks", "mask_scores", "slot_states"):
            first[field] = second[field]
        return first.to_tuple() if return_dict is False else first


__all__ = ["GsvaForReasoningSegmentation"]
