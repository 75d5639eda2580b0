"""A ViP-LLaVA that has learned nothing yet: a language model, a CLIP tower and a projector between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase, VipLlavaConfig

from ..loading import load_pretrained
from ..modeling.modeling_vip_llava import VipLlavaForConditionalGeneration
from ..processing.chat import IMAGE_TOKEN, build_chat_template
from ..processing.image_processing_vip_llava import VipLlavaImageProcessor
from ..processing.processing_vip_llava import VipLlavaProcessor
from .beginning import new_parameters
from .components import ExplicitTable, transformers_table, without_code
from .compose import CompositionOptions
from .composed_card import composed_values
from .configs import clip_config_from_folder, image_view
from .configs_vip_llava import VISION_FEATURE_LAYERS, vip_llava_generation_config, write_both_spellings
from .convert import ConversionReport, Parts, convert
from .convert_vip_llava import vip_llava_scheme
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import Location, locate
from .plan import NewRows, empty_model
from .rules import Rule
from .rules_lisa_gsva import clip_table
from .sources import open_source
from .systems import VIP_LLAVA
from .tokenizers import build_tokenizer, check_tokenizer_files
from .tokenizers_fast import build_fast_tokenizer


# tokenizer_model_max_length of all training scripts
_MAX_LENGTH = 2048
_PROJECTOR, _TOWER, _TEXT_MODEL = "model.multi_modal_projector.", "model.vision_tower.", "model.language_model."
_OTHER_MODEL = "Pass a language model of transformers with its weights, such as lmsys/vicuna-7b-v1.5."
_OTHER_TOWER = "Pass the CLIP model with its weights: openai/clip-vit-large-patch14-336."


def compose_vip_llava(
    *,
    language_model: Location,
    vision_tower: Location,
    out: str | os.PathLike,
    template: str = "llava_v1",
    seed: int = 0,
    **options: Unpack[CompositionOptions],
) -> ConversionReport:
    """Put a language model, a CLIP tower and a new projector into one repository.

    Args:
        language_model (`str` or `os.PathLike`): Vicuna, Llama 3 or Phi-3 in the layout of transformers: a folder, or
            its name on the Hub (`lmsys/vicuna-7b-v1.5`, also with `@revision`).
        vision_tower (`str` or `os.PathLike`): The CLIP model (`openai/clip-vit-large-patch14-336`).
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        template (`str`, *optional*, defaults to `"llava_v1"`): The conversation template: `"llava_v1"`,
            `"llava_llama_3"` or `"llava_phi_3"`.
        seed (`int`, *optional*, defaults to 0): Of the projector, which begins as `nn.Linear` and `nn.LayerNorm` do.
        options: See [`CompositionOptions`]; `dtype` is the type of all weights.

    Returns:
        `ConversionReport`: Where the tensors came from.

    Raises:
        ConversionError: A part cannot be found, is of another kind or does not fit; nothing is then left behind.
    """

    def read_parts() -> Parts:
        folder, tower = locate(language_model), locate(vision_tower)
        inventory = Inventory()
        _add_tower(inventory, tower)
        text = _add_language_model(inventory, folder)
        with refusing("The tokenizer cannot be rebuilt", path=folder, next_step=_OTHER_MODEL):
            tokenizer = _build_tokenizer(folder, template)
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        vision = clip_config_from_folder(tower)
        scheme = vip_llava_scheme(0)
        known = inventory.shapes()[scheme.embedding][0]
        # Rows for <image>, and for a pad token that the model never had: the mean of the others, as nothing is known.
        new_rows = NewRows(min(known, len(tokenizer)), max(len(tokenizer) - known, 0))
        text.vocab_size = max(known, len(tokenizer))
        with refusing("No model can be built from these parts", path=folder, next_step=_OTHER_MODEL):
            config = VipLlavaConfig(
                text_config=text,
                vision_config=vision,
                image_token_index=tokenizer.image_token_id,
                image_seq_length=(vision.image_size // vision.patch_size) ** 2,
                vision_feature_layer=list(VISION_FEATURE_LAYERS),
                tie_word_embeddings=not inventory.has(scheme.head),
            )
            model = empty_model(VipLlavaForConditionalGeneration, config)
        with refusing("The preprocessor cannot be rebuilt", path=tower, next_step=_OTHER_TOWER):
            processor = VipLlavaProcessor(
                image_processor=VipLlavaImageProcessor(**image_view(tower, vision.image_size), do_pad=True),
                tokenizer=tokenizer,
                patch_size=vision.patch_size,
                template=template,
                chat_template=build_chat_template(template, IMAGE_TOKEN),
            )
        return Parts(
            card=composed_values(VIP_LLAVA, {"language_model": language_model, "vision_tower": vision_tower}),
            inventory=inventory,
            model=model,
            processor=processor,
            scheme=vip_llava_scheme(0, new_rows),
            generation_config=vip_llava_generation_config(template, tokenizer),
            finish=write_both_spellings,
            folders={"base": folder, "vision tower": tower},
            new_tensors=new_parameters(model, _PROJECTOR, seed),
        )

    return convert(VIP_LLAVA, None, out, read_parts, template=template, **options)


def _add_tower(inventory: Inventory, folder: Path) -> None:
    weights = open_source(folder)
    inventory.add(weights, clip_table(weights.names(), _TOWER), "vision tower")


def _add_language_model(inventory: Inventory, folder: Path) -> PreTrainedConfig:
    """Add a language model's parameters under their names in ViP-LLaVA; returns its config.

    Raises:
        ConversionError: The folder holds no language model of transformers.
    """
    if not folder.is_dir():
        raise ConversionError("There is no such folder.", path=folder, next_step="Check the path of the model.")
    with refusing("No language model can be built from this config", path=folder, next_step=_OTHER_MODEL):
        config = without_code(load_pretrained(AutoConfig, folder, local_files_only=True))
        model = empty_model(AutoModelForCausalLM, config)
    source = open_source(folder)
    table = transformers_table(model, source.names(), "")
    rules = [
        rule if rule.target is None else Rule(rule.source, _name_in_vip_llava(rule.target)) for rule in table.rules
    ]
    inventory.add(source, ExplicitTable(rules, type(model).__name__), "base")
    return config


def _name_in_vip_llava(name: str) -> str:
    return _TEXT_MODEL + name.removeprefix("model.") if name.startswith("model.") else name


def _build_tokenizer(folder: Path, template: str) -> PreTrainedTokenizerBase:
    check_tokenizer_files(folder)
    if template == "llava_v1" and (folder / "tokenizer.model").is_file():
        return build_tokenizer(folder, VIP_LLAVA.name, use_im_start_end=False, model_max_length=_MAX_LENGTH)
    return build_fast_tokenizer(folder, model_max_length=_MAX_LENGTH)


__all__ = ["compose_vip_llava"]
