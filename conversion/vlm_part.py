"""A vision-language model to compose with: one that transformers saved, or an original LLaVA-1.5 folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..loading import CODE_FIELDS, load_pretrained
from ..processing.chat import build_chat_template
from .assembly import generation_defaults
from .configs import clip_config_from_folder, clip_config_from_shapes, image_view, llava_config, text_config
from .configs import read_llava_config as read_original_config
from .empty_models import empty_model
from .errors import ConversionError, refusing
from .inventory import Inventory
from .plan import EMBEDDING
from .rules_lisa_gsva import MM_PROJECTOR, VISION_TOWER, VLM, clip_table, detect_layout, llava_table
from .sources import holds_weights, open_source, read_config
from .tokenizer_files import FAST_TOKENIZER, check_fast_tokenizers
from .tokenizers import IM_END_TOKEN, IM_START_TOKEN, IMAGE_TOKEN, build_tokenizer, check_tokenizer_files
from .transformers_names import transformers_table


_OTHER_COPY = "Download the model again."
_CLIP = "openai/clip-vit-large-patch14-336"


@dataclass(frozen=True)
class VlmPart:
    """
    Args:
        config (`PreTrainedConfig`): The model's.
        processor (`ProcessorMixin`): Its processor.
        generation_config (`GenerationConfig`): Its defaults of `generate`.
        appended_rows (`int`): Vocabulary rows that the checkpoint lacks; 1 for the `<image>` of an original LLaVA.
    """

    config: PreTrainedConfig
    processor: ProcessorMixin
    generation_config: GenerationConfig
    appended_rows: int = 0


def add_vlm(
    inventory: Inventory, folder: Path, vision_tower: Path | None = None, template: str = "llava_v1"
) -> VlmPart:
    """
    Add a vision-language model's parameters.

    Args:
        inventory (`Inventory`): Takes them.
        folder (`Path`): Folder of transformers, or of an original LLaVA-1.5.
        vision_tower (`Path`, *optional*): The CLIP folder of an original LLaVA-1.5, which usually holds none.
        template (`str`): Prompt format of an original LLaVA-1.5.

    Raises:
        ConversionError: The folder holds neither, or not all of it.
    """
    if not folder.is_dir():
        raise ConversionError("There is no such folder.", path=folder, next_step="Check the path of the model.")
    config = read_config(folder / "config.json")
    is_original = config.get("model_type") in ("llava", "llava_llama", "llama") and "text_config" not in config
    if is_original:
        return _add_original_llava(inventory, folder, vision_tower, template)
    if vision_tower is not None:
        raise ConversionError(
            "This folder is transformers' own and holds its vision tower.",
            path=folder,
            next_step="Leave vision_tower out.",
        )
    return _add_transformers(inventory, folder)


def _add_transformers(inventory: Inventory, folder: Path) -> VlmPart:
    with refusing("The model's config cannot be used", path=folder / "config.json", next_step=_OTHER_COPY):
        config = _without_code(load_pretrained(AutoConfig, folder, local_files_only=True))
    with refusing(
        "No image-text-to-text model of transformers can be built from this config",
        path=folder / "config.json",
        next_step="Pass a vision-language model such as llava-hf/llava-1.5-7b-hf.",
    ):
        model = empty_model(AutoModelForImageTextToText, config)
    processor = _load_processor(folder)
    if not isinstance(processor, ProcessorMixin):
        raise ConversionError(
            f"The folder holds a {type(processor).__name__} and no processor for pictures and text.",
            path=folder,
            next_step="Download processor_config.json and preprocessor_config.json too.",
        )
    source = open_source(folder)
    inventory.add(source, transformers_table(model, source.names(), VLM), "checkpoint")
    generation = GenerationConfig.from_model_config(config)
    if (folder / "generation_config.json").is_file():
        with refusing("The generation config cannot be used", path=folder, next_step=_OTHER_COPY):
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return VlmPart(config, processor, generation)


def _without_code(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config that names no code of its own, which the converted repository would not hold."""
    _forget_code(vars(config))
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            _without_code(part)
    return config


def _forget_code(fields: dict[str, Any]) -> None:
    for field in CODE_FIELDS:
        fields.pop(field, None)


