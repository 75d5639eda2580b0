"""An IVM that has learned nothing yet: LLaVA-1.5 of transformers, SAM's image encoder, a new decoder between them."""

from __future__ import annotations

import os
from typing import Unpack

import torch
from transformers import PreTrainedConfig, SamConfig

from ..modeling.configuration_ivm import IvmConfig
from ..modeling.modeling_ivm import IvmForVisualMasking
from .beginning import new_parameters
from .components import ORIGIN, add_segmenter
from .compose import CompositionOptions
from .composed_card import composed_values
from .convert import ConversionReport, Parts, convert
from .convert_ivm import add_llava_base, build_ivm_processor, read_ivm_tokenizer, read_llava_hf_config
from .drawing import Drawing, seed_of
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import Location, locate
from .plan import EMBEDDING, HEAD, Scheme, empty_model, require_components
from .rules_lisa_gsva import MM_PROJECTOR, PROJECTOR, SEGMENTER, TEXT_MODEL, VISION_TOWER, VLM, sam_table
from .sam_config import new_conditioned_sam_config
from .sources import open_source
from .systems import IVM
from .tensor_operations import DRAW, TensorOperations


_ENCODER, _DECODER = f"{SEGMENTER}vision_encoder.", f"{SEGMENTER}mask_decoder."
_POSITIONS = f"{SEGMENTER}shared_image_embedding.positional_embedding"
_WHOLE = "Pass llava-hf/llava-1.5-7b-hf, or a folder with all of its weights."
_REMEDIES = {
    _ENCODER: ("SAM's image encoder", "Pass segmenter= with SAM's own file (sam_vit_h_4b8939.pth)."),
    VISION_TOWER: ("the CLIP tower", _WHOLE),
    MM_PROJECTOR: ("the multimodal projector", _WHOLE),
    VLM: ("the language model", _WHOLE),
}
# LLaVA-1.5 in the layout of transformers has rows for `<image>` and `<pad>` already.
_SCHEME = Scheme(VLM, TEXT_MODEL, SEGMENTER, _REMEDIES, EMBEDDING, HEAD, appended_rows=0)
# text_proj of the original is Linear(4096, 2048), GELU, Linear(2048, 256) behind a language model of 4096.
_NARROWING = 2


def compose_ivm(
    *,
    vlm: Location,
    segmenter: Location,
    out: str | os.PathLike,
    segmenter_dtype: torch.dtype | str | None = None,
    seed: int = 0,
    **options: Unpack[CompositionOptions],
) -> ConversionReport:
    """Put an IVM together that has learned nothing yet, as the original begins its training.

    Of SAM only the image encoder is taken. Decoder, projector (`text_proj`) and the decoder's positional matrix are
    new: modules begin as torch's own do, and the matrix, a buffer that is never trained, is standard normal. The
    original's LoRA begins as a change of nothing, so that the language model is LLaVA's; the recipe `ivm` adds it.

    Args:
        vlm (`str` or `os.PathLike`): LLaVA-1.5 in the layout of transformers, as a folder or its name on the Hub
            (`llava-hf/llava-1.5-7b-hf`, also with `@revision`).
        segmenter (`str` or `os.PathLike`): SAM's own file, or a SAM of transformers; also on the Hub.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type of the segmenter, by default float32.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn.
        options: See [`CompositionOptions`].

    Returns:
        `ConversionReport`: Where the tensors came from; `"new"` are those that were drawn.

    Raises:
        ConversionError: A part is missing, unreadable, of another kind or does not fit; nothing is then left behind.
    """

    def read_parts() -> Parts:
        inventory, folder = Inventory(), locate(vlm)
        vlm_config = read_llava_hf_config(folder)
        add_llava_base(inventory, folder)
        sam = _add_encoder(inventory, segmenter)
        require_components(inventory, _SCHEME)
        tokenizer = read_ivm_tokenizer(folder, vlm_config, inventory)
        with refusing("No model can be built from these parts", path=folder, next_step=_WHOLE):
            config = IvmConfig(
                vlm_config=vlm_config,
                segmenter_config=sam,
                projector_hidden_size=vlm_config.text_config.hidden_size // _NARROWING,
            )
            model = empty_model(IvmForVisualMasking, config)
        matrix = Drawing("normal", 1.0, seed_of(seed, _POSITIONS))
        return Parts(
            card=composed_values(IVM, {"vlm": vlm, "segmenter": segmenter}),
            inventory=inventory,
            model=model,
            processor=build_ivm_processor(folder, model.config, tokenizer),
            scheme=_SCHEME,
            folders={"vision-language model": folder},
            new_tensors={
                _POSITIONS: TensorOperations((DRAW,), drawing=matrix),
                **new_parameters(model, PROJECTOR, seed),
                **new_parameters(model, _DECODER, seed),
            },
        )

    return convert(IVM, None, out, read_parts, segmenter_dtype=segmenter_dtype, **options)


def _add_encoder(inventory: Inventory, location: Location) -> PreTrainedConfig:
    """Add SAM's image encoder; returns the config of IVM's segmenter, whose decoder has SAM's sizes and one mask.

    Raises:
        ConversionError: It is another segmenter.
    """
    path = locate(location)
    if path.is_dir():
        config = add_segmenter(inventory, path).config
    else:
        inventory.add(open_source(path), sam_table(), ORIGIN)
        config = new_conditioned_sam_config(inventory.shapes(SEGMENTER))
    if not isinstance(config, SamConfig):
        raise ConversionError(
            f"IVM draws on SAM's image encoder; this is a {config.model_type}.",
            path=path,
            next_step="Pass segmenter= with SAM's own file, or a folder such as facebook/sam-vit-huge.",
        )
    inventory.leave_out(
        lambda name: name.startswith(SEGMENTER) and not name.startswith(_ENCODER), "IVM has a decoder of its own"
    )
    config.mask_decoder_config.num_multimask_outputs = 0
    return config


__all__ = ["compose_ivm"]
