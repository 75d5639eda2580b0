"""DiffLMM's config, from the plain JSON of LLaVA's training, diffusers and PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig, LlamaConfig

from ..loading import load_pretrained
from ..modeling.configuration_difflmm import DiffLmmConfig
from .configs import read_llava_config
from .errors import ConversionError, refusing
from .sources import read_config, read_json


_PROJECTOR_TYPE = "SDCLIPBlock"
_OTHER_COPY = "Download the diffusion model again."
# Ways of adapting that `W + alpha / r * B @ A` does not describe, with what means that they are not used.
_OTHER_ADAPTERS = {
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
}


def read_difflmm_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a DiffLMM folder.

    Raises:
        ConversionError: There is none, or it is another model's.
    """
    config, path = read_llava_config(folder), folder / "config.json"
    kind = config.get("mm_projector_type")
    if kind != _PROJECTOR_TYPE:
        raise ConversionError(
            f"DiffLMM's mm_projector_type is {_PROJECTOR_TYPE!r}; this config states {kind!r}.",
            path=path,
            next_step="Pass the folder of Shengcao1006/difflmm-llava-v1.5-7b-lora, or one trained like it.",
        )
    if config.get("mm_use_im_start_end") or config.get("mm_use_im_patch_token"):
        raise ConversionError(
            "The config asks for tokens around or in place of the image (mm_use_im_start_end, mm_use_im_patch_token), "
            "which no DiffLMM was trained with.",
            path=path,
        )
    for name in ("mm_vision_resolution", "mm_vision_select_layer", "mm_vision_sd_timestep"):
        if type(config.get(name)) is not int:
            raise ConversionError(f"The config states {name}={config.get(name)!r}; a number is needed.", path=path)
    return config


def read_lora_alpha(folder: Path) -> Callable[[int], float]:
    """LoRA's alpha by the rank found in the weights, from `adapter_config.json`.

    Raises:
        ConversionError: There is none, or the adapters are of another kind; the function that is returned raises it
            where the weights have another rank than the config.
    """
    path = folder / "adapter_config.json"
    config = read_json(path)
    for name, unused in _OTHER_ADAPTERS.items():
        if config.get(name) not in unused:
            raise ConversionError(
                f"The adapters use {name}={config[name]!r}, which is not converted.",
                path=path,
                next_step="Merge them with peft first.",
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConversionError(
            f"The config states r={rank!r} and lora_alpha={alpha!r}; both must be numbers.", path=path
        )

    def alpha_of_rank(found: int) -> float:
        if found != rank:
            raise ConversionError(
                f"The adapters have rank {found}; the config states r={rank}.",
                path=path,
                next_step="Pass weights and config of the same adapter.",
            )
        # rsLoRA scales by alpha / sqrt(r) instead of alpha / r.
        return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha

    return alpha_of_rank


def difflmm_config(
    config: Mapping[str, Any],
    diffusion: Path,
    vision: CLIPVisionConfig,
    text: LlamaConfig,
    *,
    image_token_id: int,
) -> DiffLmmConfig:
    """
    Args:
        config (`Mapping[str, Any]`): The original's JSON.
        diffusion (`Path`): Folder of the diffusion model in diffusers' layout.
        vision (`CLIPVisionConfig`): The CLIP tower.
        text (`LlamaConfig`): The language model.
        image_token_id (`int`): Id of the image placeholder.

    Returns:
        `DiffLmmConfig`

    Raises:
        ConversionError: The diffusion model's configs are missing, or the parts do not belong together.
    """
    implicit_caption = bool(config.get("mm_vision_sd_implicit_caption", False))
    fields = {} if implicit_caption else _empty_prompt(diffusion)
    with refusing("DiffLMM cannot be put together from these parts", path=diffusion, next_step=_OTHER_COPY):
        built = DiffLmmConfig(
            text_config=text,
            vision_config=vision,
            unet_config=read_config(diffusion / "unet" / "config.json"),
            vae_config=read_config(diffusion / "vae" / "config.json"),
            scheduler_config=read_config(diffusion / "scheduler" / "scheduler_config.json"),
            image_token_index=image_token_id,
            image_size=config["mm_vision_resolution"],
            timestep=config["mm_vision_sd_timestep"],
            ensemble_size=config.get("mm_vision_sd_ensemble_size", 1),
            diffusion_block=config["mm_vision_select_layer"],
            implicit_caption=implicit_caption,
            concat_clip=bool(config.get("mm_vision_sd_concat_clip", False)),
            use_position_embeddings=config.get("mm_vision_sd_pe", -1) > 0,
            **fields,
        )
    prediction = built.scheduler_config.get("prediction_type", "epsilon")
    width = config.get("mm_vision_sd_clip_proj_out", built.unet_config["cross_attention_dim"])
    if width != built.unet_config["cross_attention_dim"]:
        raise ConversionError(
            f"The model was trained with prompts of width {width}; this UNet ({prediction} prediction) takes "
            f"{built.unet_config['cross_attention_dim']}.",
            path=diffusion,
            next_step="Pass the diffusion model of the training (Stable Diffusion 1.5).",
        )
    return built


def _empty_prompt(diffusion: Path) -> dict[str, Any]:
    """The text encoder's config and the ids of the empty prompt."""
    with refusing("The text encoder cannot be used", path=diffusion, next_step=_OTHER_COPY):
        tokenizer = load_pretrained(CLIPTokenizer, diffusion / "tokenizer", local_files_only=True)
        length = min(tokenizer.model_max_length, 77)
        ids = tokenizer("", padding="max_length", max_length=length, truncation=True)["input_ids"]
        config = CLIPTextConfig.from_dict(read_config(diffusion / "text_encoder" / "config.json"))
    return {"prompt_config": config, "empty_prompt_ids": ids}
