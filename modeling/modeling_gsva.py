"""GSVA: many `[SEG]` per answer, `[REJ]` for what is not in the picture (arXiv 2312.10103)."""

from .configuration_gsva import GsvaConfig
from .modeling_reasoning_segmentation import ReasoningSegmentationModel


class GsvaForReasoningSegmentation(ReasoningSegmentationModel):
    r"""
    GSVA. All of it is [`ReasoningSegmentationModel`]; with `rej_token_id` set, slots can be rejected, and
    `forward(..., reeval=True)` follows the two-pass protocol of the published numbers.

    Args:
        config ([`GsvaConfig`]): What to compose.
    """

    config: GsvaConfig
    config_class = GsvaConfig


__all__ = ["GsvaForReasoningSegmentation"]
