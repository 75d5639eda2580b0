"""Sa2VA: published folders on Qwen-VL, LLaVA-1.5 or InternVL with SAM 2 or 3, read without their remote code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import (
    AutoConfig,
    BaseImageProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.image_utils import PILImageResampling

from ..loading import load_pretrained
from ..modeling.configuration_sa2va import Sa2VaConfig
from ..modeling.modeling_sa2va import Sa2VaForReasoningSegmentation
from ..processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from ..processing.image_processing_sa2va import Sa2VaImageProcessor, sa2va_segmenter_view
from ..processing.image_processing_sa2va_tiles import Sa2VaTileImageProcessor
from ..processing.processing_sa2va import (
    ADDED_TOKENS,
    SA2VA_INTERNVL_TEMPLATE,
    SA2VA_LLAVA_WORDING,
    SA2VA_PHI_3_STOP_WORDS,
    SA2VA_PHI_3_TEMPLATE,
    TILE_TOKEN,
    Sa2VaProcessor,
)
from .card import Values, known_cards
from .configs import check_sizes
from .convert import ConversionOptions, ConversionReport, Parts, convert
from .errors import ConversionError, refusing
from .inventory import Inventory
from .locations import locate, location_name
from .original_internvl import read_internvl_config, split_attention, tile_side
from .plan import EMBEDDING, HEAD, Scheme, empty_model, require_components
from .rules_lisa_gsva import PROJECTOR, SEGMENTER, TEXT_MODEL, VLM
from .rules_sa2va import POSITIONS, POSITIONS_OF_POINTS, complete_sam3, has_sam3, sa2va_table
from .sam2_config import read_sam2_config
from .sam3_config import read_sam3_config
from .sources import open_source, read_config, read_json, read_optional_json
from .systems import SA2VA, SEG_TOKEN
from .tokenizer_files import FAST_TOKENIZER, check_fast_tokenizers
from .tokenizers import IMAGE_TOKEN, check_tokenizer_files


_AGAIN = "Download the checkpoint again."
_TRAINED = "It is trained with the model, so only a checkpoint that holds it can be converted."
_REMEDIES = {
    SEGMENTER: ("SAM 2 or 3", _TRAINED),
    PROJECTOR: ("text_hidden_fcs", _TRAINED),
    VLM: ("the vision-language model", _TRAINED),
}
_SCHEME = Scheme(VLM, TEXT_MODEL, SEGMENTER, _REMEDIES, EMBEDDING, HEAD, appended_rows=0)
# The model of transformers by its language model, and the image placeholder of its prompts.
_FAMILIES = {
    "qwen3_vl_text": ("qwen3_vl", "<|image_pad|>"),
    "qwen2_5_vl_text": ("qwen2_5_vl", "<|image_pad|>"),
    "llama": ("llava", IMAGE_TOKEN),
}
_INTERNVL = "internvl"
# Of InternVL: its language models by their classes there; and by the names of its prompt templates these, the tokens
# that end an answer beside the tokenizer's own, and the words that are no tokens.
_INTERNVL_TEXT = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_INTERNVL_TEMPLATES = {
    "qwen_chat": (SA2VA_INTERNVL_TEMPLATE, ("<|im_end|>", "<|endoftext|>"), ()),
    "internlm2_chat": (SA2VA_INTERNVL_TEMPLATE, ("<|im_end|>",), ()),
    "phi3_chat": (SA2VA_PHI_3_TEMPLATE, (), SA2VA_PHI_3_STOP_WORDS),
}
# Under transformers 4, with which it was trained, the last hidden state of this one had not gone through the norm.
_BEFORE_THE_NORM = ("qwen3_vl",)
_SAM3_ROW = {"part": "segmenter", "work": "SAM 3", "licence": "SAM License of Meta"}
_VLM_FIELDS = {
    "qwen": ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    "llava": (
        "image_token_index",
        "image_seq_length",
        "projector_hidden_act",
        "multimodal_projector_bias",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    ),
}
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_IMAGE_FIELDS = ("image_mean", "image_std", "patch_size", "merge_size", "temporal_patch_size")
# What a config says about the file it was saved in and about generation, not about the model.
_NOT_THE_MODEL = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def convert_sa2va(
    source: str | os.PathLike,
    *,
    out: str | os.PathLike,
    sam_options: Mapping[str, Any] | str | None = None,
    segmenter_dtype: torch.dtype | str | None = None,
    **options: Unpack[ConversionOptions],
) -> ConversionReport:
    """Convert a Sa2VA checkpoint into a complete repository.

    Args:
        source (`str` or `os.PathLike`): A published folder, or its name on the Hub (`ByteDance/Sa2VA-Qwen3-VL-4B`,
            also with `@revision`), on Qwen3-VL, Qwen2.5-VL, LLaVA-1.5, or InternVL with Qwen, and with SAM 2 or 3.
        out (`str` or `os.PathLike`): The repository's folder; it must not exist or be empty.
        sam_options (`Mapping[str, Any]` or `str`, *optional*): `num_attention_heads`, `window_size_per_stage` and
            `global_attention_blocks` of an image encoder of none of SAM 2's published sizes (SAM 3: `window_size`
            instead), also as JSON.
        segmenter_dtype (`torch.dtype` or `str`, *optional*): Type the segmenter is stored in, by default float32;
            transformers loads it as float32 in any case.
        options: See [`ConversionOptions`]. The projector is float32 whatever `dtype` says.

    Returns:
        `ConversionReport`: Where the tensors came from and which were dropped.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit; nothing is then left behind.
    """
    sam_options = _read_options(sam_options)

    def read_parts() -> Parts:
        folder, inventory = locate(source), Inventory()
        checkpoint = open_source(folder)
        try:
            table = sa2va_table(checkpoint.names())
        except ConversionError as error:
            raise error.at(folder) from None
        inventory.add(checkpoint, table, "checkpoint")
        inventory.share(POSITIONS, POSITIONS_OF_POINTS)
        split_attention(inventory)
        complete_sam3(inventory)
        require_components(inventory, _SCHEME)
        vlm = read_vlm_config(folder)
        tokenizer = _read_tokenizer(folder, vlm, inventory)
        with refusing("No model can be built from this config", path=folder / "config.json", next_step=_AGAIN):
            is_sam3 = has_sam3(checkpoint.names())
            read_segmenter_config = read_sam3_config if is_sam3 else read_sam2_config
            config = Sa2VaConfig(
                vlm_config=vlm,
                segmenter_config=read_segmenter_config(inventory.shapes(SEGMENTER), sam_options),
                seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
                slot_state_normalized=vlm.model_type not in _BEFORE_THE_NORM,
                # the original has taken this step out of SAM 2's heads, and left it in SAM 3's
                empty_without_object=is_sam3,
                # the other variants generate from embeddings or were not seen to do so
                prompt_slots=vlm.model_type not in ("llava", _INTERNVL),
            )
            model = empty_model(Sa2VaForReasoningSegmentation, config)
        with refusing("The preprocessor cannot be rebuilt", path=folder, next_step=_AGAIN):
            processor = _build_processor(folder, config, tokenizer)
        return Parts(
            card=_card(Path(location_name(source)).name, is_sam3),
            inventory=inventory,
            model=model,
            processor=processor,
            scheme=_SCHEME,
            generation_config=_generation_config(folder, tokenizer, vlm),
        )

    return convert(SA2VA, source, out, read_parts, segmenter_dtype=segmenter_dtype, **options)


def _card(name: str, is_sam3: bool) -> Values:
    """The name of the card's values; of a checkpoint with SAM 3 that nobody knows, what holds for all of them."""
    return {"chain": [_SAM3_ROW]} if is_sam3 and name.lower() not in known_cards() else name


