"""Rename tables of Sa2VA's published folders: a vision-language model of transformers, SAM 2 or 3 and two Linears."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from .errors import ConversionError
from .inventory import Inventory
from .original_internvl import TEXT_PREFIX, internvl_rules
from .recognition import UNKNOWN_SIZE, Recognised, Shapes, described
from .rules import ROWS, WEIGHT, Rule, RuleTable
from .rules_lisa_gsva import PROJECTOR, SEGMENTER, VISION_TOWER, VLM


GROUNDING = "grounding_encoder.sam2_model."
# One matrix there serves points, boxes and the image grid; transformers' models have two copies of it.
POSITIONS = f"{SEGMENTER}shared_image_embedding.positional_embedding"
POSITIONS_OF_POINTS = f"{SEGMENTER}prompt_encoder.shared_embedding.positional_embedding"
_EMBEDDING = "model.model.language_model.embed_tokens.weight"
_INTERNVL_EMBEDDING = f"{TEXT_PREFIX}embed_tokens.weight"
_INTERNLM2_EMBEDDING = f"{TEXT_PREFIX}tok_embeddings.weight"
_VIDEO = "only videos need it: it remembers earlier frames"
_DETECTOR = "SAM 3's detector needs it, which finds things by words of its own"
# Beside what follows, in SAM 3 and in both.
_MEMORY_OF_SAM3 = (
    "transformer.{rest}",
    "maskmem_backbone.{rest}",
    "no_obj_embed_spatial",
    "obj_ptr_tpos_proj.{leaf}",
)
_MEMORY = (
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "obj_ptr_proj.{rest}",
    "mask_downsample.{leaf}",
)
_TWO_LAYERS = ("proj_in", "proj_out")
_TRUNK_OF_SAM3 = f"{GROUNDING}backbone.vision_backbone.trunk."
_TABLE_OF_POSITIONS = f"{SEGMENTER}vision_encoder.backbone.embeddings.position_embeddings"
_QUERIES = re.compile(
    rf"{re.escape(SEGMENTER)}vision_encoder\.backbone\.layers\.\d+\.attention\.q_proj\.(weight|bias)"
)
# Hidden size and vocabulary rows of the published checkpoints.
_PUBLISHED = {
    (2048, 151674): "Sa2VA-Qwen3-VL-2B",
    (2560, 151674): "Sa2VA-Qwen3-VL-4B",
    (2048, 151670): "Sa2VA-Qwen2_5-VL-3B",
    (3584, 151670): "Sa2VA-Qwen2_5-VL-7B",
    (4096, 32007): "Sa2VA-LLaVA-1.5-7B",
    (896, 151679): "Sa2VA-1B",
    (2048, 151679): "Sa2VA-4B",
    (1536, 151679): "Sa2VA-InternVL3-2B",
    (3584, 151679): "Sa2VA-InternVL3-8B",
    (5120, 151679): "Sa2VA-InternVL3-14B",
}
_PUBLISHED_WITH_SAM3 = {(2560, 151674): "Sa2VA-Qwen3-VL-4B-SAM3"}


def sam2_table(source: str = GROUNDING, target: str = SEGMENTER) -> RuleTable:
    """SAM 2's own names (prefixed with `source`) to `Sam2Model`'s (prefixed with `target`)."""
    trunk, backbone = "image_encoder.trunk.", "vision_encoder.backbone."
    mlp = ("layers.0", "layers.1")
    pairs = [
        (f"{trunk}pos_embed", f"{backbone}pos_embed"),
        (f"{trunk}pos_embed_window", f"{backbone}pos_embed_window"),
        (f"{trunk}patch_embed.proj.{{leaf}}", f"{backbone}patch_embed.projection.{{leaf}}"),
        (f"{trunk}blocks.{{n}}.norm{{m}}.{{leaf}}", f"{backbone}blocks.{{n}}.layer_norm{{m}}.{{leaf}}"),
        *(
            (f"{trunk}blocks.{{n}}.mlp.{old}.{{leaf}}", f"{backbone}blocks.{{n}}.mlp.{new}.{{leaf}}")
            for old, new in zip(mlp, _TWO_LAYERS, strict=True)
        ),
        (f"{trunk}blocks.{{n}}.attn.{{rest}}", f"{backbone}blocks.{{n}}.attn.{{rest}}"),
        (f"{trunk}blocks.{{n}}.proj.{{leaf}}", f"{backbone}blocks.{{n}}.proj.{{leaf}}"),
        ("image_encoder.neck.convs.{n}.conv.{leaf}", "vision_encoder.neck.convs.{n}.{leaf}"),
        *_prompts_and_masks(mlp),
    ]
    unused = dict.fromkeys(("memory_attention.{rest}", "memory_encoder.{rest}", *_MEMORY), _VIDEO)
    return _segmenter_table("SAM 2", pairs, unused, source, target)


def sam3_table(source: str = GROUNDING, target: str = SEGMENTER) -> RuleTable:
    """The names of SAM 3's tracker (prefixed with `source`) to `Sam3TrackerModel`'s (prefixed with `target`);
    `complete_sam3` says what more is done with its image encoder."""
    vision, backbone, neck = "backbone.vision_backbone.", "vision_encoder.backbone.", "vision_encoder.neck.fpn_layers"
    block, layer, fpn = f"{vision}trunk.blocks.{{n}}.", f"{backbone}layers.{{n}}.", f"{vision}sam2_convs.{{n}}."
    pairs = [
        (f"{vision}trunk.pos_embed", f"{backbone}embeddings.position_embeddings"),
        (f"{vision}trunk.patch_embed.proj.weight", f"{backbone}embeddings.patch_embeddings.projection.weight"),
        (f"{vision}trunk.ln_pre.{{leaf}}", f"{backbone}layer_norm.{{leaf}}"),
        (f"{block}norm{{m}}.{{leaf}}", f"{layer}layer_norm{{m}}.{{leaf}}"),
        (f"{block}attn.qkv.{{leaf}}", f"{layer}attention.q_proj.{{leaf}}"),
        (f"{block}attn.proj.{{leaf}}", f"{layer}attention.o_proj.{{leaf}}"),
        (f"{block}mlp.fc{{m}}.{{leaf}}", f"{layer}mlp.fc{{m}}.{{leaf}}"),
        # The finest level is scaled up in two steps with a GELU between them, the next one in one.
        (f"{vision}sam2_convs.0.dconv_2x2_0.{{leaf}}", f"{neck}.0.scale_layers.0.{{leaf}}"),
        (f"{vision}sam2_convs.0.dconv_2x2_1.{{leaf}}", f"{neck}.0.scale_layers.2.{{leaf}}"),
        (f"{vision}sam2_convs.1.dconv_2x2.{{leaf}}", f"{neck}.1.scale_layers.0.{{leaf}}"),
        (f"{fpn}conv_1x1.{{leaf}}", f"{neck}.{{n}}.proj1.{{leaf}}"),
        (f"{fpn}conv_3x3.{{leaf}}", f"{neck}.{{n}}.proj2.{{leaf}}"),
        *_prompts_and_masks(("lin1", "lin2")),
    ]
    unused = dict.fromkeys((*_MEMORY_OF_SAM3, *_MEMORY), _VIDEO)
    return _segmenter_table("SAM 3", pairs, {f"{vision}convs.{{rest}}": _DETECTOR, **unused}, source, target)


def complete_sam3(inventory: Inventory) -> None:
    """Give queries, keys and values of SAM 3's image encoder a parameter each, and leave the entry out that its table
    of positions has for a class token, which it does not have. Nothing is done for a SAM 2.

    Raises:
        ConversionError: The rows of queries, keys and values are not three times as many as others.
    """
    inventory.split_attention(_QUERIES)
    if _TABLE_OF_POSITIONS in inventory.pieces:
        inventory.skip_first(_TABLE_OF_POSITIONS)


def _prompts_and_masks(mlp: tuple[str, str]) -> list[tuple[str, str]]:
    """Prompt encoder and mask decoder, which SAM 3's tracker has from SAM 2; the two layers between attentions have
    the names `mlp`."""
    transformer, three_layers = "transformer.", ("proj_in", "layers.0", "proj_out")
    return [
        ("no_mem_embed", "no_memory_embedding"),
        (
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            "shared_image_embedding.positional_embedding",
        ),
        ("sam_prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
        ("sam_prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
        *(
            (f"sam_prompt_encoder.mask_downscaling.{index}.{{leaf}}", f"prompt_encoder.mask_embed.{layer}.{{leaf}}")
            for index, layer in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))
        ),
        *(
            (f"sam_mask_decoder.{token}.weight", f"mask_decoder.{token}.weight")
            for token in ("iou_token", "mask_tokens", "obj_score_token")
        ),
        *((f"sam_mask_decoder.{conv}.{{leaf}}", f"mask_decoder.{conv}.{{leaf}}") for conv in ("conv_s0", "conv_s1")),
        *(
            (f"sam_mask_decoder.output_upscaling.{index}.{{leaf}}", f"mask_decoder.upscale_{layer}.{{leaf}}")
            for index, layer in ((0, "conv1"), (1, "layer_norm"), (3, "conv2"))
        ),
        *(
            (f"sam_mask_decoder.{head}.layers.{index}.{{leaf}}", f"mask_decoder.{head}.{layer}.{{leaf}}")
            for head in ("iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps.{n}")
            for index, layer in enumerate(three_layers)
        ),
        *(
            (
                f"sam_mask_decoder.{transformer}layers.{{n}}.mlp.{old}.{{leaf}}",
                f"mask_decoder.{transformer}layers.{{n}}.mlp.{new}.{{leaf}}",
            )
            for old, new in zip(mlp, _TWO_LAYERS, strict=True)
        ),
        (
            f"sam_mask_decoder.{transformer}layers.{{n}}.norm{{m}}.{{leaf}}",
            f"mask_decoder.{transformer}layers.{{n}}.layer_norm{{m}}.{{leaf}}",
        ),
        (
            f"sam_mask_decoder.{transformer}norm_final_attn.{{leaf}}",
            f"mask_decoder.{transformer}layer_norm_final_attn.{{leaf}}",
        ),
        *(
            (
                f"sam_mask_decoder.{transformer}{attention}.out_proj.{{leaf}}",
                f"mask_decoder.{transformer}{attention}.o_proj.{{leaf}}",
            )
            for attention in _attentions()
        ),
        *(
            (
                f"sam_mask_decoder.{transformer}{attention}.{letter}_proj.{{leaf}}",
                f"mask_decoder.{transformer}{attention}.{letter}_proj.{{leaf}}",
            )
            for attention in _attentions()
            for letter in "qkv"
        ),
    ]


def _segmenter_table(
    name: str, pairs: list[tuple[str, str]], unused: Mapping[str, str], source: str, target: str
) -> RuleTable:
    rules = [Rule(source + old, target + new) for old, new in pairs]
    # One embedding per kind of point there, one matrix with a row for each here.
    rules += [
        Rule(f"{source}sam_prompt_encoder.point_embeddings.{row}.weight", f"{target}prompt_encoder.point_embed.weight",
             part=part)
        for row, part in enumerate((WEIGHT, *ROWS))
    ]  # fmt: skip
    rules += [Rule(source + old, None, reason=reason) for old, reason in unused.items()]
    return RuleTable(rules, name)


def _attentions() -> list[str]:
    in_layer = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    return [*(f"layers.{{n}}.{name}" for name in in_layer), "final_attn_token_to_image"]


def sa2va_table(names: Collection[str]) -> RuleTable:
    """All names of a published Sa2VA.

    Raises:
        ConversionError: The names are those of another kind of Sa2VA, or of something else.
    """
    check_kind(names)
    of_transformers = [
        # transformers 5 has left the level of CLIP's tower out.
        Rule("model.model.vision_tower.vision_model.{rest}", f"{VISION_TOWER}{{rest}}", optional=True),
        Rule("model.{rest}", f"{VLM}{{rest}}"),
    ]
    rules = [
        *(internvl_rules() if _INTERNVL_EMBEDDING in names else of_transformers),
        Rule("text_hidden_fcs.0.{leaf}", f"{PROJECTOR}linear_1.{{leaf}}"),
        Rule("text_hidden_fcs.2.{leaf}", f"{PROJECTOR}linear_2.{{leaf}}"),
        *(sam3_table() if has_sam3(names) else sam2_table()).rules,
    ]
    return RuleTable(rules, "Sa2VA")


def has_sam3(names: Collection[str]) -> bool:
    """Whether the segmenter of a published Sa2VA is SAM 3's tracker, and not SAM 2."""
    return any(name.startswith(_TRUNK_OF_SAM3) for name in names)


