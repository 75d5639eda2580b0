"""An original LLaVA folder as a part: its weights or its delta to LLaMA, its CLIP tower, its projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from .configs import clip_config_from_folder, clip_config_from_shapes, read_llava_config
from .delta_weights import add_delta_weights
from .errors import ConversionError
from .inventory import Inventory
from .rules import Rule, RuleTable
from .rules_lisa_gsva import MM_PROJECTOR, VISION_TOWER, clip_table, detect_layout, llava_table
from .sources import holds_weights, open_source


_CLIP = "openai/clip-vit-large-patch14-336"
# `mm_projector_type` of LLaVA 1.5 and of what came before.
_PROJECTORS = {"linear": False, "mlp2x_gelu": True}


@dataclass(frozen=True)
class LlavaSources:
    """Where an original LLaVA is read from.

    Args:
        folder (`Path`): Config, tokenizer and weights, or the delta.
        base (`Path`, *optional*): The LLaMA that the weights in `folder` are a delta to.
        vision_tower (`Path`, *optional*): Folder of CLIP, which LLaVA's own usually lacks.
        projector (`Path`, *optional*): `mm_projector.bin` of a pretraining, instead of the folder's own.
        new_projector (`bool`): Whether the projector is a new one.
    """

    folder: Path
    base: Path | None = None
    vision_tower: Path | None = None
    projector: Path | None = None
    new_projector: bool = False


@dataclass(frozen=True)
class OriginalLlava:
    """What was found.

    Args:
        config (`Mapping[str, Any]`): Its JSON.
        vision (`CLIPVisionConfig`): The tower's.
        mlp_projector (`bool`): Whether the projector has two layers; LLaVA v1's has one.
    """

    config: Mapping[str, Any]
    vision: CLIPVisionConfig
    mlp_projector: bool


def add_original_llava(inventory: Inventory, sources: LlavaSources) -> OriginalLlava:
    """Add the parameters of an original LLaVA.

    Args:
        inventory (`Inventory`): Takes them.
        sources ([`LlavaSources`]): Where they are.

    Raises:
        ConversionError: A source is unreadable, of another kind, or lacks what no other has.
    """
    config, tower = read_llava_config(sources.folder), sources.vision_tower
    # The original always loads CLIP from its own folder, whatever the checkpoint holds.
    if tower is not None and holds_weights(tower):
        weights = open_source(tower)
        inventory.add(weights, clip_table(weights.names()), "vision tower")
    if sources.projector is not None:
        _add_projector(inventory, sources.projector)
    _add_checkpoint(inventory, sources)
    if not inventory.has(VISION_TOWER):
        raise ConversionError(
            "The checkpoint holds no CLIP tower.",
            path=sources.folder,
            next_step=f"Pass vision_tower={_CLIP!r} or its folder.",
        )
    if not inventory.has(MM_PROJECTOR) and not sources.new_projector:
        raise ConversionError(
            "The checkpoint holds no projector between CLIP and the language model.",
            path=sources.folder,
            next_step="Pass projector= with mm_projector.bin of a pretraining, or new_projector=True to draw one.",
        )
    vision = clip_config_from_folder(tower) if tower else clip_config_from_shapes(inventory.shapes(VISION_TOWER))
    is_mlp = _drawn_with_two_layers(config, sources.folder) if sources.new_projector else None
    return OriginalLlava(config, vision, inventory.has(f"{MM_PROJECTOR}linear_2.") if is_mlp is None else is_mlp)


def _add_checkpoint(inventory: Inventory, sources: LlavaSources) -> None:
    checkpoint = open_source(sources.folder)
    try:
        table = llava_table(detect_layout(checkpoint.names()))
    except ConversionError as error:
        raise error.at(sources.folder) from None
    keeps_projector = sources.projector is None and not sources.new_projector

    def accept(target: str) -> bool:
        return keeps_projector or not target.startswith(MM_PROJECTOR)

    inventory.add(checkpoint, table, "checkpoint" if sources.base is None else "delta", accept)
    if sources.base is not None:
        add_delta_weights(inventory, sources.folder, sources.base)


def _add_projector(inventory: Inventory, path: Path) -> None:
    source = open_source(path)
    names = source.names()
    prefixes = {name.partition("mm_projector.")[0] for name in names if "mm_projector." in name}
    if len(prefixes) != 1:
        raise ConversionError(
            f"The file holds {'several projectors' if prefixes else 'no mm_projector'}; its first tensors are "
            f"{', '.join(map(repr, names[:3]))}.",
            path=path,
            next_step="Pass mm_projector.bin, as LLaVA's pretraining writes it.",
        )
    prefix = f"{prefixes.pop()}mm_projector."
    if any(name.startswith(f"{prefix}0.") for name in names):
        layers = [("0.", "linear_1."), ("2.", "linear_2.")]
    else:
        layers = [("", "linear_1.")]
    rules = [Rule(f"{prefix}{old}{{leaf}}", f"{MM_PROJECTOR}{new}{{leaf}}") for old, new in layers]
    # A pretraining with <im_start> and <im_end> saves their rows, too; these tokens learn again here.
    rules.append(Rule("{rest}", None, reason="only the projector of this file is used", optional=True))
    inventory.add(source, RuleTable(rules, "LLaVA projector"), "projector")


def _drawn_with_two_layers(config: Mapping[str, Any], folder: Path) -> bool:
    kind = config.get("mm_projector_type") or "linear"
    if kind not in _PROJECTORS:
        raise ConversionError(
            f"mm_projector_type is {kind!r}; new projectors can be {', '.join(_PROJECTORS)}.",
            path=folder / "config.json",
            next_step="Write one of these into config.json, or keep the projector.",
        )
    return _PROJECTORS[kind]


__all__ = ["LlavaSources", "OriginalLlava", "add_original_llava"]
