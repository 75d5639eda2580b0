"""InternVL in its authors' layout: how its tensors and its sizes are called there.

From InternVL 1.5 on: InternViT, a pixel shuffle, two layers that project, and a language model that is a class of
transformers by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, InternVLConfig

from .configs import check_sizes
from .errors import ConversionError, refusing
from .inventory import Inventory
from .plan import HEAD
from .rules import Rule
from .rules_lisa_gsva import MM_PROJECTOR, TEXT_MODEL, VISION_TOWER


TEXT_PREFIX = "language_model.model."
_QUERIES = re.compile(rf"{re.escape(VISION_TOWER)}encoder\.layer\.\d+\.attention\.q_proj\.(weight|bias)")
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
# transformers' names of InternViT's fields, with what InternVisionConfig assumes of those that a config leaves out.
_VISION_FIELDS = {
    "hidden_size": ("hidden_size", 3200),
    "intermediate_size": ("intermediate_size", 12800),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "attention_bias": ("qkv_bias", False),
    "use_qk_norm": ("qk_normalization", True),
    "hidden_act": ("hidden_act", "gelu"),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "hidden_dropout_prob": ("dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
    "num_channels": ("num_channels", 3),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
}
_AGAIN = "Download the checkpoint again."


def internvl_rules() -> list[Rule]:
    """InternVL's own names to those of `InternVLForConditionalGeneration`; `split_attention` completes them."""
    embeddings, layer = "vision_model.embeddings.", "vision_model.encoder.layers.{n}."
    new_embeddings, new_layer = f"{VISION_TOWER}embeddings.", f"{VISION_TOWER}encoder.layer.{{n}}."
    pairs = [
        (f"{embeddings}class_embedding", f"{new_embeddings}cls_token"),
        (f"{embeddings}position_embedding", f"{new_embeddings}position_embeddings"),
        (f"{embeddings}patch_embedding.{{leaf}}", f"{new_embeddings}patch_embeddings.projection.{{leaf}}"),
        (f"{layer}attn.qkv.{{leaf}}", f"{new_layer}attention.q_proj.{{leaf}}"),
        (f"{layer}attn.proj.{{leaf}}", f"{new_layer}attention.projection_layer.{{leaf}}"),
        (f"{layer}mlp.fc{{m}}.{{leaf}}", f"{new_layer}mlp.fc{{m}}.{{leaf}}"),
        (f"{layer}norm1.{{leaf}}", f"{new_layer}layernorm_before.{{leaf}}"),
        (f"{layer}norm2.{{leaf}}", f"{new_layer}layernorm_after.{{leaf}}"),
        (f"{layer}ls{{m}}", f"{new_layer}lambda_{{m}}"),
        ("mlp1.0.{leaf}", f"{MM_PROJECTOR}layer_norm.{{leaf}}"),
        ("mlp1.1.{leaf}", f"{MM_PROJECTOR}linear_1.{{leaf}}"),
        ("mlp1.3.{leaf}", f"{MM_PROJECTOR}linear_2.{{leaf}}"),
        (f"{TEXT_PREFIX}{{rest}}", f"{TEXT_MODEL}{{rest}}"),
        ("language_model.lm_head.weight", HEAD),
    ]
    return [Rule(source, target) for source, target in pairs]


def split_attention(inventory: Inventory) -> None:
    """Give queries, keys and values of InternViT a parameter each; there they are the rows of one.

    Raises:
        ConversionError: The rows of one are not three times as many as others.
    """
    inventory.split_attention(_QUERIES)


def read_internvl_config(stored: Mapping[str, Any], text: Mapping[str, Any], path: Path) -> InternVLConfig:
    """The config of transformers' InternVL.

    Args:
        stored (`Mapping[str, Any]`): The original's JSON.
        text (`Mapping[str, Any]`): Of its `llm_config` the fields that are the model's.
        path (`Path`): Where it was read, for messages.

    Raises:
        ConversionError: It states impossible sizes, or what transformers' InternVL does not do.
    """
    vision = stored.get("vision_config")
    if not isinstance(vision, Mapping):
        raise ConversionError("The config has no `vision_config`.", path=path, next_step=_AGAIN)
    check_sizes(text, _SIZES, path)
    check_sizes(vision, (*_SIZES, "image_size", "patch_size"), path)
    check_sizes(stored, ("force_image_size",), path)
    fields = {name: vision.get(original, usual) for name, (original, usual) in _VISION_FIELDS.items()}
    ratio = stored.get("downsample_ratio", 0.5)
    if stored.get("ps_version", "v1") != "v2" or ratio != 0.5 or fields["use_qk_norm"]:
        raise ConversionError(
            f"The config states ps_version={stored.get('ps_version', 'v1')!r}, downsample_ratio={ratio!r} and "
            f"qk_normalization={fields['use_qk_norm']!r}; 'v2', 0.5 and False are converted, which InternVL has from "
            "1.5 on with InternViT-300M.",
            path=path,
            next_step="Convert a checkpoint on InternVL 2.5 or 3.",
        )
    with refusing("The config cannot be used", path=path, next_step=_AGAIN):
        return AutoConfig.for_model(
            "internvl",
            text_config=dict(text),
            vision_config=fields,
            downsample_ratio=ratio,
            image_seq_length=(tile_side(stored) // fields["patch_size"] // 2) ** 2,
            vision_feature_layer=stored.get("select_layer", -1),
            # trained with the model, and stored apart
            tie_word_embeddings=False,
        )


def tile_side(stored: Mapping[str, Any]) -> int:
    """Side in pixels of the tiles that the original cuts images into."""
    return stored.get("force_image_size") or stored["vision_config"].get("image_size", 224)


__all__ = ["TEXT_PREFIX", "internvl_rules", "read_internvl_config", "split_attention", "tile_side"]
