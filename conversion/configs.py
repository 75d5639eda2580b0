"""Configs of the language model, CLIP tower and composed model, from plain JSON.

The originals' `config.json` says `model_type: llava`, which `AutoConfig` takes for transformers' own LLaVA and fills
with defaults that are wrong for LLaVA v1. Every field is therefore read by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, PreTrainedTokenizerBase

from .errors import ConversionError, refusing
from .sources import read_config, read_json
from .tokenizers import IMAGE_TOKEN


# What LlamaConfig of the originals' time assumed for fields that a config leaves out.
_LLAMA_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
}
_LLAMA_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Far above every published model; a config that claims more would only keep the machine busy.
_LARGEST_SIZE, _MOST_LAYERS = 1 << 20, 1000
_CLIP_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "projection_dim",
    "hidden_act",
    "layer_norm_eps",
    "initializer_range",
    "initializer_factor",
)
_IMAGE_FIELDS = (
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
)
_CLIP_L_HIDDEN, _CLIP_L_LAYERS, _CLIP_L_HEADS = 1024, 24, 16
# LLaVA v1's names of what CLIP hands over, and transformers'.
_SELECT_FEATURES = {"patch": "default", "cls_patch": "full"}


def read_llava_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a LISA or LLaVA v1 folder.

    Raises:
        ConversionError: There is none, or it is another model's.
    """
    path = folder / "config.json"
    config = read_config(path)
    if config.get("model_type") not in ("llava", "llava_llama", "llama") or "text_config" in config:
        raise ConversionError(
            f"A LLaMA-based LLaVA v1 config is needed; this one has model_type {config.get('model_type')!r}"
            f"{' in the Hugging Face layout' if 'text_config' in config else ''}.",
            path=path,
            next_step="Pass the folder of the original checkpoint, or its LLaVA base in the original layout.",
        )
    check_llama_sizes(config, path)
    return config


def check_llama_sizes(config: Mapping[str, Any], path: Path) -> None:
    """Check that a config states the language model's sizes, and such as models have.

    Raises:
        ConversionError: It does not.
    """
    if missing := [name for name in _LLAMA_REQUIRED if not isinstance(config.get(name), int)]:
        raise ConversionError(f"The config does not state {', '.join(missing)}.", path=path)
    check_sizes(config, (*_LLAMA_REQUIRED, "num_key_value_heads", "max_position_embeddings"), path)


