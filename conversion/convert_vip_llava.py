"""ViP-LLaVA: the published shards, on Vicuna, Llama 3 or Phi-3, with or without the CLIP tower inside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from transformers import CLIPVisionConfig, PreTrainedTokenizerBase

from ..modeling.modeling_vip_llava import VipLlavaForConditionalGeneration
from ..processing.chat import IMAGE_TOKEN, build_chat_template
from ..processing.image_processing_vip_llava import VipLlavaImageProcessor
from ..processing.processing_vip_llava import VipLlavaProcessor
from .configs import clip_config_from_folder, clip_config_from_shapes, image_view
from .configs_vip_llava import (
    choose_template,
    read_vip_llava_config,
    vip_llava_config,
    vip_llava_generation_config,
    write_both_spellings,
)
from .convert import ConversionOptions, ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import locate, location_name
from .plan import NewRows, Scheme, empty_model, require_components
from .rules_lisa_gsva import clip_table
from .rules_vip_llava import vip_llava_table
from .sources import holds_weights, open_source
from .systems import VIP_LLAVA
from .tokenizers import build_tokenizer, check_tokenizer_files
from .tokenizers_fast import build_fast_tokenizer


_TEXT_MODEL, _TOWER = "model.language_model.", "model.vision_tower."
_EMBEDDING, _HEAD = f"{_TEXT_MODEL}embed_tokens.weight", "lm_head.weight"
_INSIDE = "It is trained with the model, so only a checkpoint that holds it can be converted."
_REMEDIES = {
    "model.multi_modal_projector.": ("the multimodal projector", _INSIDE),
    _TEXT_MODEL: ("the language model", "Pass the folder with all of its shards."),
    _HEAD: ("the output embedding", _INSIDE),
    _TOWER: ("the CLIP tower", "Pass vision_tower= with its folder (openai/clip-vit-large-patch14-336)."),
}
_OTHER_COPY = "Copy the file again from the original publisher."


def convert_vip_llava(
    source: str | os.PathLike,
    *,
    out: str | os.PathLike,
    vision_tower: str | os.PathLike | None = None,
    template: str | None = None,
    **options: Unpack[ConversionOptions],
) -> ConversionReport:
    """Convert a ViP-LLaVA checkpoint into a complete repository, which transformers' own class loads, too.

    Args:
        source (`str` or `os.PathLike`): The published folder: config, tokenizer, and weights in one file or in shards;
            also its name on the Hub (`mucai/vip-llava-7b`, also with `@revision`).
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        vision_tower (`str` or `os.PathLike`, *optional*): The CLIP model, as a folder or its name on the Hub
            (`openai/clip-vit-large-patch14-336`, also with `@revision`). Needed where the source holds none; where
            it holds one, the folder goes first, as the original loads it.
        template (`str`, *optional*): The conversation template the model was trained with; by default the one of its
            language model: `"llava_v1"`, `"llava_llama_3"` or `"llava_phi_3"`.
        options: See [`ConversionOptions`]; `dtype` is the type of all weights.

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
    """

    def read_parts() -> Parts:
        name, folder = location_name(source), locate(source)
        if not folder.is_dir():
            raise ConversionError(
                "There is no such folder.",
                path=folder,
                next_step="Pass the folder that holds config.json, the tokenizer and the weights.",
            )
        config = read_vip_llava_config(folder)
        tower = None if vision_tower is None else locate(vision_tower)
        inventory = _gather(folder, tower)
        with refusing("The tokenizer cannot be rebuilt", path=folder, next_step=_OTHER_COPY):
            tokenizer = _build_tokenizer(folder, config)
        # Transformers' own pipeline pads prompts on the tokenizer's side; the processor chooses its side itself.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        rows = _vocabulary_rows(inventory, tokenizer)
        vision = _vision_config(inventory, tower)
        trained_with = template or choose_template(config, tokenizer)
        with refusing("No model can be built from this config", path=folder, next_step=_OTHER_COPY):
            composed = vip_llava_config(config, vision, tokenizer, rows)
            model = empty_model(VipLlavaForConditionalGeneration, composed)
        with refusing("The preprocessor cannot be rebuilt", path=tower, next_step=_OTHER_COPY):
            processor = VipLlavaProcessor(
                image_processor=VipLlavaImageProcessor(
                    **image_view(tower, vision.image_size), do_pad=config.get("image_aspect_ratio") == "pad"
                ),
                tokenizer=tokenizer,
                patch_size=vision.patch_size,
                template=trained_with,
                chat_template=build_chat_template(trained_with, IMAGE_TOKEN),
            )
        return Parts(
            card=name,
            inventory=inventory,
            model=model,
            processor=processor,
            scheme=vip_llava_scheme(rows - inventory.shapes()[_EMBEDDING][0]),
            generation_config=vip_llava_generation_config(trained_with, tokenizer),
            finish=write_both_spellings,
        )

    return convert(VIP_LLAVA, source, out, read_parts, template=template, **options)


def _gather(source: Path, tower: Path | None) -> Inventory:
    """Collect every parameter; the CLIP folder has the last word, as in the original."""
    inventory = Inventory()
    if tower is not None and holds_weights(tower):
        weights = open_source(tower)
        inventory.add(weights, clip_table(weights.names(), _TOWER), "vision tower")
    inventory.add(open_source(source), vip_llava_table(), "checkpoint")
    require_components(inventory, vip_llava_scheme(1))
    return inventory


def vip_llava_scheme(appended_rows: int, new_rows: NewRows | None = None) -> Scheme:
    """How the parameters of `VipLlavaForConditionalGeneration` are called."""
    return Scheme(
        vlm="",  # everything is stored in the same type
        text_model=_TEXT_MODEL,
        segmenter=None,
        remedies=_REMEDIES,
        embedding=_EMBEDDING,
        head=_HEAD,
        appended_rows=appended_rows,
        new_rows=new_rows,
    )


def _build_tokenizer(source: Path, config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The original reads Vicuna's slow tokenizer, Phi-3's fast one, and the only one of Llama 3, which is fast."""
    check_tokenizer_files(source)
    max_length = config.get("tokenizer_model_max_length") or config.get("max_position_embeddings")
    if config["model_type"] == "llava_phi3" or not (source / "tokenizer.model").is_file():
        return build_fast_tokenizer(source, model_max_length=max_length)
    return build_tokenizer(source, "vip_llava", use_im_start_end=False, model_max_length=max_length)


def _vocabulary_rows(inventory: Inventory, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the converted embeddings: those of the checkpoint, and where none is free one for `<image>`.

    Phi-3 has rows that no token uses. Llama 3's tokenizer may know a pad token without a row, which gets one, too.
    """
    return max(inventory.shapes()[_EMBEDDING][0], len(tokenizer))


def _vision_config(inventory: Inventory, tower: Path | None) -> CLIPVisionConfig:
    if tower is None:
        return clip_config_from_shapes(inventory.shapes(_TOWER))
    return clip_config_from_folder(tower)
