"""Which system and which published variant a list of tensor names and shapes belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ConversionError
from .rules import LORA_A, WEIGHT, KeyMap, RuleTable
from .rules_difflmm import difflmm_prefix, difflmm_table
from .rules_ivm import detect_ivm_layout, ivm_table
from .rules_lisa_gsva import (
    PROJECTOR,
    SEGMENTER,
    VISION_TOWER,
    VLM,
    clip_table,
    detect_layout,
    lisa_gsva_table,
    llava_table,
    sam_table,
)
from .rules_vip_llava import vip_llava_table


Shapes = Mapping[str, tuple[int, ...]]

# (hidden size, vocabulary rows) of the published LISA and GSVA checkpoints; v0 is told by its names.
_LISA_GSVA = {
    (4096, 32004): ("lisa", "LISA-7B-v1 or -explanatory"),
    (5120, 32003): ("lisa", "LISA-13B-llama2-v1 or -explanatory"),
    (4096, 32005): ("gsva", "GSVA-7B (pt, ft-gres or ft-res)"),
    (5120, 32005): ("gsva", "GSVA-13B (pt, ft-gres or ft-res)"),
    (5120, 32004): ("gsva", "GSVA-llama2-13B (pt, ft-gres or ft-res)"),
}
_VIP_LLAVA = {
    (4096, 32000): "vip-llava-7b",
    (5120, 32000): "vip-llava-13b",
    (4096, 128256): "vip-llava-llama-3-8b",
    (4096, 128257): "vip-llava-llama-3-8b",
    (3072, 32064): "vip-llava-phi-3-mini-3.8b",
}
_SAM_VARIANTS = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}
_UNKNOWN_SIZE = "none of the published sizes"

LISA_OR_GSVA = "lisa or gsva"
"""`Recognised.system` of a checkpoint of neither's published sizes: only the vocabulary tells them apart."""
_HUGGING_FACE_LAYOUT = "in the Hugging Face layout"
_CONVERTED_VARIANT = "a converted repository"
CONVERTED = "reasonseg"
"""`Recognised.system` of a converted checkpoint whose tensors do not say which of the composed systems it is."""


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint seems to be.

    Args:
        system (`str`): Such as `"lisa"`, `"ivm"`, `"sam"`, or `"unknown"`.
        variant (`str`): The published checkpoint or size, in words.
        notes (`tuple[str, ...]`): What a user should know before converting it.
        unknown (`tuple[str, ...]`): Tensors that the system's layout does not have.
        dropped (`int`): Tensors that a conversion leaves out.
        lora_rank (`int`, *optional*): Rank of unmerged adapters.
    """

    system: str
    variant: str
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    dropped: int = 0
    lora_rank: int | None = None

    @property
    def converted(self) -> bool:
        """Whether it is a repository of this package already."""
        return self.variant == _CONVERTED_VARIANT

    @property
    def loads_as_it_is(self) -> bool:
        """Whether transformers' own classes load it."""
        return self.variant.endswith(_HUGGING_FACE_LAYOUT)