def _read_options(options: Mapping[str, Any] | str | None) -> Mapping[str, Any] | None:
    if not isinstance(options, str):
        return options
    try:
        read = json.loads(options)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise ConversionError(
            f"sam_options is {options!r}; give a JSON object such as "
            '\'{"num_attention_heads": 2, "window_size_per_stage": [8, 4, 16, 8], "global_attention_blocks": [23]}\'.'
        )
    return read


def read_vlm_config(folder: Path) -> PreTrainedConfig:
    """The config of the vision-language model in a Sa2VA folder.

    Raises:
        ConversionError: There is none, it is another model's, or states impossible sizes.
    """
    path = folder / "config.json"
    stored = read_config(path)
    if isinstance(stored.get("llm_config"), dict):
        return _read_internvl_config(stored, path)
    text, vision = stored.get("text_config"), stored.get("vision_config")
    if not isinstance(text, dict) or text.get("model_type") not in _FAMILIES:
        kind = text.get("model_type") if isinstance(text, dict) else stored.get("model_type")
        raise ConversionError(
            f"The config names the language model {kind!r}; Sa2VA is converted on {', '.join(_FAMILIES)}.",
            path=path,
            next_step="Pass a folder such as ByteDance/Sa2VA-Qwen3-VL-4B.",
        )
    if not isinstance(vision, dict):
        raise ConversionError("The config has no `vision_config`.", path=path, next_step=_AGAIN)
    check_sizes(text, _SIZES, path)
    check_sizes(vision, (*_SIZES, "depth", "num_heads", "out_hidden_size"), path)
    family, _ = _FAMILIES[text["model_type"]]
    names = _VLM_FIELDS["llava" if family == "llava" else "qwen"]
    with refusing("The config cannot be used", path=path, next_step=_AGAIN):
        config = AutoConfig.for_model(
            family,
            text_config=_fields_of(text),
            vision_config=_fields_of(vision),
            **{name: stored[name] for name in names if name in stored},
        )
        # Its bases tie their embeddings; training has taken them apart.
        config.tie_word_embeddings = False
        config.text_config.tie_word_embeddings = False
        return config


