"""IVM: the released file of trained parts beside LLaVA-1.5 and SAM, or a dump of the whole module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import LlavaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.image_utils import PILImageResampling

from ..loading import load_pretrained
from ..modeling.configuration_ivm import IvmConfig
from ..modeling.modeling_ivm import IvmForVisualMasking
from ..processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from ..processing.processing_ivm import IvmProcessor
from .configs import check_sizes, image_view
from .convert import ConversionOptions, ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import Location, locate, location_name
from .peft_adapter import take_adapter
from .plan import EMBEDDING, HEAD, Scheme, empty_model, require_components
from .rules_ivm import detect_ivm_layout, ivm_table, llava_hf_table
from .rules_lisa_gsva import MM_PROJECTOR, PROJECTOR, SEGMENTER, TEXT_MODEL, VISION_TOWER, VLM, sam_table
from .sam_config import read_conditioned_sam_config
from .sources import open_source, read_config
from .systems import IVM
from .tokenizer_files import FAST_TOKENIZER, check_fast_tokenizers
from .tokenizers import IMAGE_TOKEN, check_tokenizer_files


# Rank, alpha and dropout of LLaVAEncoder in the original; alpha is in no file.
_ALPHA_OF_RANK = {8: 16.0}
_DROPOUT = 0.05
_POSITIONS = f"{SEGMENTER}shared_image_embedding.positional_embedding"
_ENCODER = f"{SEGMENTER}vision_encoder."
_TRAINED = "It is trained with the model, so only a checkpoint that holds it can be converted."
_REMEDIES = {
    f"{SEGMENTER}mask_decoder.": ("IVM's mask decoder", _TRAINED),
    PROJECTOR: ("text_proj", _TRAINED),
    _POSITIONS: (
        "the decoder's positional matrix (mask_decoder.pe_layer.positional_encoding_gaussian_matrix)",
        "It is a random buffer that the decoder was trained with, and SAM's is another one: without it every mask is "
        "wrong. Save it with the state_dict of the module that was trained; a file of parameters alone lacks it.",
    ),
    SEGMENTER: ("SAM's image encoder", "Pass sam= with SAM's own file (sam_vit_h_4b8939.pth)."),
    VISION_TOWER: ("the CLIP tower", "Pass base= with the LLaVA-1.5 folder, with its weights."),
    MM_PROJECTOR: ("the multimodal projector", "Pass base= with the LLaVA-1.5 folder, with its weights."),
    VLM: ("the language model", "Pass base= with the LLaVA-1.5 folder, with its weights."),
}
# LLaVA-1.5 in the layout of transformers has rows for `<image>` and `<pad>` already.
_SCHEME = Scheme(VLM, TEXT_MODEL, SEGMENTER, _REMEDIES, EMBEDDING, HEAD, appended_rows=0)
_OTHER_BASE = "Pass llava-hf/llava-1.5-7b-hf, or a folder with it."
_TEXT_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_VISION_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
# What a config says about the file it was saved in, not about the model.
_NOT_THE_MODEL = ("architectures", "torch_dtype", "dtype", "transformers_version", "auto_map", "_name_or_path")


def convert_ivm(
    source: str | os.PathLike,
    *,
    base: str | os.PathLike,
    out: str | os.PathLike,
    sam: str | os.PathLike | None = None,
    lora_alpha: float | None = None,
    keep_lora: bool = False,
    sam_options: Mapping[str, Any] | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    **options: Unpack[ConversionOptions],
) -> ConversionReport:
    """Convert an IVM checkpoint into a complete repository.

    Args:
        source (`str` or `os.PathLike`): `IVM-V1.0.bin` (trained parts only), or a dump of the whole module; also
            `org/name/file.bin` on the Hub (`2toINF/IVM/IVM-V1.0.bin`).
        base (`str` or `os.PathLike`): LLaVA-1.5 in the layout of transformers, as a folder or its name on the Hub
            (`llava-hf/llava-1.5-7b-hf`, also with `@revision`): config, tokenizer, and weights where the source has
            trained parts only.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        sam (`str` or `os.PathLike`, *optional*): SAM's own file, for a source of trained parts only; also
            `org/name/file.pth` on the Hub. Only its image encoder is used.
        lora_alpha (`float`, *optional*): LoRA's alpha in training; 16 for the released rank 8.
        keep_lora (`bool`, *optional*, defaults to `False`): Keep the adapter beside the weights, as a PEFT adapter
            that is loaded with them, instead of merging it. Such a repository needs `peft`.
        sam_options (`Mapping[str, Any]`, *optional*): `num_attention_heads`, `window_size` and `global_attn_indexes`
            of a SAM without relative positions.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type the segmenter is stored in, by default float32;
            transformers loads it as float32 in any case.
        options: See [`ConversionOptions`].

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
    """

    def alpha_of_rank(rank: int) -> float:
        return _alpha(rank, lora_alpha, source)

    def read_parts() -> Parts:
        inventory, checkpoint = Inventory(), locate(source)
        _add_checkpoint(inventory, checkpoint)
        folder = locate(base, weights=not inventory.has(VISION_TOWER))
        if not inventory.has(VISION_TOWER):
            add_llava_base(inventory, folder)
        if sam is not None:
            weights = open_source(locate(sam))
            inventory.add(weights, sam_table(), "SAM file", lambda target: target.startswith(_ENCODER))
        if not inventory.has(_ENCODER):
            component, next_step = _REMEDIES[SEGMENTER]
            raise ConversionError(f"The checkpoint does not hold {component}.", path=checkpoint, next_step=next_step)
        require_components(inventory, _SCHEME)
        vlm_config = read_llava_hf_config(folder)
        tokenizer = read_ivm_tokenizer(folder, vlm_config, inventory)
        model = _build_model(vlm_config, inventory, sam_options, keep_lora)
        adapter = take_adapter(inventory, alpha_of_rank, _DROPOUT) if keep_lora else None
        return Parts(
            card=Path(location_name(source)).stem,
            inventory=inventory,
            model=model,
            processor=build_ivm_processor(folder, model.config, tokenizer),
            scheme=_SCHEME,
            alpha_of_rank=alpha_of_rank,
            finish=None if adapter is None else adapter.write,
            beside=() if adapter is None else adapter.tensors,
            folders={"base": folder},
        )

    return convert(IVM, source, out, read_parts, segmenter_dtype=segmenter_dtype, **options)


def _add_checkpoint(inventory: Inventory, path: Path) -> None:
    checkpoint = open_source(path)
    try:
        layout = detect_ivm_layout(checkpoint.names())
    except ConversionError as error:
        raise error.at(path) from None
    inventory.add(checkpoint, ivm_table(layout), "checkpoint")


def add_llava_base(inventory: Inventory, folder: Path) -> None:
    base = open_source(folder)
    try:
        table = llava_hf_table(base.names())
    except ConversionError as error:
        raise error.at(folder) from None
    inventory.add(base, table, "base")


def _alpha(rank: int, given: float | None, source: Location) -> float:
    if given is not None:
        return given
    if rank not in _ALPHA_OF_RANK:
        raise ConversionError(
            f"The adapters have rank {rank}; alpha is known for the released rank 8 only.",
            path=source,
            next_step="Pass lora_alpha= with the value of the training.",
        )
    return _ALPHA_OF_RANK[rank]


def read_llava_hf_config(folder: Path) -> LlavaConfig:
    """The base's `config.json`.

    Raises:
        ConversionError: There is none, it is another model's, or states impossible sizes.
    """
    path = folder / "config.json"
    config = read_config(path)
    parts = [config.get("text_config"), config.get("vision_config")]
    if config.get("model_type") != "llava" or not all(isinstance(part, dict) for part in parts):
        raise ConversionError(
            f"LLaVA-1.5's config in the layout of transformers is needed; this one has model_type "
            f"{config.get('model_type')!r}{'' if all(parts) else ' and no text_config and vision_config'}.",
            path=path,
            next_step=_OTHER_BASE,
        )
    for part, names in zip(parts, (_TEXT_SIZES, _VISION_SIZES), strict=True):
        check_sizes(part, names, path)
    with refusing("The base's config cannot be used", path=path, next_step="Download the base again."):
        vlm = LlavaConfig(**{name: value for name, value in config.items() if name not in _NOT_THE_MODEL})
        # The image token count that old files leave out follows from the tower.
        patches = (vlm.vision_config.image_size // vlm.vision_config.patch_size) ** 2
        vlm.image_seq_length = patches + (vlm.vision_feature_select_strategy == "full")
    return vlm


def read_ivm_tokenizer(folder: Path, config: LlavaConfig, inventory: Inventory) -> PreTrainedTokenizerFast:
    """The base's tokenizer, with `<image>` where the config says and padding on the left."""
    check_tokenizer_files(folder)
    if not (folder / FAST_TOKENIZER).is_file():
        raise ConversionError("There is no tokenizer.json.", path=folder, next_step=_OTHER_BASE)
    check_fast_tokenizers([folder / FAST_TOKENIZER])
    with refusing("The tokenizer cannot be read", path=folder, next_step="Download the base again."):
        stored = load_pretrained(PreTrainedTokenizerFast, folder, local_files_only=True)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=stored.backend_tokenizer,
            bos_token=stored.bos_token or "<s>",
            eos_token=stored.eos_token or "</s>",
            unk_token=stored.unk_token or "<unk>",
            pad_token=stored.pad_token or "<pad>",
            image_token=IMAGE_TOKEN,
            padding_side="left",
            model_max_length=config.text_config.max_position_embeddings,
            model_input_names=["input_ids", "attention_mask"],
            clean_up_tokenization_spaces=False,
        )
    rows, image_id = inventory.shapes()[EMBEDDING][0], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id != config.image_token_id or len(tokenizer) > rows:
        raise ConversionError(
            f"The tokenizer has {len(tokenizer)} entries with {IMAGE_TOKEN} at {image_id}; the config has it at "
            f"{config.image_token_id} and the embedding {rows} rows.",
            path=folder,
            next_step=_OTHER_BASE,
        )
    return tokenizer


