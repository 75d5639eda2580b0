"""Rename table of DiffLMM's published LoRA folder: `adapter_model.bin` and `non_lora_trainables.bin` together.

The language model itself (Vicuna v1.5) and both vision towers are in no published file. The adapters are parts of the
weights they are merged into. Layers keep their own names; those that make the implicit caption, which the original
keeps in the projector, stand apart from it.
"""

from __future__ import annotations

from collections.abc import Collection

from .errors import ConversionError
from .recognition import Recognised, Shapes, described
from .rules import LORA_A, LORA_B, Rule, RuleTable


TEXT_MODEL, VISION_TOWER = "model.language_model.", "model.vision_tower."
PROJECTOR, CAPTIONER = "model.multi_modal_projector.", "model.implicit_captioner."
DIFFUSION, PROMPT_ENCODER = "model.diffusion.", "model.prompt_encoder."
# PEFT wraps the causal language model, which holds its own `model`; some savers leave the outer wrapper out.
_PREFIXES = ("base_model.model.model.", "model.model.", "model.")
_MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
_PROJECTOR_LAYERS = ("vt_pe", "sd_norm_layer.{leaf}", "sd_proj_layer.{n}.{leaf}", "linear.{n}.{leaf}")
_CAPTIONER_LAYERS = ("clip_pe", "clip_projector.{n}.{leaf}")
_NO_CAPTION = "the model is conditioned on the empty prompt"
_AFTER = "it comes after the block whose output is used"
# What diffusers calls the layers of the VAE's attention now, by their names in the releases of Stable Diffusion 1.
_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def difflmm_prefix(keys: Collection[str]) -> str:
    """What precedes `layers` and `mm_projector` in the names of this file.

    Raises:
        ConversionError: The names are not those of a LLaVA adapter.
    """
    for prefix in _PREFIXES:
        if keys and all(key.startswith((f"{prefix}layers.", f"{prefix}mm_projector.")) for key in keys):
            return prefix
    raise ConversionError(
        "Not a DiffLMM adapter, which holds LoRA factors of `layers` and an `mm_projector`.",
        next_step="Pass the folder with adapter_model and non_lora_trainables.",
    )


def difflmm_table(
    prefix: str = _PREFIXES[0], adapter: str = "", *, adapted: bool = True, implicit_caption: bool = True
) -> RuleTable:
    """All names of DiffLMM's two files.

    Args:
        prefix (`str`, *optional*): See `difflmm_prefix`.
        adapter (`str`, *optional*, defaults to `""`): The adapter's name and a dot, where the saver has kept it.
        adapted (`bool`, *optional*, defaults to `True`): Whether there are adapters; pretraining trains none.
        implicit_caption (`bool`, *optional*, defaults to `True`): Whether the model uses the implicit caption.
    """
    rules = [
        Rule(
            f"{prefix}layers.{{n}}.{module}.{part}.{adapter}weight",
            f"{TEXT_MODEL}layers.{{n}}.{module}.weight",
            part=part,
        )
        for module in (_MODULES if adapted else ())
        for part in (LORA_A, LORA_B)
    ]
    source = f"{prefix}mm_projector."
    rules += [Rule(source + name, PROJECTOR + name) for name in _PROJECTOR_LAYERS]
    if implicit_caption:
        rules += [Rule(source + name, CAPTIONER + name) for name in _CAPTIONER_LAYERS]
    else:
        rules += [Rule(source + name, None, reason=_NO_CAPTION) for name in _CAPTIONER_LAYERS]
    return RuleTable(rules, "DiffLMM")


def stable_diffusion_table(num_up_blocks: int, diffusion_block: int, *, text_encoder: bool = False) -> RuleTable:
    """The names of a diffusers folder, as `open_source` gives them.

    Args:
        num_up_blocks (`int`): How many up blocks the UNet has.
        diffusion_block (`int`): Index of the one whose output is used.
        text_encoder (`bool`, *optional*, defaults to `False`): Whether the model uses the text encoder.
    """
    unused = "only the VAE's encoder is used"
    rules = [
        *(
            Rule(f"unet.up_blocks.{block}.{{rest}}", None, reason=_AFTER)
            for block in range(diffusion_block + 1, num_up_blocks)
        ),
        Rule("unet.conv_norm_out.{leaf}", None, reason=_AFTER),
        Rule("unet.conv_out.{leaf}", None, reason=_AFTER),
        Rule("unet.{rest}", f"{DIFFUSION}unet.{{rest}}"),
        Rule("vae.decoder.{rest}", None, reason=unused, optional=True),
        Rule("vae.post_quant_conv.{leaf}", None, reason=unused, optional=True),
    ]
    attention = "encoder.mid_block.attentions.{n}."
    rules += [
        Rule(f"vae.{attention}{old}.{{leaf}}", f"{DIFFUSION}vae.{attention}{new}.{{leaf}}", optional=True)
        for old, new in _VAE_ATTENTION.items()
    ]
    rules.append(Rule("vae.{rest}", f"{DIFFUSION}vae.{{rest}}"))
    if text_encoder:
        rules += [
            Rule(
                "text_encoder.text_model.embeddings.position_ids",
                None,
                reason="position ids are recomputed",
                optional=True,
            ),
            Rule("text_encoder.text_model.{rest}", f"{PROMPT_ENCODER}{{rest}}"),
        ]
    else:
        rules.append(Rule("text_encoder.{rest}", None, reason="the implicit caption takes its place", optional=True))
    return RuleTable(rules, "Stable Diffusion")


def recognise_difflmm(shapes: Shapes) -> Recognised:
    """The published LoRA folder."""
    adapter = "default." if any(".lora_A.default." in name for name in shapes) else ""
    table = difflmm_table(difflmm_prefix(shapes), adapter)
    return described("difflmm", "difflmm-llava-v1.5-7b-lora", table, shapes, ("Vicuna v1.5 is not in it.",))
