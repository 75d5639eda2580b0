"""LISA: a LLaVA model answers and emits `[SEG]`, whose predicting state prompts SAM (arXiv 2308.00692)."""

from .configuration_lisa import LisaConfig
from .modeling_reasoning_segmentation import ComposedForReasoningSegmentation


class LisaForReasoningSegmentation(ComposedForReasoningSegmentation):
    r"""
    LISA: a [`ComposedForReasoningSegmentation`] whose class gives checkpoints their name and their defaults.

    Args:
        config ([`LisaConfig`]): What to compose.
    """

    config: LisaConfig
    config_class = LisaConfig


__all__ = ["LisaForReasoningSegmentation"]