def _build_model(
    vlm_config: LlavaConfig, inventory: Inventory, sam_options: Mapping[str, Any] | None, needs_adapter: bool
) -> PreTrainedModel:
    """The published model with the right sizes and no weights."""
    try:
        segmenter = read_conditioned_sam_config(inventory.shapes(SEGMENTER), sam_options)
    except ConversionError as error:
        if "mask_decoder." in error.cause:  # SAM's own file, which the message offers, has another decoder
            raise ConversionError(error.cause.replace("SAM's", "The decoder's"), next_step=_TRAINED) from None
        raise
    config = IvmConfig(
        vlm_config=vlm_config,
        segmenter_config=segmenter,
        projector_hidden_size=inventory.shapes(PROJECTOR)["linear_1.weight"][0],
        needs_adapter=needs_adapter,
    )
    with refusing("No model can be built from this config", next_step=_OTHER_BASE):
        return empty_model(IvmForVisualMasking, config)


def build_ivm_processor(folder: Path, config: IvmConfig, tokenizer: PreTrainedTokenizerFast) -> IvmProcessor:
    vision, side = config.vlm_config.vision_config, config.segmenter_config.vision_config.image_size
    with refusing("The preprocessor cannot be rebuilt", path=folder, next_step="Download the base again."):
        image_processor = ReasoningSegmentationImageProcessor(
            **image_view(folder, vision.image_size),
            squash_first=True,
            segmenter_size={"height": side, "width": side},
            # what Pillow takes where, as in the original, no filter is named
            segmenter_resample=PILImageResampling.BICUBIC,
        )
    return IvmProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vlm_config.vision_feature_select_strategy,
    )
