"""GSVA: LISA with many `[SEG]` per answer and `[REJ]` for what is not in the image (arXiv 2312.10103)."""

from huggingface_hub.dataclasses import strict

from .configuration_lisa import LisaConfig


@strict
class GsvaConfig(LisaConfig):
    r"""
    Configuration of [`GsvaForReasoningSegmentation`]. The fields are those of [`ReasoningSegmentationConfig`]; the
    sizes default to those of LISA-7B, which GSVA-7B shares.
    """

    model_type = "gsva"
    published_config = "configuration_gsva.GsvaConfig"
    published_model = "modeling_gsva.GsvaForReasoningSegmentation"


__all__ = ["GsvaConfig"]