def recognise(shapes: Shapes) -> Recognised:
    """Tell what a checkpoint is from its tensors' names and shapes.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shape by original name.
    """
    names = list(shapes)

    def holds(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if holds(PROJECTOR, SEGMENTER) and holds(VLM):
        return Recognised(CONVERTED, _CONVERTED_VARIANT, ("`reasonseg verify` checks it.",))
    if holds("prompt_encoder.text_proj."):
        return _attempt(_ivm, shapes)
    if holds("model.mm_projector.clip_layernorm."):
        return _vip_llava(shapes)
    if holds("module."):
        return Recognised(
            "unknown", "a DeepSpeed training state", ("Its zero_to_fp32.py writes a file that can be converted.",)
        )
    if any(".mm_projector.clip_pe" in name for name in names):
        return _attempt(_difflmm, shapes)
    if holds("model.embed_tokens.", "base_model.model.model.", "model.layers."):
        return _attempt(_lisa_or_gsva, shapes)
    if holds("vision_model.", "text_model.", "pre_layrnorm."):
        return _described("clip", "CLIP, or its vision tower", clip_table(names), shapes)
    if holds("image_encoder.") and holds("mask_decoder."):
        width = shapes.get("image_encoder.pos_embed", (0,))[-1]
        return _described("sam", f"SAM {_SAM_VARIANTS.get(width, _UNKNOWN_SIZE)}", sam_table(), shapes)
    if holds("model.diffusion."):
        return Recognised("difflmm", _CONVERTED_VARIANT, ("`reasonseg verify` checks it.",))
    if any(".projector_layernorm." in f".{name}" for name in names):
        # A converted repository has the names of the ones that llava-hf publishes.
        return Recognised(
            "vip_llava",
            f"ViP-LLaVA {_HUGGING_FACE_LAYOUT}",
            ("transformers loads it as it is; `reasonseg verify` checks it if it was converted.",),
        )
    if holds("language_model.", "model.language_model."):
        return Recognised("llava", f"LLaVA {_HUGGING_FACE_LAYOUT}", ("transformers loads it as it is.",))
    return Recognised("unknown", "no layout that is known", unknown=tuple(names))


def _attempt(describe, shapes: Shapes) -> Recognised:
    try:
        return describe(shapes)
    except ConversionError as error:
        return Recognised("unknown", "a mixture of layouts", (str(error),), tuple(shapes))


def _described(system: str, variant: str, table: RuleTable, shapes: Shapes, notes: tuple[str, ...] = ()) -> Recognised:
    keys = table.apply(shapes)
    return Recognised(system, variant, notes, tuple(keys.unmatched), len(keys.dropped), _lora_rank(keys, shapes))


def _lora_rank(keys: KeyMap, shapes: Shapes) -> int | None:
    return next((shapes[parts[LORA_A]][0] for parts in keys.targets.values() if LORA_A in parts), None)


def _lisa_or_gsva(shapes: Shapes) -> Recognised:
    layout = detect_layout(shapes)
    rows = shapes.get(f"{layout.prefix}model.embed_tokens.weight")
    has_head = any(".text_hidden_fcs." in f".{name}" for name in shapes)
    if not has_head:
        return _described("llava", _language_model(rows), llava_table(layout), shapes, ("A base, without masks.",))
    table = lisa_gsva_table(layout)
    size = None if rows is None else (rows[1], rows[0])
    if not layout.head_prefix:
        variant = "LISA-13B-llama2-v0 or -explanatory" if size == (5120, 32004) else _UNKNOWN_SIZE
        return _described("lisa", variant, table, shapes, _missing(table, shapes))
    system, variant = _LISA_GSVA.get(size, (LISA_OR_GSVA, f"{_UNKNOWN_SIZE}: {_language_model(rows)}"))
    return _described(system, variant, table, shapes, _missing(table, shapes))


def _missing(table: RuleTable, shapes: Shapes) -> tuple[str, ...]:
    """What the conversion will ask for, because the file does not hold it."""
    targets = [target for target, parts in table.apply(shapes).targets.items() if WEIGHT in parts]
    asked = {
        VISION_TOWER: "It holds no CLIP tower: the conversion needs --vision-tower.",
        f"{SEGMENTER}vision_encoder.": "It holds no SAM encoder: the conversion needs --sam.",
        f"{VLM}model.language_model.layers.": "It holds no language model: the conversion needs --base with weights.",
    }
    return tuple(note for prefix, note in asked.items() if not any(target.startswith(prefix) for target in targets))


def _language_model(embedding: tuple[int, ...] | None) -> str:
    if embedding is None or len(embedding) != 2:
        return "no embedding"
    return f"hidden size {embedding[1]}, {embedding[0]} vocabulary rows"


def _vip_llava(shapes: Shapes) -> Recognised:
    embedding = shapes.get("model.embed_tokens.weight", ())
    variant = _VIP_LLAVA.get((embedding[-1], embedding[0]) if len(embedding) == 2 else None, _UNKNOWN_SIZE)
    tower = any(name.startswith("model.vision_tower.") for name in shapes)
    notes = () if tower else ("It holds no CLIP tower: the conversion needs --vision-tower.",)
    return _described("vip_llava", variant, vip_llava_table(), shapes, notes)


def _ivm(shapes: Shapes) -> Recognised:
    table = ivm_table(detect_ivm_layout(shapes))
    targets = table.apply(shapes).targets
    whole = any(target.startswith(VISION_TOWER) for target in targets)
    notes = () if whole else ("It holds trained parts only: base LLaVA and SAM come from their own files.",)
    if f"{SEGMENTER}shared_image_embedding.positional_embedding" not in targets:
        notes += ("The decoder's positional matrix is missing; a random one would give wrong masks.",)
    return _described("ivm", "the whole module" if whole else "IVM-V1.0, trained parts", table, shapes, notes)


def _difflmm(shapes: Shapes) -> Recognised:
    adapter = "default." if any(".lora_A.default." in name for name in shapes) else ""
    table = difflmm_table(difflmm_prefix(shapes), adapter)
    return _described("difflmm", "difflmm-llava-v1.5-7b-lora", table, shapes, ("Vicuna v1.5 is not in it.",))
