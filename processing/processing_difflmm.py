"""DiffLMM's processor: LLaVA-v1 prompts, one view of the image for both towers."""

from typing import TYPE_CHECKING

from .question_processor import LlavaQuestionProcessor


if TYPE_CHECKING:
    # So that it travels with a saved processor: files named in such lines are copied.
    from .image_processing_vip_llava import DiffLmmImageProcessor  # noqa: F401


class DiffLmmProcessor(LlavaQuestionProcessor):
    r"""
    Turns images and messages into inputs of [`DiffLmmForConditionalGeneration`].

    Arguments are those of [`LlavaChatProcessor`]; an image token stands for a cell of the grid of features
    (`config.patch_size`), and none is left out.

    Example:
        ```python
        inputs = processor(images=image, text="Describe the image.", return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=64)
        processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```
    """

    default_geometry = {"patch_size": 16, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}


__all__ = ["DiffLmmProcessor"]
