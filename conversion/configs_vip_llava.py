"""ViP-LLaVA's configs, from the originals' plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerBase,
    VipLlavaConfig,
)

from .configs import check_llama_sizes, generation_defaults, text_config
from .errors import ConversionError
from .sources import read_config, read_json


# The hidden states that are concatenated, in this order. The tower's name says four layers, and the config states
# another single one that the code does not read.
VISION_FEATURE_LAYERS = (-2, -5, -8, -11, 6)
PHI_3, LLAMA_3 = "llava_phi_3", "llava_llama_3"
_MODEL_TYPES = ("llava", "llava_llama", "llava_phi3")
_LLAMA_3_END = "<|eot_id|>"
# The end of a turn, after which the original stops besides the tokenizer's end token.
_TURN_ENDS = {LLAMA_3: _LLAMA_3_END, PHI_3: "<|end|>"}


def read_vip_llava_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a published ViP-LLaVA folder.

    Raises:
        ConversionError: There is none, or it is another model's.
    """
    path = folder / "config.json"
    config = read_config(path)
    if config.get("model_type") not in _MODEL_TYPES or "text_config" in config:
        raise ConversionError(
            f"A ViP-LLaVA config is needed; this one has model_type {config.get('model_type')!r}"
            f"{' in the Hugging Face layout, which transformers loads as it is' if 'text_config' in config else ''}.",
            path=path,
            next_step="Pass the folder of the original checkpoint, such as mucai/vip-llava-7b.",
        )
    if config.get("mm_use_im_start_end"):
        raise ConversionError(
            "The config sets mm_use_im_start_end: tokens stand around the image, which no published ViP-LLaVA has.",
            path=path,
            next_step="Pass a checkpoint trained with --mm_use_im_start_end False, as all published ones were.",
        )
    check_llama_sizes(config, path)
    return config


def choose_template(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation template a checkpoint was trained with; the original tells it from the model's name."""
    if config["model_type"] == "llava_phi3":
        return PHI_3
    return LLAMA_3 if _LLAMA_3_END in tokenizer.get_vocab() else "llava_v1"


def vip_llava_config(
    config: Mapping[str, Any], vision: CLIPVisionConfig, tokenizer: PreTrainedTokenizerBase, rows: int
) -> VipLlavaConfig:
    """
    Args:
        config (`Mapping[str, Any]`): The original's JSON.
        vision (`CLIPVisionConfig`): The CLIP tower.
        tokenizer (`PreTrainedTokenizerBase`): The converted tokenizer.
        rows (`int`): Vocabulary rows of the converted model.

    Returns:
        `VipLlavaConfig`

    Raises:
        ConversionError: The tower has fewer layers than are read.
    """
    deepest = max(layer if layer >= 0 else -layer - 1 for layer in VISION_FEATURE_LAYERS)
    if vision.num_hidden_layers < deepest:
        raise ConversionError(
            f"The CLIP tower has {vision.num_hidden_layers} layers; states of {deepest} are read.",
            next_step="Pass vision_tower= with openai/clip-vit-large-patch14-336.",
        )
    text = _phi_3_config if config["model_type"] == "llava_phi3" else text_config
    text = text(config, tokenizer)
    text.vocab_size = rows
    return VipLlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        projector_layernorm_eps=1e-5,
        vision_feature_layer=list(VISION_FEATURE_LAYERS),
        tie_word_embeddings=False,
    )


def write_both_spellings(folder: Path) -> None:
    """Name the feature layers in config.json as releases of transformers before 5.23 do, too."""
    path = folder / "config.json"
    config = read_json(path)
    layers = list(VISION_FEATURE_LAYERS)
    config |= {"vision_feature_layer": layers, "vision_feature_layers": layers}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def vip_llava_generation_config(template: str, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Defaults of `generate`: it stops at the end of a turn as well."""
    defaults = generation_defaults(tokenizer)
    end = tokenizer.get_vocab().get(_TURN_ENDS.get(template))
    if end is not None and end != tokenizer.eos_token_id:
        defaults.eos_token_id = [tokenizer.eos_token_id, end]
    return defaults


def _phi_3_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Phi3Config:
    """The language model's config; the original attends to a sliding window, so that it must be kept."""
    llama: LlamaConfig = text_config(config, tokenizer)
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    )
    own = {
        "original_max_position_embeddings": llama.max_position_embeddings,
        "sliding_window": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    scaling = dict(config.get("rope_scaling") or {})
    rope = {"rope_type": scaling.pop("type", "default"), **scaling, "rope_theta": config.get("rope_theta", 10000.0)}
    return Phi3Config(
        **{name: getattr(llama, name) for name in names},
        **{name: config.get(name, default) for name, default in own.items()},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters=rope,
        tie_word_embeddings=False,
        use_cache=True,
    )