def _load_processor(folder: Path) -> ProcessorMixin:
    """
    Raises:
        ConversionError: It is broken, or a part of it needs a package that is not installed.
    """
    check_fast_tokenizers([folder / FAST_TOKENIZER])
    try:
        with refusing("The model's processor cannot be loaded", path=folder, next_step=_OTHER_COPY):
            processor = load_pretrained(AutoProcessor, folder, local_files_only=True)
    except ImportError as error:
        # Transformers has the video processors of Qwen-VL, InternVL and others for torchvision alone, and builds none
        # of their processors without; what is written here must load again, where the same holds.
        said = " ".join(str(error).split())
        package = "torchvision" if "torchvision" in said.lower() else "the package that it names"
        raise ConversionError(
            f"The model's processor cannot be loaded: a part of it needs a package that is not installed ({said})",
            path=folder,
            next_step=f"Install {package} here and wherever the result shall be loaded"
            + (", in the build that fits your PyTorch: pip install torchvision." if package == "torchvision" else "."),
        ) from error
    names = processor.get_attributes() if isinstance(processor, ProcessorMixin) else []
    for part in (processor, *(getattr(processor, name, None) for name in names)):
        for fields in (getattr(part, "__dict__", {}), getattr(part, "init_kwargs", {})):
            _forget_code(fields)
    return processor


def _add_original_llava(inventory: Inventory, folder: Path, tower: Path | None, template: str) -> VlmPart:
    original = read_original_config(folder)
    checkpoint = open_source(folder)
    try:
        table = llava_table(detect_layout(checkpoint.names()))
    except ConversionError as error:
        raise error.at(folder) from None
    # The original always loads CLIP from its own folder, whatever the checkpoint holds.
    if tower is not None and holds_weights(tower):
        weights = open_source(tower)
        inventory.add(weights, clip_table(weights.names()), "vision tower")
    inventory.add(checkpoint, table, "checkpoint")
    if not inventory.has(VISION_TOWER):
        raise ConversionError(
            "The checkpoint holds no CLIP tower.", path=folder, next_step=f"Pass vision_tower={_CLIP!r} or its folder."
        )
    with refusing("The tokenizer cannot be rebuilt", path=folder, next_step=_OTHER_COPY):
        tokenizer = _tokenizer(folder, original, inventory)
    vision = clip_config_from_folder(tower) if tower else clip_config_from_shapes(inventory.shapes(VISION_TOWER))
    config = llava_config(
        original,
        text_config(original, tokenizer),
        vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        mlp_projector=inventory.has(f"{MM_PROJECTOR}linear_2."),
    )
    with refusing("The preprocessor cannot be rebuilt", path=tower, next_step=_OTHER_COPY):
        processor = LlavaProcessor(
            # "pad" puts the picture on a square in CLIP's mean colour; any other value crops its middle.
            LlavaImageProcessorPil(
                do_pad=original.get("image_aspect_ratio") == "pad", **image_view(tower, vision.image_size)
            ),
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=1,
            image_token=IMAGE_TOKEN,
            chat_template=build_chat_template(template, _image_in_prompt(original)),
        )
    return VlmPart(config, processor, generation_defaults(tokenizer), appended_rows=1)


def _tokenizer(folder: Path, original: Mapping[str, Any], inventory: Inventory) -> PreTrainedTokenizerBase:
    check_tokenizer_files(folder)
    tokenizer = build_tokenizer(
        folder,
        "llava",
        use_im_start_end=_uses_marks(original),
        model_max_length=original.get("max_position_embeddings"),
    )
    rows, known = inventory.shapes().get(EMBEDDING, (0,))[0], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if known != rows:
        raise ConversionError(
            f"The checkpoint's vocabulary has {rows} rows; its tokenizer has {known} entries.",
            path=folder,
            next_step=_OTHER_COPY,
        )
    return tokenizer


def _uses_marks(original: Mapping[str, Any]) -> bool:
    return bool(original.get("mm_use_im_start_end", False))


def _image_in_prompt(original: Mapping[str, Any]) -> str:
    return f"{IM_START_TOKEN}{IMAGE_TOKEN}{IM_END_TOKEN}" if _uses_marks(original) else IMAGE_TOKEN
