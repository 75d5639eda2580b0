"""Rename tables of IVM: the file of trained parts only, and the dump of the whole module.

IVM is LLaVA-1.5 with adapters (`vlm`), an MLP (`seg_projector`) and SAM's image encoder with a decoder of its own
(`segmenter`). That decoder shares SAM's transformer and upscaling, has one mask token and one hypernetwork, no IoU
head, and a positional matrix of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from .errors import ConversionError
from .recognition import Recognised, Shapes, described
from .rules import LORA_A, LORA_B, Rule, RuleTable
from .rules_lisa_gsva import MM_PROJECTOR, PROJECTOR, SEGMENTER, TEXT_MODEL, VISION_TOWER, VLM, sam_table


_WRAPPED = "prompt_encoder.model.base_model.model."
_ADAPTER = re.compile(
    re.escape(_WRAPPED)
    + r"(?P<text>language_model\.model\.|model\.language_model\.)layers\.\d+\.(?P<module>.+)"
    + r"\.lora_[AB]\.(?:(?P<adapter>[^.]+)\.)?weight"
)
_SHARED_WITH_SAM = (
    "image_encoder.",
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_upscaling.",
    "mask_decoder.transformer.",
)


@dataclass(frozen=True)
class IvmLayout:
    """How one IVM file spells its names.

    Args:
        renamed (`bool`): Whether the language model stands under `model.language_model`, as it does since
            transformers 4.52, and not under `language_model.model`.
        adapted (`tuple[str, ...]`): Modules of a decoder layer with a LoRA.
        adapter (`str`): The adapter's name followed by a dot, or `""` where PEFT left it out.
        base_layer (`bool`): Whether adapted weights are spelled `.base_layer.weight` (PEFT 0.6 and later).
        nested_tower (`bool`): Whether CLIP's names carry `vision_model.`.
    """

    renamed: bool = False
    adapted: tuple[str, ...] = ("self_attn.q_proj", "self_attn.v_proj")
    adapter: str = "default."
    base_layer: bool = True
    nested_tower: bool = True


def detect_ivm_layout(keys: Collection[str]) -> IvmLayout:
    """Read the layout of an IVM file off its names.

    Raises:
        ConversionError: The names are not those of an IVM checkpoint, or mix two spellings.
    """
    matches = [match for key in keys if (match := _ADAPTER.fullmatch(key))]
    if not matches or not any(key.startswith("prompt_encoder.text_proj.") for key in keys):
        raise ConversionError(
            "Not an IVM checkpoint, which holds `prompt_encoder.text_proj` and adapters under `prompt_encoder.model`.",
            next_step="Pass IVM-V1.0.bin or a dump of the whole IVM module.",
        )
    spellings = {(match["text"], match["adapter"]) for match in matches}
    if len(spellings) != 1:
        raise ConversionError(
            f"The adapters are spelled in {len(spellings)} ways.", next_step="Save the model with one adapter."
        )
    text, adapter = spellings.pop()
    return IvmLayout(
        renamed=text.startswith("model."),
        adapted=tuple(sorted({match["module"] for match in matches})),
        adapter="" if adapter is None else f"{adapter}.",
        base_layer=any(".base_layer." in key for key in keys) or not any(".embed_tokens." in key for key in keys),
        nested_tower=not any(".vision_tower." in key and ".vision_tower.vision_model." not in key for key in keys),
    )


def ivm_table(layout: IvmLayout) -> RuleTable:
    """All names of an IVM file in the given layout; what only the whole dump holds is optional."""
    rules = [
        *_language_model_rules(layout),
        *_tower_rules(layout),
        Rule("prompt_encoder.text_proj.fc1.{leaf}", f"{PROJECTOR}linear_1.{{leaf}}"),
        Rule("prompt_encoder.text_proj.fc2.{leaf}", f"{PROJECTOR}linear_2.{{leaf}}"),
        *_segmenter_rules(),
    ]
    return RuleTable(rules, "IVM")


def llava_hf_table(keys: Collection[str]) -> RuleTable:
    """The base: LLaVA-1.5 as any version of transformers has saved it.

    Raises:
        ConversionError: The names are another model's, or LLaVA's in its authors' layout.
    """
    renamed = any(key.startswith("model.language_model.") for key in keys)
    if not renamed and not any(key.startswith("language_model.model.") for key in keys):
        raise ConversionError(
            "The base is not LLaVA-1.5 in the layout of transformers, which has `language_model` and "
            f"`multi_modal_projector`; its first tensors are {', '.join(map(repr, list(keys)[:3]))}.",
            next_step="Pass llava-hf/llava-1.5-7b-hf, or a folder with it.",
        )
    nested = any("vision_tower.vision_model." in key for key in keys)
    layout = IvmLayout(renamed=renamed, adapted=(), base_layer=False, nested_tower=nested)
    return RuleTable([*_language_model_rules(layout, ""), *_tower_rules(layout, "")], "LLaVA-1.5")


def _language_model_rules(layout: IvmLayout, wrapped: str = _WRAPPED) -> list[Rule]:
    text = wrapped + ("model.language_model." if layout.renamed else "language_model.model.")
    head = wrapped + ("" if layout.renamed else "language_model.")
    layer, target = f"{text}layers.{{n}}.", f"{TEXT_MODEL}layers.{{n}}."
    rules = []
    for module in layout.adapted:
        rules += [
            Rule(f"{layer}{module}.{part}.{layout.adapter}weight", f"{target}{module}.weight", part=part)
            for part in (LORA_A, LORA_B)
        ]
        if layout.base_layer:
            rules.append(Rule(f"{layer}{module}.base_layer.{{leaf}}", f"{target}{module}.{{leaf}}", optional=True))
    return [
        *rules,
        Rule(f"{text}embed_tokens.weight", f"{TEXT_MODEL}embed_tokens.weight", optional=True),
        Rule(f"{layer}{{rest}}", f"{target}{{rest}}", optional=True),
        Rule(f"{text}norm.weight", f"{TEXT_MODEL}norm.weight", optional=True),
        Rule(f"{head}lm_head.weight", f"{VLM}lm_head.weight", optional=True),
    ]


def _tower_rules(layout: IvmLayout, wrapped: str = _WRAPPED) -> list[Rule]:
    source = wrapped + ("model." if layout.renamed else "")
    tower = f"{source}vision_tower." + ("vision_model." if layout.nested_tower else "")
    return [
        Rule(f"{tower}embeddings.position_ids", None, reason="position ids are recomputed", optional=True),
        *(
            Rule(f"{tower}{part}.{{rest}}", f"{VISION_TOWER}{part}.{{rest}}", optional=True)
            for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
        ),
        *(
            Rule(f"{source}multi_modal_projector.{name}.{{leaf}}", f"{MM_PROJECTOR}{name}.{{leaf}}", optional=True)
            for name in ("linear_1", "linear_2")
        ),
    ]


def _segmenter_rules() -> list[Rule]:
    shared = [rule for rule in sam_table().rules if rule.source.startswith(_SHARED_WITH_SAM)]
    hypernetwork = "mask_decoder.output_hypernetworks_mlps."
    return [
        *(replace(rule, optional=rule.source.startswith("image_encoder.")) for rule in shared),
        # Optional because it is a buffer: a file of parameters alone lacks it, and the converter must say so.
        Rule(
            "mask_decoder.pe_layer.positional_encoding_gaussian_matrix",
            f"{SEGMENTER}shared_image_embedding.positional_embedding",
            optional=True,
        ),
        *(
            Rule(f"{hypernetwork}layers.{index}.{{leaf}}", f"{SEGMENTER}{hypernetwork}{name}.{{leaf}}")
            for index, name in enumerate(("proj_in", "layers.0", "proj_out"))
        ),
    ]


def recognise_ivm(shapes: Shapes) -> Recognised:
    """The released file of trained parts, or a dump of the whole module."""
    table = ivm_table(detect_ivm_layout(shapes))
    targets = table.apply(shapes).targets
    whole = any(target.startswith(VISION_TOWER) for target in targets)
    notes = () if whole else ("It holds trained parts only: base LLaVA and SAM come from their own files.",)
    if f"{SEGMENTER}shared_image_embedding.positional_embedding" not in targets:
        notes += ("The decoder's positional matrix is missing; a random one would give wrong masks.",)
    return described("ivm", "the whole module" if whole else "IVM-V1.0, trained parts", table, shapes, notes)
