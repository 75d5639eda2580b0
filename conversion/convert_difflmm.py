"""DiffLMM: the published LoRA folder beside Vicuna, Stable Diffusion and CLIP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from transformers import PreTrainedTokenizerFast

from ..modeling.configuration_difflmm import DiffLmmConfig
from ..modeling.modeling_difflmm import DiffLmmForConditionalGeneration, diffusers_classes
from ..processing.image_processing_vip_llava import DiffLmmImageProcessor
from ..processing.processing_difflmm import DiffLmmProcessor
from .configs import clip_config_from_folder, text_config
from .configs_difflmm import difflmm_config, read_difflmm_config, read_lora_alpha
from .convert import ConversionOptions, ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import Location, locate, location_name, pin
from .plan import Scheme, empty_model, require_components
from .rules_difflmm import (
    CAPTIONER,
    DIFFUSION,
    PROJECTOR,
    PROMPT_ENCODER,
    TEXT_MODEL,
    VISION_TOWER,
    difflmm_prefix,
    difflmm_table,
    stable_diffusion_table,
)
from .rules_lisa_gsva import VLM, clip_table, detect_layout, llava_table
from .sources import DIFFUSION_INDEX, open_source
from .systems import DIFFLMM
from .tensor_operations import no_adapters
from .tokenizers import IMAGE_TOKEN, build_tokenizer, check_tokenizer_files


_EMBEDDING, _HEAD = f"{TEXT_MODEL}embed_tokens.weight", "lm_head.weight"
_TRAINED = "It is trained with the model, so only a folder that holds it can be converted (non_lora_trainables.bin)."
_BASE = "Pass base= with the language model the adapters were trained on (lmsys/vicuna-7b-v1.5), with its weights."
_STABLE_DIFFUSION = "Pass diffusion= with Stable Diffusion 1.5 in diffusers' layout, with its weights."
_REMEDIES = {
    PROJECTOR: ("the projector", _TRAINED),
    f"{DIFFUSION}unet.": ("the UNet", _STABLE_DIFFUSION),
    f"{DIFFUSION}vae.": ("the VAE", _STABLE_DIFFUSION),
    VISION_TOWER: ("the CLIP tower", "Pass vision_tower= with its folder (openai/clip-vit-large-patch14-336)."),
    TEXT_MODEL: ("the language model", _BASE),
    _HEAD: ("the language model's head", _BASE),
}
_CAPTION_REMEDY = {CAPTIONER: ("the implicit captioner (mm_projector.clip_projector)", _TRAINED)}
_PROMPT_REMEDY = {PROMPT_ENCODER: ("the text encoder", _STABLE_DIFFUSION)}


def convert_difflmm(
    source: str | os.PathLike,
    *,
    base: str | os.PathLike,
    diffusion: str | os.PathLike,
    vision_tower: str | os.PathLike,
    out: str | os.PathLike,
    template: str = "llava_v1",
    **options: Unpack[ConversionOptions],
) -> ConversionReport:
    """Convert a DiffLMM adapter and the models it was trained on into one complete repository.

    Args:
        source (`str` or `os.PathLike`): The folder with `adapter_model`, `non_lora_trainables.bin` and their configs,
            or of a pretraining stage with `mm_projector.bin`; also its name on the Hub
            (`Shengcao1006/difflmm-llava-v1.5-7b-lora`).
        base (`str` or `os.PathLike`): The language model the adapters were trained on, as a folder or its name on the
            Hub (`lmsys/vicuna-7b-v1.5`, also with `@revision`): weights and tokenizer.
        diffusion (`str` or `os.PathLike`): Stable Diffusion 1.5 in diffusers' layout, old or new, as a folder or its
            name on the Hub. Only the VAE's encoder and the UNet up to the block in use are kept.
        vision_tower (`str` or `os.PathLike`): The CLIP model (`openai/clip-vit-large-patch14-336`).
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        template (`str`, *optional*, defaults to `"llava_v1"`): Prompt format; the one the authors' scripts ask in.
        options: See [`ConversionOptions`]; `dtype` is the type of all weights, by default the one most of the base is
            stored in.

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
        ImportError: diffusers is not installed.
    """

    def read_parts() -> Parts:
        diffusers_classes()  # before gigabytes are read or downloaded
        folder = check_folder(locate(source), "source")
        original = read_difflmm_config(folder)
        implicit = bool(original.get("mm_vision_sd_implicit_caption", False))
        diffusion_folder = locate_diffusion(diffusion, text_encoder=not implicit)
        tower = check_folder(locate(vision_tower), "vision tower")
        pinned = pin(base)

        inventory = Inventory()
        adapted = _add_checkpoint(inventory, folder, implicit)
        alpha_of_rank = read_lora_alpha(folder) if adapted else no_adapters
        base_folder = check_folder(locate(pinned), "base")
        config, tokenizer = add_frozen_parts(inventory, original, base_folder, diffusion_folder, tower)
        remedies = _REMEDIES | (_CAPTION_REMEDY if implicit else _PROMPT_REMEDY)
        scheme = difflmm_scheme(remedies)
        require_components(inventory, scheme)
        check_vocabulary(inventory, tokenizer, base_folder)
        with refusing(
            "No model can be built from this config", path=folder / "config.json", next_step="Check the config."
        ):
            model = empty_model(DiffLmmForConditionalGeneration, config)
        return Parts(
            card=location_name(source),
            inventory=inventory,
            model=model,
            processor=build_processor(original, config, tokenizer, template),
            scheme=scheme,
            alpha_of_rank=alpha_of_rank,
        )

    return convert(DIFFLMM, source, out, read_parts, template=template, **options)


def difflmm_scheme(remedies: Mapping[str, tuple[str, str]]) -> Scheme:
    """How the parameters of `DiffLmmForConditionalGeneration` are called."""
    return Scheme("", TEXT_MODEL, None, remedies, _EMBEDDING, _HEAD)


def locate_diffusion(diffusion: Location, *, text_encoder: bool) -> Path:
    """The folder of a diffusion model, of which no more than is needed is downloaded.

    Args:
        diffusion (`str` or `os.PathLike`): A folder, or its name on the Hub.
        text_encoder (`bool`): Whether the text encoder is needed, too.

    Raises:
        ConversionError: There is none in diffusers' layout.
    """
    needed = ("unet", "vae", "text_encoder") if text_encoder else ("unet", "vae")
    folder = check_folder(locate(diffusion, parts=needed), "diffusion model")
    if not (folder / DIFFUSION_INDEX).is_file():
        raise ConversionError(
            f"There is no {DIFFUSION_INDEX}: this is not a diffusion model in diffusers' layout.",
            path=folder,
            next_step="Pass the folder of Stable Diffusion 1.5 that holds unet, vae and scheduler.",
        )
    return folder


def add_frozen_parts(
    inventory: Inventory, original: Mapping[str, Any], base: Path, diffusion: Path, tower: Path
) -> tuple[DiffLmmConfig, PreTrainedTokenizerFast]:
    """Add language model, CLIP and Stable Diffusion, which are what they were before the training.

    Args:
        inventory (`Inventory`): Where to.
        original (`Mapping[str, Any]`): The JSON of a DiffLMM's config.
        base, diffusion, tower (`Path`): Their folders.

    Returns:
        The model's config and its tokenizer.

    Raises:
        ConversionError: One of them is unreadable, or they do not belong together.
    """
    _add_base(inventory, base)
    clip = open_source(tower)
    inventory.add(clip, clip_table(clip.names(), VISION_TOWER), "vision tower")
    with refusing("The tokenizer cannot be rebuilt", path=base, next_step="Download the base again."):
        tokenizer = _build_tokenizer(base, original)
    config = difflmm_config(
        original,
        diffusion,
        clip_config_from_folder(tower),
        text_config(original, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    blocks = len(config.unet_config["up_block_types"])
    table = stable_diffusion_table(blocks, config.diffusion_block, text_encoder=not config.implicit_caption)
    inventory.add(open_source(diffusion), table, "diffusion")
    return config, tokenizer


def check_folder(path: Path, what: str) -> Path:
    """
    Raises:
        ConversionError: It is not a folder.
    """
    if not path.is_dir():
        raise ConversionError(f"There is no such folder for the {what}.", path=path, next_step="Check the path.")
    return path


def _add_checkpoint(inventory: Inventory, folder: Path, implicit_caption: bool) -> bool:
    """Add what was trained; returns whether there are adapters."""
    checkpoint = open_source(folder)
    names = checkpoint.names()
    try:
        prefix = difflmm_prefix(names)
    except ConversionError as error:
        raise error.at(folder) from None
    adapted = any(".lora_A." in name for name in names)
    adapter = "default." if any(".lora_A.default." in name for name in names) else ""
    table = difflmm_table(prefix, adapter, adapted=adapted, implicit_caption=implicit_caption)
    inventory.add(checkpoint, table, "checkpoint")
    return adapted


def _add_base(inventory: Inventory, folder: Path) -> None:
    base = open_source(folder)
    try:
        layout = detect_layout(base.names())
    except ConversionError as error:
        raise error.at(folder) from None
    if layout.adapted:
        raise ConversionError(
            f"The base holds unmerged adapters of its own ({', '.join(layout.adapted)}).",
            path=folder,
            next_step="Pass the model DiffLMM's adapters were trained on (lmsys/vicuna-7b-v1.5), or merge them first.",
        )
    table = llava_table(layout).retargeted(VLM, "")
    # A LLaVA is a Vicuna with a projector of its own, which is not this model's.
    inventory.add(base, table, "base", lambda target: target.startswith((TEXT_MODEL, _HEAD)))


def _build_tokenizer(folder: Path, original: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    check_tokenizer_files(folder)
    tokenizer = build_tokenizer(
        folder,
        "difflmm",
        use_im_start_end=False,
        model_max_length=original.get("max_position_embeddings"),
    )
    # The pipeline of transformers pads rows that await their answer on the tokenizer's side.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    return tokenizer


def check_vocabulary(inventory: Inventory, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """
    Raises:
        ConversionError: The language model has other tokens than its tokenizer.
    """
    rows, known = inventory.shapes()[_EMBEDDING][0], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if known != rows:
        raise ConversionError(
            f"The base's vocabulary has {rows} rows; its tokenizer has {known} entries.",
            path=folder,
            next_step="Download the base again.",
        )


def build_processor(
    original: Mapping[str, Any], config: DiffLmmConfig, tokenizer: PreTrainedTokenizerFast, template: str
) -> DiffLmmProcessor:
    """The processor of a DiffLMM with this config and tokenizer."""
    side = config.image_size
    image_processor = DiffLmmImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_pad=original.get("image_aspect_ratio") == "pad",
    )
    return DiffLmmProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=config.patch_size, template=template
    )
