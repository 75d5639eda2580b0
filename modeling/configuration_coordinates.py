"""Coordinates as text: boxes and points that a vision-language model writes prompt a segmenter."""

from huggingface_hub.dataclasses import strict

from .configuration_reasoning_segmentation import ComposedConfig


@strict
class CoordinatesConfig(ComposedConfig):
    r"""
    Configuration of [`CoordinatesForReasoningSegmentation`]; nothing is trained. How coordinates are asked for and
    read is the processor's business. Beside the fields of [`ComposedConfig`]:

    Args:
        coordinate_format (`str`, *optional*):
            What the processor of this model calls the way in which it writes coordinates (`"qwen3_vl"`, `"star"`,
            ...), for whoever reads the configuration alone.
    """

    model_type = "coordinates"
    published_config = "configuration_coordinates.CoordinatesConfig"
    published_model = "modeling_coordinates.CoordinatesForReasoningSegmentation"

    coordinate_format: str | None = None


__all__ = ["CoordinatesConfig"]
