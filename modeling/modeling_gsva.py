"""GSVA: many `[SEG]` per answer, `[REJ]` for what is not in the image (arXiv 2312.10103)."""

from .configuration_gsva import GsvaConfig
from .modeling_reasoning_segmentation import ComposedForReasoningSegmentation


class GsvaForReasoningSegmentation(ComposedForReasoningSegmentation):
    r"""
    GSVA. All of it is [`ComposedForReasoningSegmentation`]; with `rej_token_id` set, slots can be rejected, and
    `forward(..., reeval=True)` follows the two-pass protocol of the published numbers.

    Args:
        config ([`GsvaConfig`]): What to compose.
    """

    config: GsvaConfig
    config_class = GsvaConfig


__all__ = ["GsvaForReasoningSegmentation"]
