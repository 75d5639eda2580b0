"""The conversion that LISA and GSVA share; `convert_lisa` and `convert_gsva` say what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..modeling.configuration_lisa import LisaConfig
from ..processing.chat import build_chat_template
from ..processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from .configs import (
    clip_config_from_folder,
    clip_config_from_shapes,
    image_view,
    llava_config,
    read_llava_config,
    text_config,
)
from .convert import Parts
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import Location, locate
from .plan import EMBEDDING, empty_model, require_components
from .rules_lisa_gsva import (
    MM_PROJECTOR,
    SEGMENTER,
    TEXT_MODEL,
    VISION_TOWER,
    clip_table,
    detect_layout,
    lisa_gsva_table,
    sam_table,
)
from .sam_config import read_sam_config
from .sources import TensorSource, holds_weights, open_source
from .systems import PublishedSystem
from .tokenizers import IM_END_TOKEN, IM_START_TOKEN, IMAGE_TOKEN, build_tokenizer, check_tokenizer_files


_IMAGE_WITH_START_END = f"{IM_START_TOKEN}{IMAGE_TOKEN}{IM_END_TOKEN}"
_OTHER_COPY = "Copy the file again from the original publisher."
_SLOT_FIELDS = ("seg_token_id", "rej_token_id")


@dataclass(frozen=True)
class Sources:
    """Where everything is read from, and which source has the last word.

    Args:
        checkpoint (`Path`): The weights of the model.
        name (`str`): What the checkpoint is called, for its card.
        config (`Path`): Folder of the LLaVA v1 `config.json`.
        tokenizer (`Path`): Folder of the tokenizer.
        tower_first (`bool`): Whether the CLIP folder goes before a tower inside the checkpoint, as the original
            loads it.
        base_projector (`bool`): Whether a projector that the checkpoint lacks may be the base's.
        vision_tower (`Path`, *optional*): Folder of the CLIP model.
        base (`str` or `os.PathLike`, *optional*): The base LLaVA, here or on the Hub, for parts of the language model
            the checkpoint lacks; its weights are only fetched for these.
        sam (`Path`, *optional*): SAM's own file, for frozen parts the checkpoint lacks.
    """

    checkpoint: Path
    name: str
    config: Path
    tokenizer: Path
    tower_first: bool
    base_projector: bool
    vision_tower: Path | None = None
    base: Location | None = None
    sam: Path | None = None


def read_lisa_gsva(
    system: PublishedSystem,
    sources: Sources,
    template: str,
    alpha_of_rank: Callable[[int], float],
    sam_options: Mapping[str, Any] | None = None,
) -> Parts:
    """Read a checkpoint of LISA or GSVA.

    Args:
        system (`PublishedSystem`): Which model it is.
        sources (`Sources`): What to read.
        template (`str`): The conversation template the model was trained with.
        alpha_of_rank (`Callable[[int], float]`): LoRA's alpha for the rank found in the checkpoint.
        sam_options (`Mapping[str, Any]`, *optional*): See `read_sam_config`.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit.
    """
    config = read_llava_config(sources.config)
    inventory = gather(sources, config)
    with refusing("The tokenizer cannot be rebuilt", path=sources.tokenizer, next_step=_OTHER_COPY):
        tokenizer = _matching_tokenizer(system, sources, config, inventory)
    vision = _vision_config(sources, inventory)
    with refusing("No model can be built from this config", path=sources.config, next_step=_OTHER_COPY):
        model = build_model(system, config, vision, inventory, tokenizer, sam_options)
    with refusing("The preprocessor cannot be rebuilt", path=sources.vision_tower, next_step=_OTHER_COPY):
        processor = _build_processor(system, sources, config, model.config, tokenizer, template)
    folders = {"config": sources.config, "tokenizer": sources.tokenizer, "vision tower": sources.vision_tower}
    return Parts(
        card=Path(sources.name).stem,
        inventory=inventory,
        model=model,
        processor=processor,
        alpha_of_rank=alpha_of_rank,
        identity_projector=model.config.vlm_config.projector_hidden_act == "linear",
        folders={role: folder for role, folder in folders.items() if folder is not None},
    )


def gather(sources: Sources, config: Mapping[str, Any]) -> Inventory:
    """Collect every parameter from the sources, in the order in which the original would have the last word.

    Args:
        sources (`Sources`): What to read.
        config (`Mapping[str, Any]`): The original's `config.json`.

    Raises:
        ConversionError: A source is unreadable or of another kind, or a component is in none of them.
    """
    inventory = Inventory()
    checkpoint = open_source(sources.checkpoint)
    tower = sources.vision_tower
    if tower is not None and not tower.is_dir():
        raise ConversionError("There is no such folder.", path=tower, next_step="Check the path of the vision tower.")
    tower_weights = open_source(tower) if tower is not None and holds_weights(tower) else None
    if sources.tower_first and tower_weights is not None:
        _add_tower(inventory, tower_weights)
    _add_llava(inventory, checkpoint, "checkpoint")
    if not sources.tower_first and tower_weights is not None:
        _add_tower(inventory, tower_weights)
    if sources.sam is not None:
        inventory.add(open_source(sources.sam), sam_table(), "SAM file", _is_frozen_sam)
    if _lacks_language_model(inventory, config) and sources.base is not None:
        allowed = (f"{TEXT_MODEL}layers.", f"{TEXT_MODEL}norm.", *([MM_PROJECTOR] if sources.base_projector else []))
        base = locate(sources.base)
        if holds_weights(base):
            _add_llava(inventory, open_source(base), "base", lambda target: target.startswith(allowed))
    if tower is not None and not inventory.has(VISION_TOWER):
        raise ConversionError(
            "The folder holds no weights, and neither does the checkpoint for its CLIP tower.",
            path=tower,
            next_step="Download the whole CLIP model.",
        )
    require_components(inventory)
    return inventory


def _add_tower(inventory: Inventory, tower: TensorSource) -> None:
    inventory.add(tower, clip_table(tower.names()), "vision tower")


def _add_llava(
    inventory: Inventory, source: TensorSource, origin: str, accept: Callable[[str], bool] | None = None
) -> None:
    try:
        layout = detect_layout(source.names())
    except ConversionError as error:
        raise error.at(source.path) from None
    inventory.add(source, lisa_gsva_table(layout), origin, accept)


def _is_frozen_sam(target: str) -> bool:
    """SAM's encoders are frozen in training; its decoder is trained and must come from the checkpoint."""
    return target.startswith(SEGMENTER) and not target.startswith(f"{SEGMENTER}mask_decoder.")


