"""A ViP-LLaVA that has learned nothing yet: a language model, a CLIP tower and a projector between them."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, CLIPVisionModel, VipLlavaConfig

from ..loading import load_pretrained
from ..modeling.modeling_vip_llava import VipLlavaForConditionalGeneration
from ..processing.chat import IMAGE_TOKEN, build_chat_template
from ..processing.image_processing_vip_llava import VipLlavaImageProcessor
from ..processing.processing_vip_llava import VipLlavaProcessor
from .configs import image_view
from .configs_vip_llava import VISION_FEATURE_LAYERS, vip_llava_generation_config
from .locations import locate
from .tokenizers import build_tokenizer
from .tokenizers_fast import build_fast_tokenizer


# tokenizer_model_max_length of all training scripts
_MAX_LENGTH = 2048


def build_vip_llava(
    parts: Any, dtype: str = "auto", attn_implementation: str | None = None
) -> tuple[VipLlavaForConditionalGeneration, VipLlavaProcessor]:
    """
    Args:
        parts: Has `language_model` and `vision_tower`, folders or Hub names, and `template`, the conversation
            template; such as a training recipe's [`PartsRecipe`].
        dtype (`str`): Number format of all weights; `auto` is the language model's.
        attn_implementation (`str`, *optional*): As for `from_pretrained`.

    Returns:
        The model, its projector with the random weights that `nn.Linear` begins with, and its processor.

    Raises:
        ConversionError: If a part cannot be found or its tokenizer cannot be rebuilt.
    """
    folder, tower_folder = locate(parts.language_model), locate(parts.vision_tower)
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    language_model = load_pretrained(AutoModelForCausalLM, folder, **options)
    options["dtype"] = language_model.dtype
    tower = load_pretrained(CLIPVisionModel, tower_folder, **options)
    if parts.template == "llava_v1" and (folder / "tokenizer.model").is_file():
        tokenizer = build_tokenizer(folder, "vip_llava", use_im_start_end=False, model_max_length=_MAX_LENGTH)
    else:
        tokenizer = build_fast_tokenizer(folder, model_max_length=_MAX_LENGTH)
    vision = tower.config
    config = VipLlavaConfig(
        text_config=language_model.config,
        vision_config=vision,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=list(VISION_FEATURE_LAYERS),
        dtype=language_model.dtype,
    )
    with torch.device("meta"):
        model = VipLlavaForConditionalGeneration(config)
    model.model.vision_tower, model.model.language_model = tower, language_model.model
    model.lm_head = language_model.lm_head
    model.model.multi_modal_projector = type(model.model.multi_modal_projector)(config).to(language_model.dtype)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        # Rows for <image>, and for a pad token that the model never had: the mean of the others, as nothing is known.
        model.resize_token_embeddings(len(tokenizer))
    model.generation_config = vip_llava_generation_config(parts.template, tokenizer)
    processor = VipLlavaProcessor(
        image_processor=VipLlavaImageProcessor(**image_view(tower_folder, vision.image_size), do_pad=True),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        template=parts.template,
        chat_template=build_chat_template(parts.template, IMAGE_TOKEN),
    )
    return model, processor


__all__ = ["build_vip_llava"]