def _read_internvl_config(stored: Mapping[str, Any], path: Path) -> PreTrainedConfig:
    language_model, template = stored["llm_config"], _template_of(stored)
    names = language_model.get("architectures")
    kinds = [_INTERNVL_TEXT.get(str(name)) for name in names] if isinstance(names, list) else []
    if len(kinds) != 1 or kinds[0] is None or template not in _INTERNVL_TEMPLATES:
        raise ConversionError(
            f"The config names the language model {names!r} and the template {template!r}; Sa2VA on InternVL is "
            f"converted with {' or '.join(_INTERNVL_TEXT)}, and {', '.join(_INTERNVL_TEMPLATES)}.",
            path=path,
            next_step="Pass a folder such as ByteDance/Sa2VA-InternVL3-8B.",
        )
    return read_internvl_config(stored, {**_fields_of(language_model), "model_type": kinds[0]}, path)


def _template_of(stored: Mapping[str, Any]) -> str:
    """The name of InternVL's prompt template, as the original reads it."""
    return str(stored.get("template")).replace("-", "_")


def _fields_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a part of a config, without those that are not the model's."""
    generation = GenerationConfig().to_dict()
    kept = {name: value for name, value in stored.items() if name not in _NOT_THE_MODEL}
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    return {name: value for name, value in kept.items() if name in tokens or name not in generation}