def _lacks_language_model(inventory: Inventory, config: Mapping[str, Any]) -> bool:
    names = [f"{TEXT_MODEL}layers.{layer}.mlp.gate_proj." for layer in range(config["num_hidden_layers"])]
    return not all(inventory.has(name) for name in [f"{TEXT_MODEL}norm.", MM_PROJECTOR, *names])


def _matching_tokenizer(
    system: PublishedSystem, sources: Sources, config: Mapping[str, Any], inventory: Inventory
) -> PreTrainedTokenizerBase:
    """The tokenizer with task tokens and `<image>`, checked against the rows of the embedding."""
    rows, hidden_size = inventory.shapes()[EMBEDDING]
    if hidden_size != config["hidden_size"]:
        raise ConversionError(
            f"The checkpoint's hidden size is {hidden_size}, the config's {config['hidden_size']}.",
            path=sources.config,
            next_step="Pass the base the checkpoint was trained from.",
        )
    check_tokenizer_files(sources.tokenizer)
    tokenizer = build_tokenizer(
        sources.tokenizer,
        system.name,
        use_im_start_end=_uses_start_end_tokens(config),
        model_max_length=config.get("max_position_embeddings"),
    )
    known = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if known != rows:
        raise ConversionError(
            f"The checkpoint's vocabulary has {rows} rows; the tokenizer with its task tokens has {known} entries.",
            path=sources.tokenizer,
            next_step="Pass the tokenizer, or the base, the checkpoint was trained with: some bases bring "
            "<im_patch>, <im_start> and <im_end> along and others do not.",
        )
    return tokenizer


def _vision_config(sources: Sources, inventory: Inventory) -> CLIPVisionConfig:
    if sources.vision_tower is None:
        return clip_config_from_shapes(inventory.shapes(VISION_TOWER))
    return clip_config_from_folder(sources.vision_tower)


def build_model(
    system: PublishedSystem,
    config: Mapping[str, Any],
    vision: CLIPVisionConfig,
    inventory: Inventory,
    tokenizer: PreTrainedTokenizerBase,
    sam_options: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """The published model with the right sizes and no weights.

    Args:
        system (`PublishedSystem`): Which model it is.
        config (`Mapping[str, Any]`): The original's `config.json`.
        vision (`CLIPVisionConfig`): The CLIP tower.
        inventory (`Inventory`): The parameters found; SAM's sizes are read off them.
        tokenizer (`PreTrainedTokenizerBase`): The converted tokenizer.
        sam_options (`Mapping[str, Any]`, *optional*): See `read_sam_config`.

    Returns:
        `PreTrainedModel`: On the meta device.
    """
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    slots = tokenizer.convert_tokens_to_ids(list(system.slot_tokens))
    vlm_config = llava_config(
        config,
        text_config(config, tokenizer),
        vision,
        image_token_id=image_token_id,
        mlp_projector=inventory.has(f"{MM_PROJECTOR}linear_2."),
    )
    composed = system.config_class(
        vlm_config=vlm_config,
        segmenter_config=read_sam_config(inventory.shapes(SEGMENTER), sam_options),
        **dict(zip(_SLOT_FIELDS, slots, strict=False)),
    )
    return empty_model(system.model_class, composed)


def _build_processor(
    system: PublishedSystem,
    sources: Sources,
    original: Mapping[str, Any],
    config: LisaConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
) -> ProcessorMixin:
    vision = config.vlm_config.vision_config
    image_processor = ReasoningSegmentationImageProcessor(
        **image_view(sources.vision_tower, vision.image_size),
        segmenter_size={"longest_edge": config.segmenter_config.vision_config.image_size},
    )
    image = _IMAGE_WITH_START_END if _uses_start_end_tokens(original) else IMAGE_TOKEN
    return system.processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vlm_config.vision_feature_select_strategy,
        template=template,
        chat_template=build_chat_template(template, image),
    )


def _uses_start_end_tokens(original: Mapping[str, Any]) -> bool:
    return bool(original.get("mm_use_im_start_end", True))
