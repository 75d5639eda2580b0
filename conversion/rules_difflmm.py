"""Rename table of DiffLMM's published LoRA folder: `adapter_model.bin` and `non_lora_trainables.bin` together.

The language model itself (Vicuna v1.5) and both vision towers are in no published file. The adapters are parts of the
weights they are merged into; the projector of diffusion and CLIP features keeps the names of its own layers.
"""

from __future__ import annotations

from collections.abc import Collection

from .errors import ConversionError
from .rules import LORA_A, LORA_B, Rule, RuleTable
from .rules_lisa_gsva import MM_PROJECTOR, TEXT_MODEL


# PEFT wraps the causal language model, which holds its own `model`; some savers leave the outer wrapper out.
_PREFIXES = ("base_model.model.model.", "model.model.", "model.")
_MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
_PROJECTOR_PARAMETERS = ("clip_pe", "vt_pe")
_PROJECTOR_LAYERS = ("clip_projector.{n}", "sd_norm_layer", "sd_proj_layer.{n}", "linear.{n}")


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


def difflmm_table(prefix: str = _PREFIXES[0], adapter: str = "") -> RuleTable:
    """All names of DiffLMM's two files.

    Args:
        prefix (`str`, *optional*): See `difflmm_prefix`.
        adapter (`str`, *optional*, defaults to `""`): The adapter's name and a dot, where the saver has kept it.
    """
    rules = [
        Rule(
            f"{prefix}layers.{{n}}.{module}.{part}.{adapter}weight",
            f"{TEXT_MODEL}layers.{{n}}.{module}.weight",
            part=part,
        )
        for module in _MODULES
        for part in (LORA_A, LORA_B)
    ]
    source = f"{prefix}mm_projector."
    rules += [Rule(source + name, MM_PROJECTOR + name) for name in _PROJECTOR_PARAMETERS]
    rules += [Rule(f"{source}{name}.{{leaf}}", f"{MM_PROJECTOR}{name}.{{leaf}}") for name in _PROJECTOR_LAYERS]
    return RuleTable(rules, "DiffLMM")
