"""Coordinates as text: any vision-language model that writes boxes or points, any segmenter, and perhaps an adapter.

VisionReasoner, Seg-Zero and StAR are such models: full checkpoints of Qwen2.5-VL, or LoRA adapters of Qwen-VL.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from ..modeling.configuration_coordinates import CoordinatesConfig
from ..modeling.modeling_coordinates import CoordinatesForReasoningSegmentation
from ..processing.coordinate_formats import COORDINATE_FORMATS, format_of_vlm
from ..processing.processing_coordinates import CoordinatesProcessor
from .components import ExplicitTable, SegmenterComponent, VlmComponent, add_segmenter, add_vlm, transformers_table
from .compose import CompositionOptions
from .composed_card import composed_values
from .configs_difflmm import read_lora_alpha
from .convert import ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import ADAPTER, Location, hub_repository, hub_snapshot, locate
from .plan import EMBEDDING, HEAD, Scheme, empty_model, require_components
from .rules import LORA_A, LORA_B, Rule
from .rules_lisa_gsva import SEGMENTER, VLM
from .sources import open_source
from .systems import COORDINATES
from .tensor_operations import no_adapters


_REMEDIES = {
    SEGMENTER: ("the segmenter", "Pass segmenter= with SAM's own file or a folder of transformers."),
    VLM: ("the vision-language model", "Pass a folder that holds all of its weights."),
}
# By their names, where these say more than the type of the model does: Seg-Zero-7B, VisionReasoner-7B, StAR-8B.
_FORMATS_BY_NAME = (("seg-?zero", "seg_zero"), ("vision-?reasoner", "vision_reasoner"))
_STAR = r"\bstar-(7b|8b|32b)"
# The folders of StAR's repositories that may hold the adapter; they tell nothing of its name.
_ADAPTER_FOLDERS = ("huggingface", "lora_adapter")
# Answers with a chain of thought: what Seg-Zero, VisionReasoner and StAR allow.
_LONGEST_ANSWER = 1024
_ADAPTER = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_[AB])\.(?:default\.)?weight")


def compose_coordinates(
    *,
    vlm: Location,
    segmenter: Location,
    out: str | os.PathLike,
    coordinate_format: str | None = None,
    adapter: Location | None = None,
    lora_alpha: float | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    seed: int = 0,
    **options: Unpack[CompositionOptions],
) -> ConversionReport:
    """Put a vision-language model that writes coordinates and a segmenter into one repository; no weight is new.

    It answers greedily, as the published evaluations do, and with up to 1,024 tokens, whatever the model's own
    defaults are; these stay in the repository otherwise. SAM 2 sees images and returns masks as its own predictor has
    it: resized in floating point, and straight to the size of the image.

    Args:
        vlm (`str` or `os.PathLike`): Folder of transformers, or its name on the Hub, also with `@revision`
            (`Qwen/Qwen3-VL-2B-Instruct`, `Ricky06662/VisionReasoner-7B`).
        segmenter (`str` or `os.PathLike`): SAM's own file, or a SAM, SAM-HQ, SAM 2 or SAM 3 tracker of transformers.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        coordinate_format (`str`, *optional*): A key of `COORDINATE_FORMATS`; by default told by the name of the
            adapter or model, else by the model's type.
        adapter (`str` or `os.PathLike`, *optional*): LoRA weights that are merged into the model, as PEFT saves them:
            their file or folder, or the one that this lies in, also on the Hub (`sj9909/StAR-7B`).
        lora_alpha (`float`, *optional*): LoRA's alpha; by default what `adapter_config.json` beside the weights says.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type of the segmenter, by default float32.
        seed (`int`, *optional*, defaults to 0): Of nothing: nothing is drawn.
        options: See [`CompositionOptions`].

    Returns:
        `ConversionReport`: Where the tensors came from.

    Raises:
        ConversionError: A part is missing, unreadable or does not fit, or it is not known how the model writes
            coordinates; nothing is then left behind.
    """

    def read_parts() -> Parts:
        inventory, folder = Inventory(), locate(vlm)
        component = add_vlm(inventory, folder)
        named = _named_format(coordinate_format, adapter, vlm, component.config.model_type)
        alpha_of_rank = no_adapters
        if adapter is not None:
            alpha_of_rank = _add_adapter(inventory, locate(adapter, adapter=True), component, lora_alpha)
        elif lora_alpha is not None:
            raise ConversionError("lora_alpha= is given without adapter=.", next_step="Leave it out.")
        drawer = add_segmenter(inventory, locate(segmenter))
        scheme = Scheme(VLM, VLM, SEGMENTER, _REMEDIES, EMBEDDING, HEAD, appended_rows=component.appended_rows)
        require_components(inventory, scheme)
        named_parts = {"vlm": vlm, "adapter": adapter, "segmenter": segmenter}
        return Parts(
            card=composed_values(COORDINATES, named_parts),
            inventory=inventory,
            model=_build_model(component, drawer, named, folder),
            processor=_build_processor(component, drawer, named, folder),
            scheme=scheme,
            alpha_of_rank=alpha_of_rank,
            identity_projector=component.identity_projector,
            generation_config=_answers_at_length(component.generation_config),
        )

    return convert(COORDINATES, None, out, read_parts, segmenter_dtype=segmenter_dtype, **options)


def _named_format(given: str | None, adapter: Location | None, vlm: Location, model_type: str) -> str:
    """
    Raises:
        ConversionError: There is no format of the given name, or nothing says which it is.
    """
    if given is not None:
        if given not in COORDINATE_FORMATS:
            raise ConversionError(
                f"coordinate_format is {given!r}; allowed are {', '.join(COORDINATE_FORMATS)}.",
                next_step="Name one of these.",
            )
        return given
    for location in filter(None, (adapter, vlm)):
        name = _own_name(location).lower()
        if re.search(_STAR, name):
            return "star_qwen3" if model_type == "qwen3_vl" else "star"
        if found := next((known for pattern, known in _FORMATS_BY_NAME if re.search(pattern, name)), None):
            return found
    if (found := format_of_vlm(model_type)) is None:
        raise ConversionError(
            f"It is not known how models of type {model_type!r} write coordinates.",
            next_step=f"Pass coordinate_format= with one of {', '.join(COORDINATE_FORMATS)}; qwen3_vl, boxes in JSON "
            "in thousandths of the sides, is what an instructed model most probably understands.",
        )
    return found


def _own_name(location: Location) -> str:
    """What a model or an adapter is called: its repository on the Hub, or the folder it lies in."""
    path = Path(location)
    repository = hub_repository(location) or (hub_snapshot(path) or {}).get("repo")
    if repository is not None:
        return repository.rpartition("/")[2]
    folder = path.absolute().parent if path.is_file() else path.absolute()
    return folder.parent.name if folder.name in _ADAPTER_FOLDERS else folder.name


def _add_adapter(
    inventory: Inventory, location: Path, vlm: VlmComponent, lora_alpha: float | None
) -> Callable[[int], float]:
    """
    Add matrices of LoRA for the vision-language model's parameters.

    Returns:
        `Callable[[int], float]`: LoRA's alpha by the rank of the matrices.

    Raises:
        ConversionError: They are no such matrices, belong to no parameter of this model, or nobody says alpha.
    """
    source = open_source(location)
    matched = {name: _ADAPTER.fullmatch(name) for name in source.names()}
    if unknown := [name for name, match in matched.items() if match is None]:
        raise ConversionError(
            f"{len(unknown)} tensors are no matrices of LoRA, the first is {unknown[0]!r}.",
            path=location,
            next_step="Pass the folder or file with adapter_model as PEFT saves it.",
        )
    weights = [f"{match['module']}.weight" for match in matched.values()]
    model: PreTrainedModel = empty_model(AutoModelForImageTextToText, vlm.config)
    # One rule per name: the matrices of a module follow each other, and its weight is renamed once.
    table = transformers_table(model, list(dict.fromkeys(weights)), VLM)
    parts = {"lora_A": LORA_A, "lora_B": LORA_B}
    rules = []
    for (name, match), weight in zip(matched.items(), weights, strict=True):
        target = table.rename(weight)
        if target is None or not inventory.has(target):
            raise ConversionError(
                f"The model has no parameter {weight!r} that {name!r} could change.",
                path=location,
                next_step="Pass the model that the adapter was trained on as vlm=.",
            )
        rules.append(Rule(name, target, part=parts[match["part"]]))
    inventory.add(source, ExplicitTable(rules, "LoRA"), ADAPTER)
    if lora_alpha is not None:
        return lambda rank: lora_alpha
    folder = location if location.is_dir() else location.parent
    if not (folder / "adapter_config.json").is_file():
        raise ConversionError(
            "There is no adapter_config.json beside the adapter, which would say LoRA's alpha.",
            path=location,
            next_step="Pass lora_alpha= as the adapter was trained with, or its whole folder.",
        )
    return read_lora_alpha(folder)


def _build_model(
    vlm: VlmComponent, segmenter: SegmenterComponent, coordinate_format: str, folder: Path
) -> PreTrainedModel:
    """The published model with the right sizes and no weights."""
    with refusing("No model can be built", path=folder, next_step="See the message for what is allowed."):
        config = CoordinatesConfig(
            vlm_config=vlm.config, segmenter_config=segmenter.config, coordinate_format=coordinate_format
        )
        return empty_model(CoordinatesForReasoningSegmentation, config)


def _build_processor(
    vlm: VlmComponent, segmenter: SegmenterComponent, coordinate_format: str, folder: Path
) -> CoordinatesProcessor:
    if vlm.processor.chat_template is None:
        raise ConversionError(
            "The model has no chat template, with which it could be asked for coordinates.",
            path=folder,
            next_step="Pass a model that was taught to follow instructions.",
        )
    view = segmenter.image_processor
    view.mask_resizing = "through_view" if view.pads else "straight"
    view.resize_in_float = segmenter.config.model_type == "sam2"
    with refusing("The processor cannot be built", path=folder, next_step="Download the model again."):
        return CoordinatesProcessor(vlm.processor, view, coordinate_format=coordinate_format)


def _answers_at_length(own: GenerationConfig) -> GenerationConfig:
    """The model's own defaults, but greedy and long enough for a chain of thought."""
    config = copy.deepcopy(own)
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None)
    config.max_new_tokens = max(_LONGEST_ANSWER, own.max_new_tokens or 0)
    return config


__all__ = ["compose_coordinates"]
