"""Rename tables of LISA, GSVA, the LLaVA v1 folders they start from, SAM and CLIP.

The tables are functions of a `Layout`, which says how one particular file spells its prefixes. `detect_layout` reads
it off the names, so that one table serves merged LISA folders (v0 and v1), `zero_to_fp32` output with unmerged
adapters and GSVA's `.bin` files.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from .errors import ConversionError
from .recognition import UNKNOWN_SIZE, Recognised, Shapes, described
from .rules import LORA_A, LORA_B, WEIGHT, Rule, RuleTable


VLM, SEGMENTER, PROJECTOR = "vlm.", "segmenter.", "seg_projector."
TEXT_MODEL = VLM + "model.language_model."
VISION_TOWER = VLM + "model.vision_tower."
MM_PROJECTOR = VLM + "model.multi_modal_projector."

_PEFT_PREFIX = "base_model.model."
_ROTARY = "the rotary frequencies are recomputed from the config"
_POSITION_IDS = "position ids are recomputed"
_ADAPTER = re.compile(r"model\.layers\.\d+\.(.+)\.lora_[AB]\.([^.]+)\.weight")
_ADAPTER_BARE = re.compile(r"model\.layers\.\d+\.(.+)\.lora_[AB]\.weight")
_BASE_LAYER = re.compile(r"model\.layers\.\d+\.(.+)\.base_layer\.(?:weight|bias)")

# Hidden size and vocabulary rows of the published LISA and GSVA checkpoints; LISA v0 is recognised by its names.
_PUBLISHED = {
    (4096, 32004): ("lisa", "LISA-7B-v1 or -explanatory"),
    (5120, 32003): ("lisa", "LISA-13B-llama2-v1 or -explanatory"),
    (4096, 32005): ("gsva", "GSVA-7B (pt, ft-gres or ft-res)"),
    (5120, 32005): ("gsva", "GSVA-13B (pt, ft-gres or ft-res)"),
    (5120, 32004): ("gsva", "GSVA-llama2-13B (pt, ft-gres or ft-res)"),
}
_SAM_VARIANTS = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}


@dataclass(frozen=True)
class Layout:
    """How one file spells the names of a LISA or GSVA model.

    Args:
        prefix (`str`): `"base_model.model."` when the model was saved inside its PEFT wrapper, else `""`.
        head_prefix (`str`): `"model."`, or `""` for the side files of LISA v0, before `visual_model` and
            `text_hidden_fcs`.
        adapted (`tuple[str, ...]`): Modules of a decoder layer with an unmerged LoRA, such as `"self_attn.q_proj"`.
        adapter (`str`): The adapter's name followed by a dot (`"default."`), or `""` where PEFT left it out.
        base_layer (`tuple[str, ...]`): Adapted modules whose own weight is spelled `.base_layer.weight`.
        mlp_projector (`bool`): Whether the multimodal projector is the two-layer one.
    """

    prefix: str = ""
    head_prefix: str = "model."
    adapted: tuple[str, ...] = ()
    adapter: str = "default."
    base_layer: tuple[str, ...] = ()
    mlp_projector: bool = False


def detect_layout(keys: Collection[str]) -> Layout:
    """Read the layout of a LISA, GSVA or LLaVA v1 checkpoint off its tensor names.

    Raises:
        ConversionError: The names belong to another kind of checkpoint, or mix two spellings.
    """
    keys = list(keys)
    wrapped = sum(key.startswith(_PEFT_PREFIX) for key in keys)
    if wrapped not in (0, len(keys)):
        raise ConversionError(
            f"{wrapped} of {len(keys)} tensors carry the PEFT prefix {_PEFT_PREFIX!r} and the others do not.",
            next_step="Pass one complete file as zero_to_fp32 wrote it.",
        )
    prefix = _PEFT_PREFIX if wrapped else ""
    names = [key.removeprefix(prefix) for key in keys]
    if not any(name.startswith(("model.embed_tokens.", "model.layers.")) for name in names):
        raise ConversionError(_wrong_kind(names))
    named = {match.groups() for name in names if (match := _ADAPTER.fullmatch(name))}
    bare = {match[1] for name in names if (match := _ADAPTER_BARE.fullmatch(name))}
    adapters = {adapter + "." for _, adapter in named} | ({""} if bare else set())
    if len(adapters) > 1:
        raise ConversionError(
            f"The checkpoint holds several adapters ({', '.join(sorted(adapters))}).",
            next_step="Save it with one adapter, or merge the adapters first.",
        )
    return Layout(
        prefix=prefix,
        head_prefix="" if any(name.startswith(("visual_model.", "text_hidden_fcs.")) for name in names) else "model.",
        adapted=tuple(sorted({module for module, _ in named} | bare)),
        adapter=next(iter(adapters), "default."),
        base_layer=tuple(sorted({match[1] for name in names if (match := _BASE_LAYER.fullmatch(name))})),
        mlp_projector=any(name.startswith("model.mm_projector.0.") for name in names),
    )


def _wrong_kind(names: list[str]) -> str:
    """One sentence saying what a checkpoint that is neither LISA nor GSVA seems to be."""
    kinds = {
        (VLM, SEGMENTER, PROJECTOR): "it has been converted already",
        ("language_model.", "model.language_model."): "this is a LLaVA checkpoint in the Hugging Face layout",
        ("prompt_encoder.model.", "prompt_encoder.text_proj."): "this is an IVM checkpoint",
        ("image_encoder.", "visual_model."): "this is a SAM checkpoint",
        ("vision_model.", "text_model."): "this is a CLIP checkpoint",
        ("module.",): "this is a DeepSpeed training state; run its zero_to_fp32.py and pass the file that writes",
    }
    found = [kind for prefixes, kind in kinds.items() if any(name.startswith(prefixes) for name in names)]
    first = f"its first tensors are {', '.join(map(repr, names[:3]))}" if names else "it holds no tensors"
    kind = next(iter(found), first)
    return f"Not a LISA or GSVA checkpoint, which holds `model.embed_tokens` and `model.layers`: {kind}."


def sam_table(source: str = "", target: str = SEGMENTER) -> RuleTable:
    """Segment Anything's own names (prefixed with `source`) to `SamModel`'s (prefixed with `target`)."""
    mlp = ("proj_in", "layers.0", "proj_out")
    pairs = [
        ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
        ("image_encoder.patch_embed.proj.{leaf}", "vision_encoder.patch_embed.projection.{leaf}"),
        ("image_encoder.blocks.{n}.norm{m}.{leaf}", "vision_encoder.layers.{n}.layer_norm{m}.{leaf}"),
        ("image_encoder.blocks.{n}.{rest}", "vision_encoder.layers.{n}.{rest}"),
        ("image_encoder.neck.0.{leaf}", "vision_encoder.neck.conv1.{leaf}"),
        ("image_encoder.neck.1.{leaf}", "vision_encoder.neck.layer_norm1.{leaf}"),
        ("image_encoder.neck.2.{leaf}", "vision_encoder.neck.conv2.{leaf}"),
        ("image_encoder.neck.3.{leaf}", "vision_encoder.neck.layer_norm2.{leaf}"),
        # One matrix serves points, boxes and the image grid; SamModel ties its second name to this one.
        (
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            "shared_image_embedding.positional_embedding",
        ),
        ("prompt_encoder.point_embeddings.{n}.weight", "prompt_encoder.point_embed.{n}.weight"),
        ("prompt_encoder.mask_downscaling.0.{leaf}", "prompt_encoder.mask_embed.conv1.{leaf}"),
        ("prompt_encoder.mask_downscaling.1.{leaf}", "prompt_encoder.mask_embed.layer_norm1.{leaf}"),
        ("prompt_encoder.mask_downscaling.3.{leaf}", "prompt_encoder.mask_embed.conv2.{leaf}"),
        ("prompt_encoder.mask_downscaling.4.{leaf}", "prompt_encoder.mask_embed.layer_norm2.{leaf}"),
        ("prompt_encoder.mask_downscaling.6.{leaf}", "prompt_encoder.mask_embed.conv3.{leaf}"),
        ("prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
        ("prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
        ("mask_decoder.iou_token.weight", "mask_decoder.iou_token.weight"),
        ("mask_decoder.mask_tokens.weight", "mask_decoder.mask_tokens.weight"),
        ("mask_decoder.output_upscaling.0.{leaf}", "mask_decoder.upscale_conv1.{leaf}"),
        ("mask_decoder.output_upscaling.1.{leaf}", "mask_decoder.upscale_layer_norm.{leaf}"),
        ("mask_decoder.output_upscaling.3.{leaf}", "mask_decoder.upscale_conv2.{leaf}"),
        (
            "mask_decoder.transformer.layers.{n}.norm{m}.{leaf}",
            "mask_decoder.transformer.layers.{n}.layer_norm{m}.{leaf}",
        ),
        (
            "mask_decoder.transformer.norm_final_attn.{leaf}",
            "mask_decoder.transformer.layer_norm_final_attn.{leaf}",
        ),
        ("mask_decoder.transformer.{rest}", "mask_decoder.transformer.{rest}"),
        *(
            (f"mask_decoder.{head}.layers.{index}.{{leaf}}", f"mask_decoder.{head}.{layer}.{{leaf}}")
            for head in ("iou_prediction_head", "output_hypernetworks_mlps.{n}")
            for index, layer in enumerate(mlp)
        ),
    ]
    rules = [
        Rule(
            f"{source}pixel_{name}",
            None,
            reason="the image processor holds mean and standard deviation",
            optional=True,
        )
        for name in ("mean", "std")
    ]
    rules += [Rule(source + old, target + new) for old, new in pairs]
    return RuleTable(rules, "SAM")


def clip_table(keys: Collection[str], target: str = VISION_TOWER) -> RuleTable:
    """A CLIP folder's names (the whole CLIP model, or its vision half in either spelling) to the vision tower's."""
    nested = any(key.startswith("vision_model.") for key in keys)
    source = "vision_model." if nested else ""
    unused = "LLaVA uses CLIP's vision tower only"
    rules = [
        Rule("text_model.{rest}", None, reason=unused, optional=True),
        Rule("logit_scale", None, reason=unused, optional=True),
        Rule("text_projection.{rest}", None, reason=unused, optional=True),
        Rule("visual_projection.{rest}", None, reason=unused, optional=True),
        Rule(f"{source}embeddings.position_ids", None, reason=_POSITION_IDS, optional=True),
    ]
    rules += _tower_rules(source, target)
    return RuleTable(rules, "CLIP")


def _tower_rules(source: str, target: str, optional: bool = False) -> list[Rule]:
    parts = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
    return [Rule(f"{source}{part}.{{rest}}", f"{target}{part}.{{rest}}", optional=optional) for part in parts]


def llava_table(layout: Layout) -> RuleTable:
    """The language model, projector and embedded vision tower of a LLaVA v1 model; the base of `lisa_gsva_table`."""
    prefix = layout.prefix
    layers = f"{prefix}model.layers.{{n}}."
    tower = f"{prefix}model.vision_tower.vision_tower.vision_model."
    rules = [
        Rule(f"{layers}self_attn.rotary_emb.inv_freq", None, reason=_ROTARY, optional=True),
        Rule(f"{tower}embeddings.position_ids", None, reason=_POSITION_IDS, optional=True),
    ]
    for module in layout.adapted:
        target = f"{TEXT_MODEL}layers.{{n}}.{module}.weight"
        rules += [
            Rule(f"{layers}{module}.lora_A.{layout.adapter}weight", target, part=LORA_A),
            Rule(f"{layers}{module}.lora_B.{layout.adapter}weight", target, part=LORA_B),
        ]
    rules += [
        Rule(f"{layers}{module}.base_layer.{{leaf}}", f"{TEXT_MODEL}layers.{{n}}.{module}.{{leaf}}")
        for module in layout.base_layer
    ]
    rules += [
        Rule(f"{prefix}model.embed_tokens.weight", f"{TEXT_MODEL}embed_tokens.weight"),
        Rule(f"{layers}{{rest}}", f"{TEXT_MODEL}layers.{{n}}.{{rest}}"),
        Rule(f"{prefix}model.norm.weight", f"{TEXT_MODEL}norm.weight"),
        Rule(f"{prefix}lm_head.weight", f"{VLM}lm_head.weight"),
        *_projector_rules(layout),
        *_tower_rules(tower, VISION_TOWER, optional=True),
    ]
    return RuleTable(rules, "LLaVA")


def _projector_rules(layout: Layout) -> list[Rule]:
    source = f"{layout.prefix}model.mm_projector."
    if not layout.mlp_projector:
        return [Rule(f"{source}{{leaf}}", f"{MM_PROJECTOR}linear_1.{{leaf}}")]
    return [
        Rule(f"{source}0.{{leaf}}", f"{MM_PROJECTOR}linear_1.{{leaf}}"),
        Rule(f"{source}2.{{leaf}}", f"{MM_PROJECTOR}linear_2.{{leaf}}"),
    ]


def lisa_gsva_table(layout: Layout) -> RuleTable:
    """All names of a LISA or GSVA checkpoint in the given layout."""
    head = layout.prefix + layout.head_prefix
    rules = [
        *llava_table(layout).rules,
        *sam_table(f"{head}visual_model.").rules,
        Rule(f"{head}text_hidden_fcs.0.0.{{leaf}}", f"{PROJECTOR}linear_1.{{leaf}}"),
        Rule(f"{head}text_hidden_fcs.0.2.{{leaf}}", f"{PROJECTOR}linear_2.{{leaf}}"),
    ]
    return RuleTable(rules, "LISA/GSVA")


def recognise_llava_family(shapes: Shapes) -> Recognised:
    """LISA, GSVA, or the LLaVA v1 they start from, told by what it holds and by its vocabulary."""
    layout = detect_layout(shapes)
    rows = shapes.get(f"{layout.prefix}model.embed_tokens.weight")
    if not any(".text_hidden_fcs." in f".{name}" for name in shapes):
        return described("llava", _language_model(rows), llava_table(layout), shapes, ("A base, without masks.",))
    table = lisa_gsva_table(layout)
    size = None if rows is None else (rows[1], rows[0])
    if not layout.head_prefix:
        variant = "LISA-13B-llama2-v0 or -explanatory" if size == (5120, 32004) else UNKNOWN_SIZE
        return described("lisa", variant, table, shapes, _missing(table, shapes))
    system, variant = _PUBLISHED.get(size, (("lisa", "gsva"), f"{UNKNOWN_SIZE}: {_language_model(rows)}"))
    return described(system, variant, table, shapes, _missing(table, shapes))


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


def recognise_clip(shapes: Shapes) -> Recognised:
    """CLIP, or its vision tower alone."""
    return described("clip", "CLIP, or its vision tower", clip_table(list(shapes)), shapes)


def recognise_sam(shapes: Shapes) -> Recognised:
    """SAM's own file."""
    width = shapes.get("image_encoder.pos_embed", (0,))[-1]
    return described("sam", f"SAM {_SAM_VARIANTS.get(width, UNKNOWN_SIZE)}", sam_table(), shapes)