def _read_tokenizer(folder: Path, config: PreTrainedConfig, inventory: Inventory) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, checked against config and embedding."""
    check_tokenizer_files(folder)
    has_fast = (folder / FAST_TOKENIZER).is_file()
    # InternVL's own folders hold Qwen2's vocabulary and merges instead.
    if not has_fast and not (config.model_type == _INTERNVL and (folder / "merges.txt").is_file()):
        raise ConversionError("There is no tokenizer.json.", path=folder, next_step=_AGAIN)
    check_fast_tokenizers([folder / FAST_TOKENIZER])
    image_token = _image_token(config)
    with refusing("The tokenizer cannot be read", path=folder, next_step=_AGAIN):
        kind = PreTrainedTokenizerFast if has_fast else Qwen2Tokenizer
        stored = load_pretrained(kind, folder, local_files_only=True)
        named = ("bos_token", "eos_token", "unk_token", "pad_token")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=stored.backend_tokenizer,
            **{name: value for name in named if (value := getattr(stored, name, None)) is not None},
            image_token=image_token,
            padding_side="left",
            model_max_length=config.text_config.max_position_embeddings,
            model_input_names=["input_ids", "attention_mask"],
            clean_up_tokenization_spaces=False,
        )
    rows, image_id = inventory.shapes()[EMBEDDING][0], tokenizer.convert_tokens_to_ids(image_token)
    if config.model_type == _INTERNVL:  # whose config does not say it
        config.image_token_id = -1 if image_id is None else image_id
    lacking = [token for token in ADDED_TOKENS if token not in tokenizer.get_vocab()]
    if lacking or image_id != config.image_token_id or len(tokenizer) > rows:
        raise ConversionError(
            f"The tokenizer has {len(tokenizer)} entries with {image_token} at {image_id}"
            f"{' and lacks ' + ', '.join(lacking) if lacking else ''}; the config has the image at "
            f"{config.image_token_id} and the embedding {rows} rows.",
            path=folder,
            next_step=_AGAIN,
        )
    return tokenizer


def _image_token(config: PreTrainedConfig) -> str:
    return TILE_TOKEN if config.model_type == _INTERNVL else _FAMILIES[config.text_config.model_type][1]


def _build_processor(folder: Path, config: Sa2VaConfig, tokenizer: PreTrainedTokenizerFast) -> Sa2VaProcessor:
    vlm = config.vlm_config
    side = config.segmenter_config.prompt_encoder_config.image_size
    if vlm.model_type == "llava":
        vision = vlm.vision_config
        return Sa2VaProcessor(
            image_processor=_square_views(vision.image_size, side),
            tokenizer=tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=vlm.vision_feature_select_strategy,
            wording=SA2VA_LLAVA_WORDING,
        )
    if vlm.model_type == _INTERNVL:
        stored = read_config(folder / "config.json")
        tile, (chat_template, _, stop_words) = tile_side(stored), _INTERNVL_TEMPLATES[_template_of(stored)]
        return Sa2VaProcessor(
            image_processor=Sa2VaTileImageProcessor(
                size={"height": tile, "width": tile}, **sa2va_segmenter_view(side)
            ),
            tokenizer=tokenizer,
            # four patches make a token
            patch_size=2 * vlm.vision_config.patch_size[0],
            vision_feature_select_strategy="full",
            num_additional_image_tokens=0,
            chat_template=chat_template,
            wording=SA2VA_LLAVA_WORDING,
            stop_words=stop_words,
        )
    return Sa2VaProcessor(
        image_processor=Sa2VaImageProcessor(**_image_options(folder), **sa2va_segmenter_view(side)),
        tokenizer=tokenizer,
        chat_template=_chat_template(folder),
        image_token=_image_token(vlm),
    )


def _image_options(folder: Path) -> dict[str, Any]:
    """What a Qwen-VL's image processor is given, from a file of its own or, as transformers 5 saves it, the
    processor's."""
    whole = read_optional_json(folder / "processor_config.json").get("image_processor")
    stored = whole if isinstance(whole, dict) else read_json(folder / "preprocessor_config.json")
    return {name: stored[name] for name in _IMAGE_FIELDS if stored.get(name) is not None}


def _square_views(side: int, segmenter_side: int) -> BaseImageProcessor:
    """Both views of LLaVA's variant, for which nothing is cropped or padded."""
    return ReasoningSegmentationImageProcessor(
        size={"height": side, "width": side},
        do_center_crop=False,
        resample=PILImageResampling.BICUBIC,
        **sa2va_segmenter_view(segmenter_side),
    )


def _chat_template(folder: Path) -> str:
    """The base's chat template, in a file of its own or among the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_optional_json(folder / name).get("chat_template")
        if isinstance(template, str):
            return template
    raise ConversionError("There is no chat template.", path=folder, next_step=_AGAIN)


def _generation_config(folder: Path, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> GenerationConfig:
    """Greedy, as the original generates; placeholders, which would ask for images that do not exist, are left out."""
    placeholders = (config.image_token_id, getattr(config, "video_token_id", None))
    end = tokenizer.eos_token_id
    if config.model_type == _INTERNVL:
        _, tokens, _ = _INTERNVL_TEMPLATES[_template_of(read_config(folder / "config.json"))]
        end = list(dict.fromkeys(tokenizer.convert_tokens_to_ids([*tokens, tokenizer.eos_token])))
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[token_id for token_id in placeholders if token_id is not None],
    )
