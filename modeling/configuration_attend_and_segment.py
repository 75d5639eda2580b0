"""Attend-and-segment: what a vision-language model looks at while it writes prompts a segmenter (arXiv 2410.08209)."""

import os
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers.dynamic_module_utils import custom_object_save

from .configuration_reasoning_segmentation import ComposedConfig


_HEADS = ("paper", "mean")
_PROMPTS = ("point", "box", "mask", "mask_and_box")
_MASK_CHOICES = ("third", "best")


@strict
class AttendAndSegmentConfig(ComposedConfig):
    r"""
    Configuration of [`AttendAndSegmentForReasoningSegmentation`], whose vision-language model must expose attentions.
    Nothing is trained; every field may be given again in a call. Beside the fields of [`ComposedConfig`]:

    Args:
        heads (`str` or `list[int]`, *optional*, defaults to `"paper"`):
            Which attention heads make a map: `"paper"` is the second-last head alone, which the released code keeps
            (its numbers for LLaVA-1.5, LLaVA-NeXT and DiffLMM are made so); `"mean"` the mean of all heads, as the
            paper describes it; a list names heads.
        attention_layers (`list[int]`, *optional*):
            Layers whose mean makes a map; all by default. Models with sliding windows need it.
        subtract_mean (`bool`, *optional*, defaults to `True`): Whether to take the mean map of the answer off each.
        remove_corners (`bool`, *optional*, defaults to `False`): Whether to silence the four corner cells.
        prompt (`str`, *optional*, defaults to `"point"`):
            What the segmenter gets: `"point"` (the largest value), `"box"` (around what is above `box_threshold`;
            a phrase for which nothing is gets rejected), `"mask"` (the soft map) or `"mask_and_box"` (what the
            released code calls mask mode).
        attention_temperature (`float`, *optional*, defaults to 2e-4): Value of a map that counts as probability 1.
        box_threshold (`float`, *optional*, defaults to 0.75): Probability above which a pixel belongs to the
            box, in (0, 1].
        mask_choice (`str`, *optional*):
            Which of the segmenter's three candidates is the mask: `"third"` as the released code, or `"best"` by the
            segmenter's own score. Third by default; best for SAM-HQ, whose candidates come sorted by score.
    """

    model_type = "attend_and_segment"
    published_config = "configuration_attend_and_segment.AttendAndSegmentConfig"
    published_model = "modeling_attend_and_segment.AttendAndSegmentForReasoningSegmentation"

    # By type, for vision-language models that transformers does not have: a class of the file that brings the model
    # along. Such a file adds it when it is imported; a repository with that model names the file in its auto_map.
    files_of_vlms: ClassVar[dict[str, type]] = {}

    heads: str | list[int] = "paper"
    attention_layers: list[int] | None = None
    subtract_mean: bool = True
    remove_corners: bool = False
    prompt: str = "point"
    attention_temperature: float = 2e-4
    box_threshold: float = 0.75
    mask_choice: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("heads", "prompt", "attention_temperature", "box_threshold"):
            check_pointing_option(name, getattr(self, name))
        if self.mask_choice is not None:
            check_pointing_option("mask_choice", self.mask_choice)

    @property
    def chosen_mask(self) -> str:
        """`"third"` or `"best"`: `mask_choice`, or what fits the segmenter where it is not set."""
        return self.mask_choice or ("best" if self.segmenter_config.model_type == "sam_hq" else "third")

    @property
    def file_of_vlm(self) -> type | None:
        """A class of the file that brings the vision-language model along, where transformers does not have it."""
        return self.files_of_vlms.get(self.vlm_config.model_type)

    def to_dict(self) -> dict:
        """As in [`ComposedConfig`]."""
        output = super().to_dict()
        if self.file_of_vlm is not None:
            file = self.file_of_vlm.__module__.rpartition(".")[2]
            published = output["auto_map"].items()
            output["auto_map"] = {auto_class: f"{file}.{name.rpartition('.')[2]}" for auto_class, name in published}
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As in every configuration of transformers; the code of a vision-language model travels along, too."""
        if self.file_of_vlm is not None and self._auto_class is not None:
            os.makedirs(save_directory, exist_ok=True)
            custom_object_save(self.file_of_vlm, save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)


def check_pointing_option(name: str, value: object) -> None:
    """
    Raises:
        ValueError: If a field or an argument of a call has a value that means nothing.
    """
    allowed = {"prompt": _PROMPTS, "mask_choice": _MASK_CHOICES}.get(name)
    if allowed is not None and value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}.")
    if name == "heads":
        is_list = isinstance(value, (list, tuple)) and value and all(type(head) is int for head in value)
        if not is_list and value not in _HEADS:
            raise ValueError(f"heads is {value!r}; allowed are 'paper', 'mean' or a list of head numbers.")
    if name == "attention_temperature" and not 0 < value < float("inf"):
        raise ValueError(f"attention_temperature is {value}; give a positive number (2e-4 for LLaVA-1.5-7B).")
    if name == "box_threshold" and not 0 < value <= 1:
        raise ValueError(f"box_threshold is {value}; give a probability above 0, at most 1 (released code: 0.75).")


__all__ = ["AttendAndSegmentConfig"]
