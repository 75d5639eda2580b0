"""Sa2VA: the state of a `[SEG]` token prompts SAM 2, which keeps the best of its candidates (arXiv 2501.04001)."""

from .configuration_sa2va import Sa2VaConfig
from .modeling_reasoning_segmentation import ComposedForReasoningSegmentation


class Sa2VaForReasoningSegmentation(ComposedForReasoningSegmentation):
    r"""
    Sa2VA for images. All of it is [`ComposedForReasoningSegmentation`]; what differs from LISA are the defaults of
    [`Sa2VaConfig`]. Its memory for videos is not part of it.

    Args:
        config ([`Sa2VaConfig`]): What to compose.
    """

    config: Sa2VaConfig
    config_class = Sa2VaConfig


__all__ = ["Sa2VaForReasoningSegmentation"]
