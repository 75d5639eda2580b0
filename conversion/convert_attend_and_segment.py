"""Attend-and-segment: any vision-language model and any SAM in one repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel

from ..modeling.attention_maps import attention_modules
from ..modeling.configuration_attend_and_segment import AttendAndSegmentConfig
from ..modeling.modeling_attend_and_segment import AttendAndSegmentForReasoningSegmentation
from ..processing.processing_attend_and_segment import AttendAndSegmentProcessor
from .components import SegmenterComponent, VlmComponent, add_segmenter, add_vlm
from .convert import ConversionOptions, ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import locate
from .plan import EMBEDDING, HEAD, Scheme, empty_model, require_components
from .rules_lisa_gsva import SEGMENTER, VLM
from .systems import ATTEND_AND_SEGMENT


_REMEDIES = {
    SEGMENTER: ("the segmenter", "Pass sam= with SAM's own file (sam_vit_h_4b8939.pth) or a folder of transformers."),
    VLM: ("the vision-language model", "Pass a folder that holds its weights."),
}
# The released code reads these models' attention off one head; the later models of its authors off all of them.
_ONE_HEAD = ("llava", "llava_next", "vipllava", "difflmm")


def convert_attend_and_segment(
    source: str | os.PathLike,
    *,
    sam: str | os.PathLike,
    out: str | os.PathLike,
    vision_tower: str | os.PathLike | None = None,
    heads: str | list[int] | None = None,
    phrase_extractor: str = "auto",
    pointing: Mapping[str, Any] | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    template: str = "llava_v1",
    sam_options: Mapping[str, Any] | None = None,
    **options: Unpack[ConversionOptions],
) -> ConversionReport:
    """Put a vision-language model and a segmenter into one repository. No weight changes.

    Args:
        source (`str` or `os.PathLike`): The vision-language model: a folder that transformers saved, an original
            LLaVA-1.5 folder, or the name of either on the Hub (`llava-hf/llava-1.5-7b-hf`, `liuhaotian/llava-v1.5-7b`,
            also with `@revision`).
        sam (`str` or `os.PathLike`): SAM's own file, or a folder of transformers (`facebook/sam-vit-huge`,
            `facebook/sam2.1-hiera-large`); also on the Hub.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        vision_tower (`str` or `os.PathLike`, *optional*): The CLIP model of an original LLaVA-1.5
            (`openai/clip-vit-large-patch14-336`), which holds none.
        heads (`str` or `list[int]`, *optional*): See [`AttendAndSegmentConfig`]; numbers also as `"3,17"`. By default
            `"paper"` for LLaVA-1.5, LLaVA-NeXT, ViP-LLaVA and DiffLMM, `"mean"` for others.
        phrase_extractor (`str`, *optional*, defaults to `"auto"`): See [`AttendAndSegmentProcessor`].
        pointing (`Mapping[str, Any]`, *optional*): Further fields of [`AttendAndSegmentConfig`].
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type of the segmenter, by default float32.
        template (`str`, *optional*, defaults to `"llava_v1"`): Prompt format of an original LLaVA-1.5.
        sam_options (`Mapping[str, Any]`, *optional*): `num_attention_heads`, `window_size` and `global_attn_indexes`
            of a SAM without relative positions.
        options: See [`ConversionOptions`]; the card's values are those of the system by default.

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
    """

    def read_parts() -> Parts:
        tower = None if vision_tower is None else locate(vision_tower)
        if tower is not None and not tower.is_dir():
            raise ConversionError(
                "There is no such folder.", path=tower, next_step="Check the path of the vision tower."
            )
        inventory, folder = Inventory(), locate(source)
        vlm = add_vlm(inventory, folder, tower, template)
        segmenter = add_segmenter(inventory, locate(sam), sam_options)
        fields = {**({} if heads is None else {"heads": heads}), **(pointing or {})}
        return attend_and_segment_parts(inventory, vlm, segmenter, folder, fields, phrase_extractor)

    return convert(
        ATTEND_AND_SEGMENT,
        source,
        out,
        read_parts,
        template=template,
        segmenter_dtype=segmenter_dtype,
        **options,
    )


def attend_and_segment_parts(
    inventory: Inventory,
    vlm: VlmComponent,
    segmenter: SegmenterComponent,
    folder: Path,
    fields: Mapping[str, Any],
    phrase_extractor: str,
) -> Parts:
    """What is made of a vision-language model and a segmenter.

    Args:
        inventory (`Inventory`): Holds both.
        vlm, segmenter: What was read of them.
        folder (`Path`): Of the vision-language model, for messages.
        fields (`Mapping[str, Any]`): Of [`AttendAndSegmentConfig`].
        phrase_extractor (`str`): See [`AttendAndSegmentProcessor`].

    Raises:
        ConversionError: A component or its weights are missing, or a field means nothing.
    """
    scheme = Scheme(VLM, VLM, SEGMENTER, _REMEDIES, EMBEDDING, HEAD, appended_rows=vlm.appended_rows)
    require_components(inventory, scheme)
    usual = "paper" if vlm.config.model_type in _ONE_HEAD else "mean"
    model = _build_model(vlm, segmenter, {**fields, "heads": _read_heads(fields.get("heads", usual))}, folder)
    with refusing("The processor cannot be built", path=folder, next_step="Download the model again."):
        processor = AttendAndSegmentProcessor(
            vlm.processor, segmenter.image_processor, phrase_extractor=phrase_extractor
        )
    return Parts(
        card=ATTEND_AND_SEGMENT.name,
        inventory=inventory,
        model=model,
        processor=processor,
        scheme=scheme,
        identity_projector=vlm.identity_projector,
        generation_config=vlm.generation_config,
    )


def _read_heads(heads: str | list[int]) -> str | list[int]:
    """Numbers where a text holds some between commas."""
    if isinstance(heads, str) and heads.replace(",", "").replace("-", "").replace(" ", "").isdigit():
        return [int(number) for number in heads.split(",")]
    return heads


def _build_model(
    vlm: VlmComponent, segmenter: SegmenterComponent, fields: Mapping[str, Any], folder: Path
) -> PreTrainedModel:
    """The published model with the right sizes and no weights.

    Raises:
        ConversionError: A field means nothing, or the language model exposes no attentions.
    """
    with refusing("No model can be built", path=folder, next_step="See the message for what is allowed."):
        config = AttendAndSegmentConfig(vlm_config=vlm.config, segmenter_config=segmenter.config, **fields)
        model = empty_model(AttendAndSegmentForReasoningSegmentation, config)
        attention_modules(model.vlm)
    return model
