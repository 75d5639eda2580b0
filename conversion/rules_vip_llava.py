"""Rename table of ViP-LLaVA; its targets are the parameters of transformers' `VipLlavaForConditionalGeneration`.

One table serves all published sizes: Vicuna and Llama-3 keep their projections apart, Phi-3 fuses them, and
transformers' own text models do the same.
"""

from __future__ import annotations

from .recognition import UNKNOWN_SIZE, Recognised, Shapes, described
from .rules import Rule, RuleTable


_TEXT_MODEL = "model.language_model."
_VISION_TOWER = "model.vision_tower."
_PROJECTOR = "model.multi_modal_projector."
_ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."
# Hidden size and vocabulary rows of the published checkpoints.
_PUBLISHED = {
    (4096, 32000): "vip-llava-7b",
    (5120, 32000): "vip-llava-13b",
    (4096, 128256): "vip-llava-llama-3-8b",
    (4096, 128257): "vip-llava-llama-3-8b",
    (3072, 32064): "vip-llava-phi-3-mini-3.8b",
}


def vip_llava_table() -> RuleTable:
    """All names of a published ViP-LLaVA checkpoint."""
    layer = "model.layers.{n}."
    rules = [
        # Written by transformers 4.31 and earlier only, so the newer checkpoints have none.
        Rule(
            f"{layer}self_attn.rotary_emb.inv_freq",
            None,
            reason="the rotary frequencies are recomputed from the config",
            optional=True,
        ),
        Rule(f"{_ORIGINAL_TOWER}embeddings.position_ids", None, reason="position ids are recomputed", optional=True),
        Rule("model.embed_tokens.weight", f"{_TEXT_MODEL}embed_tokens.weight"),
        Rule(f"{layer}{{rest}}", f"{_TEXT_MODEL}layers.{{n}}.{{rest}}"),
        Rule("model.norm.weight", f"{_TEXT_MODEL}norm.weight"),
        Rule("lm_head.weight", "lm_head.weight"),
        Rule("model.mm_projector.clip_layernorm.{leaf}", f"{_PROJECTOR}projector_layernorm.{{leaf}}"),
        Rule("model.mm_projector.final_linear.0.{leaf}", f"{_PROJECTOR}linear_1.{{leaf}}"),
        Rule("model.mm_projector.final_linear.2.{leaf}", f"{_PROJECTOR}linear_2.{{leaf}}"),
        *(
            Rule(f"{_ORIGINAL_TOWER}{part}.{{rest}}", f"{_VISION_TOWER}{part}.{{rest}}")
            for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
        ),
    ]
    return RuleTable(rules, "ViP-LLaVA")


def recognise_vip_llava(shapes: Shapes) -> Recognised:
    """Which published checkpoint it is, and whether it holds its CLIP tower."""
    embedding = shapes.get("model.embed_tokens.weight", ())
    variant = _PUBLISHED.get((embedding[-1], embedding[0]) if len(embedding) == 2 else None, UNKNOWN_SIZE)
    tower = any(name.startswith("model.vision_tower.") for name in shapes)
    notes = () if tower else ("It holds no CLIP tower: the conversion needs --vision-tower.",)
    return described("vip_llava", variant, vip_llava_table(), shapes, notes)