def check_kind(names: Collection[str]) -> None:
    """Refuse what is no Sa2VA on Qwen-VL, LLaVA or InternVL with SAM 2 or 3.

    Raises:
        ConversionError: See above.
    """
    has_projector = any(name.startswith("text_hidden_fcs.") for name in names)
    if has_projector and _INTERNLM2_EMBEDDING in names:
        raise ConversionError(
            "This is a Sa2VA on InternVL with InternLM2 (8B, 26B), a language model that transformers does not have.",
            next_step="Convert one with Qwen2.5, such as ByteDance/Sa2VA-InternVL3-8B.",
        )
    has_language = _EMBEDDING in names or _INTERNVL_EMBEDDING in names
    if not has_projector or not any(name.startswith(GROUNDING) for name in names) or not has_language:
        raise ConversionError(
            f"Not a Sa2VA checkpoint, which holds `{_EMBEDDING}`, `{GROUNDING}` and `text_hidden_fcs`.",
            next_step="Pass the whole published folder.",
        )


def recognise_sa2va(shapes: Shapes) -> Recognised:
    """Sa2VA, told from others by its SAM 2 or 3."""
    table = sa2va_table(shapes)
    rows, hidden_size = shapes[_INTERNVL_EMBEDDING if _INTERNVL_EMBEDDING in shapes else _EMBEDDING]
    published = _PUBLISHED_WITH_SAM3 if has_sam3(shapes) else _PUBLISHED
    variant = published.get((hidden_size, rows), f"{UNKNOWN_SIZE}: hidden size {hidden_size}, {rows} vocabulary rows")
    return described("sa2va", variant, table, shapes)