def check_sizes(config: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    """Refuse sizes that no model has."""
    for name in names:
        value, largest = config.get(name), _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST_SIZE
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise ConversionError(
                f"The config states {name}={value!r}; a whole number from 1 to {largest} is expected.",
                path=path,
                next_step="Download the config again.",
            )


def text_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The language model's config.

    Args:
        config (`Mapping[str, Any]`): The original's JSON.
        tokenizer (`PreTrainedTokenizerBase`): The converted tokenizer. The originals, too, take the special ids from
            it: old LLaMA configs state wrong ones.

    Returns:
        `LlamaConfig`: `use_cache` is on, whatever the original says: LISA turns it off for its own decoding loop.
    """
    fields = {name: config.get(name, default) for name, default in _LLAMA_DEFAULTS.items()}
    fields |= {name: config[name] for name in _LLAMA_REQUIRED}
    scaling = dict(config.get("rope_scaling") or {})
    rope = {"rope_type": scaling.pop("type", "default"), **scaling, "rope_theta": config.get("rope_theta", 10000.0)}
    return LlamaConfig(
        **fields,
        num_key_value_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        rope_parameters=rope,
        tie_word_embeddings=False,
        use_cache=True,
    )


def clip_config_from_folder(folder: Path) -> CLIPVisionConfig:
    """The vision half of a CLIP folder's config, or the config of a folder that holds the vision half alone.

    Raises:
        ConversionError: It is another model's config.
    """
    path = folder / "config.json"
    config = read_config(path)
    if config.get("model_type") == "clip":
        # Old files repeat the sizes in `vision_config_dict`, which then counts.
        parts = [config.get(name) or {} for name in ("vision_config", "vision_config_dict")]
        config = parts[0] | parts[1] if all(isinstance(part, dict) for part in parts) else None
    elif config.get("model_type") != "clip_vision_model":
        raise ConversionError(
            f"A CLIP config is needed, this one has model_type {config.get('model_type')!r}.",
            path=path,
            next_step="Pass the folder of the CLIP model the checkpoint was trained with, such as "
            "openai/clip-vit-large-patch14.",
        )
    if not isinstance(config, Mapping):
        raise ConversionError("The config's `vision_config` is not a JSON object.", path=path)
    check_sizes(config, _CLIP_FIELDS[:8], path)
    with refusing("The CLIP config cannot be used", path=path, next_step="Download the CLIP model again."):
        return CLIPVisionConfig(**{name: config[name] for name in _CLIP_FIELDS if config.get(name) is not None})


def clip_config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CLIPVisionConfig:
    """The config of a CLIP ViT-L tower that comes without its folder.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by `CLIPVisionModel` parameter name.

    Raises:
        ConversionError: It is not a ViT-L; the number of heads of others is not in the weights.
    """
    hidden_size, channels, patch_size, _ = shapes["embeddings.patch_embedding.weight"]
    layers = sum(name.endswith(".mlp.fc1.weight") for name in shapes)
    if (hidden_size, layers) != (_CLIP_L_HIDDEN, _CLIP_L_LAYERS):
        raise ConversionError(
            f"The CLIP tower inside the checkpoint has {layers} layers of width {hidden_size}; only ViT-L "
            f"({_CLIP_L_LAYERS} of {_CLIP_L_HIDDEN}) is known without its config.",
            next_step="Pass vision_tower= with the folder of that CLIP model.",
        )
    patches = shapes["embeddings.position_embedding.weight"][0] - 1
    return CLIPVisionConfig(
        hidden_size=hidden_size,
        intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=layers,
        num_attention_heads=_CLIP_L_HEADS,
        num_channels=channels,
        patch_size=patch_size,
        image_size=math.isqrt(patches) * patch_size,
        projection_dim=768,
    )


def llava_config(
    config: Mapping[str, Any], text: LlamaConfig, vision: CLIPVisionConfig, *, image_token_id: int, mlp_projector: bool
) -> LlavaConfig:
    """The vision-language model's config.

    Args:
        config (`Mapping[str, Any]`): The original's JSON.
        text (`LlamaConfig`): The language model.
        vision (`CLIPVisionConfig`): The CLIP tower.
        image_token_id (`int`): Id of the image placeholder.
        mlp_projector (`bool`): Whether the projector has two layers with GELU; LLaVA v1's single Linear is expressed
            with an identity as activation and second layer.

    Raises:
        ConversionError: The original selects CLIP features in a way transformers' LLaVA cannot.
    """
    feature = config.get("mm_vision_select_feature") or "patch"
    if feature not in _SELECT_FEATURES:
        raise ConversionError(
            f"mm_vision_select_feature is {feature!r}; allowed are {', '.join(_SELECT_FEATURES)}.",
            next_step="Pass the config the checkpoint was trained with.",
        )
    strategy = _SELECT_FEATURES[feature]
    patches = (vision.image_size // vision.patch_size) ** 2
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image_token_id,
        image_seq_length=patches + (strategy == "full"),
        projector_hidden_act="gelu" if mlp_projector else "linear",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=False,
    )


def image_view(folder: Path | None, image_size: int) -> dict[str, Any]:
    """Options of the image processor for the CLIP tower's view.

    Args:
        folder (`Path`, *optional*): Folder of the CLIP model; without its `preprocessor_config.json` the values are
            those of OpenAI's CLIP.
        image_size (`int`): Side of the tower's input in pixels.

    Raises:
        ConversionError: The preprocessor makes images of another size than the tower takes.
    """
    path = None if folder is None else folder / "preprocessor_config.json"
    if path is None or not path.exists():
        return {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    stored = read_json(path)
    size, crop = stored.get("size", image_size), stored.get("crop_size", image_size)
    size = {"shortest_edge": size} if isinstance(size, int) else size  # files from before 2022 hold integers
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if crop != {"height": image_size, "width": image_size}:
        raise ConversionError(
            f"The preprocessor crops to {crop}; the CLIP tower takes {image_size} x {image_size}.",
            path=path,
            next_step="Pass a folder whose config and preprocessor belong together.",
        )
    kept = {name: stored[name] for name in _IMAGE_FIELDS if stored.get(name) is not None}
    return {"size": size, "crop_size": crop, **kept}


def generation_defaults(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Defaults of `generate`."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # A generated placeholder would be taken for an image by the next forward pass.
        suppress_tokens=[tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)],
    )
