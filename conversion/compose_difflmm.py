"""A DiffLMM that has learned nothing yet: a language model, Stable Diffusion, CLIP and a projector between them."""

from __future__ import annotations

import os
from typing import Unpack

from torch import nn

from ..modeling.modeling_difflmm import DiffLmmForConditionalGeneration, diffusers_classes
from .beginning import new_parameters
from .compose import CompositionOptions
from .composed_card import composed_values
from .configs import read_llava_config
from .convert import ConversionReport, Parts, convert
from .convert_difflmm import (
    add_frozen_parts,
    build_processor,
    check_folder,
    check_vocabulary,
    difflmm_scheme,
    locate_diffusion,
)
from .drawing import Drawing, seed_of
from .errors import refusing
from .inventory import Inventory
from .locations import Location, locate, pin
from .plan import empty_model, require_components
from .rules_difflmm import CAPTIONER, DIFFUSION, PROJECTOR, PROMPT_ENCODER, TEXT_MODEL, VISION_TOWER
from .systems import DIFFLMM, IMPLICIT_CAPTION
from .tensor_operations import DRAW, TensorOperations


_LANGUAGE_MODEL = "Pass language_model= with a LLaMA and its weights (lmsys/vicuna-7b-v1.5)."
_STABLE_DIFFUSION = "Pass diffusion= with Stable Diffusion 1.5 in diffusers' layout, with its weights."
_REMEDIES = {
    f"{DIFFUSION}unet.": ("the UNet", _STABLE_DIFFUSION),
    f"{DIFFUSION}vae.": ("the VAE", _STABLE_DIFFUSION),
    VISION_TOWER: ("the CLIP tower", "Pass vision_tower= with its folder (openai/clip-vit-large-patch14-336)."),
    TEXT_MODEL: ("the language model", _LANGUAGE_MODEL),
    "lm_head.": ("the language model's head", _LANGUAGE_MODEL),
}
# Parameters that belong to no layer; the original draws them from a standard normal distribution.
_POSITIONS = (f"{PROJECTOR}vt_pe", f"{CAPTIONER}clip_pe")


def compose_difflmm(
    *,
    language_model: Location,
    diffusion: Location,
    vision_tower: Location,
    out: str | os.PathLike,
    template: str = "vicuna_v1",
    diffusion_text: str = IMPLICIT_CAPTION,
    no_concat_clip: bool = False,
    no_position_embeddings: bool = False,
    normalize_once: bool = False,
    diffusion_block: int = 1,
    timestep: int = 100,
    ensemble_size: int = 1,
    image_size: int = 384,
    seed: int = 0,
    **options: Unpack[CompositionOptions],
) -> ConversionReport:
    """Put a language model, Stable Diffusion, CLIP and a new projector into one repository. Defaults are the options
    of the original's README (`--mm_vision_*`).

    Args:
        language_model (`str` or `os.PathLike`): A LLaMA, as a folder or its name on the Hub (`lmsys/vicuna-7b-v1.5`,
            also with `@revision`): weights and tokenizer.
        diffusion (`str` or `os.PathLike`): Stable Diffusion 1.5 in diffusers' layout.
        vision_tower (`str` or `os.PathLike`): The CLIP model (`openai/clip-vit-large-patch14-336`).
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        template (`str`, *optional*, defaults to `"vicuna_v1"`): Prompt format; the one the original was trained in.
        diffusion_text (`str`, *optional*, defaults to `"implicit_caption"`): The text that the UNet is conditioned on:
            what the model learns to say of CLIP's features, or `"empty"`, the empty prompt.
        no_concat_clip, no_position_embeddings, normalize_once (`bool`, *optional*, defaults to `False`): The opposites
            of what [`DiffLmmConfig`] calls `concat_clip`, `use_position_embeddings` and `normalize_twice`.
        diffusion_block, timestep, ensemble_size, image_size (`int`, *optional*): See [`DiffLmmConfig`].
        seed (`int`, *optional*, defaults to 0): Of the projector and the implicit captioner, whose layers begin as
            torch's do and whose position embeddings as standard normal numbers.
        options: See [`CompositionOptions`]; `dtype` is the type of all weights.

    Returns:
        `ConversionReport`: Where the tensors came from.

    Raises:
        ConversionError: A part cannot be found, is of another kind or does not fit; nothing is then left behind.
        ImportError: diffusers is not installed.
    """

    def read_parts() -> Parts:
        diffusers_classes()  # before gigabytes are read or downloaded
        implicit_caption = diffusion_text == IMPLICIT_CAPTION
        diffusion_folder = locate_diffusion(diffusion, text_encoder=not implicit_caption)
        tower = check_folder(locate(vision_tower), "vision tower")
        folder = check_folder(locate(pin(language_model)), "language model")
        original = {
            **read_llava_config(folder),
            "image_aspect_ratio": "pad",
            "mm_vision_resolution": image_size,
            "mm_vision_select_layer": diffusion_block,
            "mm_vision_sd_timestep": timestep,
            "mm_vision_sd_ensemble_size": ensemble_size,
            "mm_vision_sd_implicit_caption": implicit_caption,
            "mm_vision_sd_concat_clip": not no_concat_clip,
            "mm_vision_sd_pe": -1 if no_position_embeddings else 1,  # as many as image tokens
        }
        inventory = Inventory()
        config, tokenizer = add_frozen_parts(inventory, original, folder, diffusion_folder, tower)
        config.normalize_twice = not normalize_once
        prompt = {} if implicit_caption else {PROMPT_ENCODER: ("the text encoder", _STABLE_DIFFUSION)}
        scheme = difflmm_scheme(_REMEDIES | prompt)
        require_components(inventory, scheme)
        check_vocabulary(inventory, tokenizer, folder)
        with refusing("No model can be built from these parts", path=folder, next_step=_LANGUAGE_MODEL):
            model = empty_model(DiffLmmForConditionalGeneration, config)
        return Parts(
            card=composed_values(
                DIFFLMM,
                {"language_model": language_model, "diffusion": diffusion, "vision_tower": vision_tower},
            ),
            inventory=inventory,
            model=model,
            processor=build_processor(original, config, tokenizer, template),
            scheme=scheme,
            folders={"language model": folder, "diffusion": diffusion_folder, "vision tower": tower},
            new_tensors=_beginning(model, seed),
        )

    return convert(DIFFLMM, None, out, read_parts, template=template, **options)


def _beginning(model: nn.Module, seed: int) -> dict[str, TensorOperations]:
    """How the projector and the implicit captioner begin."""
    layers = (f"{PROJECTOR}sd_", f"{PROJECTOR}linear.", f"{CAPTIONER}clip_projector.")
    operations = {name: value for prefix in layers for name, value in new_parameters(model, prefix, seed).items()}
    for name, _ in model.named_parameters():
        if name in _POSITIONS:
            operations[name] = TensorOperations((DRAW,), drawing=Drawing("normal", 1.0, seed_of(seed, name)))
    return operations


__all__ = ["compose_difflmm"]
