"""What a composed model is made of: any vision-language model, and any SAM, SAM-HQ, SAM 2 or SAM 3 tracker.

The vision-language model is one that transformers saved, or an original LLaVA-1.5 folder; the segmenter one that
transformers saved, or SAM's own file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.utils import is_torchvision_available

from ..loading import CODE_FIELDS, load_pretrained
from ..modeling.configuration_reasoning_segmentation import ORIGINAL_SAM_DECODER_EPS
from ..modeling.segmenters import SEGMENTER_ADAPTERS
from ..processing.chat import build_chat_template
from ..processing.composed_processor import without_videos
from ..processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from .configs import generation_defaults, image_view, llava_config, text_config
from .errors import ConversionError, refusing
from .inventory import Inventory
from .original_llava import LlavaSources, add_original_llava
from .plan import EMBEDDING, empty_model
from .rules import Rule, RuleTable
from .rules_lisa_gsva import SEGMENTER, VLM, sam_table
from .sam_config import read_sam_config
from .sources import open_source, read_config, read_optional_json
from .tokenizer_files import FAST_TOKENIZER, check_fast_tokenizers
from .tokenizers import (
    IMAGE_TOKEN,
    LLAVA,
    build_tokenizer,
    check_tokenizer_files,
    image_in_prompt,
    uses_im_start_end,
)


_OTHER_MODEL = "Download the model again."
ORIGIN = "SAM file"
_OTHER_SEGMENTER = "Download the segmenter again."
# SAM and SAM-HQ keep the aspect ratio and pad; the later ones squash.
_KEEPS_ASPECT = ("sam", "sam_hq")
_TRANSFORMERS_DECODER_EPS = 1e-6
_SAM2_FIELDS = ("vision_config", "prompt_encoder_config", "mask_decoder_config", "initializer_range")


@dataclass(frozen=True)
class VlmComponent:
    """
    Args:
        config (`PreTrainedConfig`): The model's.
        processor (`ProcessorMixin`): Its processor.
        generation_config (`GenerationConfig`): Its defaults of `generate`.
        appended_rows (`int`): Vocabulary rows that the checkpoint lacks; 1 for the `<image>` of an original LLaVA.
        identity_projector (`bool`): Whether the projector is one Linear, to be completed by an identity.
        new_rows (`int`): Vocabulary rows before these that the checkpoint lacks, for tokens that are new.
    """

    config: PreTrainedConfig
    processor: ProcessorMixin
    generation_config: GenerationConfig
    appended_rows: int = 0
    identity_projector: bool = False
    new_rows: int = 0


def add_vlm(
    inventory: Inventory, folder: Path, vision_tower: Path | None = None, template: str = "llava_v1"
) -> VlmComponent:
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
    if is_original_llava(folder):
        return add_llava_component(inventory, LlavaSources(folder, vision_tower=vision_tower), template)
    if vision_tower is not None:
        raise ConversionError(
            "This folder is transformers' own and holds its vision tower.",
            path=folder,
            next_step="Leave vision_tower out.",
        )
    return _add_transformers(inventory, folder)


def is_original_llava(folder: Path) -> bool:
    """Whether a folder is LLaVA in its authors' layout, or the LLaMA it starts from.

    Raises:
        ConversionError: It has no readable config.
    """
    config = read_config(folder / "config.json")
    return config.get("model_type") in ("llava", "llava_llama", "llama") and "text_config" not in config


def _add_transformers(inventory: Inventory, folder: Path) -> VlmComponent:
    kind = read_config(folder / "config.json").get("model_type")
    if kind is not None and str(kind) not in CONFIG_MAPPING:
        raise ConversionError(
            f"Models of type {kind!r} are none that transformers has; code of their own is never run.",
            path=folder / "config.json",
            next_step="Pass one in the layout of transformers, of InternVL such as OpenGVLab/InternVL3-1B-hf.",
        )
    with refusing("The model's config cannot be used", path=folder / "config.json", next_step=_OTHER_MODEL):
        config = without_code(load_pretrained(AutoConfig, folder, local_files_only=True))
    with refusing(
        "No image-text-to-text model of transformers can be built from this config",
        path=folder / "config.json",
        next_step="Pass a vision-language model such as llava-hf/llava-1.5-7b-hf.",
    ):
        model = empty_model(AutoModelForImageTextToText, config)
    processor = _load_processor(folder, config)
    if not isinstance(processor, ProcessorMixin):
        raise ConversionError(
            f"The folder holds a {type(processor).__name__} and no processor for images and text.",
            path=folder,
            next_step="Download processor_config.json and preprocessor_config.json too.",
        )
    source = open_source(folder)
    inventory.add(source, transformers_table(model, source.names(), VLM), "checkpoint")
    generation = GenerationConfig.from_model_config(config)
    if (folder / "generation_config.json").is_file():
        with refusing("The generation config cannot be used", path=folder, next_step=_OTHER_MODEL):
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return VlmComponent(config, processor, generation)


def without_code(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config that names no code of its own, which the converted repository would not hold."""
    _forget_code(vars(config))
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            without_code(part)
    return config


def _forget_code(fields: dict[str, Any]) -> None:
    for field in CODE_FIELDS:
        fields.pop(field, None)


def _load_processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin:
    """
    Raises:
        ConversionError: It is broken, or a part of it needs a package that is not installed.
    """
    check_fast_tokenizers([folder / FAST_TOKENIZER])
    kind = AutoProcessor if is_torchvision_available() else _class_for_images(folder, config)
    try:
        with refusing("The model's processor cannot be loaded", path=folder, next_step=_OTHER_MODEL):
            processor = load_pretrained(kind, folder, local_files_only=True)
    except ImportError as error:
        said = " ".join(str(error).split())
        raise ConversionError(
            f"The model's processor cannot be loaded: a part of it needs a package that is not installed ({said})",
            path=folder,
            next_step="Install the package that it names here and wherever the result is to be loaded.",
        ) from error
    if hasattr(processor, "video_settings"):
        processor.video_settings = _video_settings(folder)
    names = processor.get_attributes() if isinstance(processor, ProcessorMixin) else []
    for part in (processor, *(getattr(processor, name, None) for name in names)):
        for fields in (getattr(part, "__dict__", {}), getattr(part, "init_kwargs", {})):
            _forget_code(fields)
    return processor


def _video_settings(folder: Path) -> dict[str, Any] | None:
    """Of the video processor, from where transformers looks for them, so that it finds them in what is composed."""
    nested = read_optional_json(folder / "processor_config.json").get("video_processor")
    settings = nested or read_optional_json(folder / "video_preprocessor_config.json")
    if not settings:  # older ones share them with images
        settings = read_optional_json(folder / "preprocessor_config.json")
        kind = str(settings.pop("image_processor_type", "")).removesuffix("Fast")
        settings["video_processor_type"] = kind.replace("ImageProcessor", "VideoProcessor")
    _forget_code(settings)
    return settings if settings.get("video_processor_type") else None


def _class_for_images(folder: Path, config: PreTrainedConfig) -> type:
    """What `AutoProcessor` would load, without its videos where it takes some; else `AutoProcessor`."""
    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    named = [read_optional_json(folder / name).get("processor_class") for name in files]
    names = [*named, PROCESSOR_MAPPING_NAMES.get(config.model_type)]
    found = next((one for name in names if isinstance(name, str) and (one := processor_class_from_name(name))), None)
    made = without_videos(found) if found is not None else found
    return AutoProcessor if made is found else made


def add_llava_component(
    inventory: Inventory, sources: LlavaSources, template: str = "llava_v1", slot_tokens: Sequence[str] = ()
) -> VlmComponent:
    """
    Add the parameters of an original LLaVA.

    Args:
        inventory (`Inventory`): Takes them.
        sources ([`LlavaSources`]): Where they are.
        template (`str`): Prompt format.
        slot_tokens (`Sequence[str]`): Tokens that are new, and have no rows yet.

    Raises:
        ConversionError: Something is missing, unreadable or does not fit.
    """
    folder, tower = sources.folder, sources.vision_tower
    llava = add_original_llava(inventory, sources)
    original, vision = llava.config, llava.vision
    with refusing("The tokenizer cannot be rebuilt", path=folder, next_step=_OTHER_MODEL):
        tokenizer = _tokenizer(folder, original, inventory, slot_tokens)
    config = llava_config(
        original,
        text_config(original, tokenizer),
        vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        mlp_projector=llava.mlp_projector,
    )
    with refusing("The preprocessor cannot be rebuilt", path=tower, next_step=_OTHER_MODEL):
        processor = LlavaProcessor(
            # "pad" puts the image on a square in CLIP's mean colour; any other value crops its middle.
            LlavaImageProcessorPil(
                do_pad=original.get("image_aspect_ratio") == "pad", **image_view(tower, vision.image_size)
            ),
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=1,
            image_token=IMAGE_TOKEN,
            chat_template=build_chat_template(template, image_in_prompt(original, default=False)),
        )
    return VlmComponent(
        config,
        processor,
        generation_defaults(tokenizer),
        appended_rows=1,
        identity_projector=not llava.mlp_projector,
        new_rows=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) - inventory.shapes()[EMBEDDING][0],
    )


def _tokenizer(
    folder: Path, original: Mapping[str, Any], inventory: Inventory, slot_tokens: Sequence[str]
) -> PreTrainedTokenizerBase:
    check_tokenizer_files(folder)
    tokenizer = build_tokenizer(
        folder,
        LLAVA,
        use_im_start_end=uses_im_start_end(original, default=False),
        model_max_length=original.get("max_position_embeddings"),
        slot_tokens=tuple(slot_tokens),
    )
    rows, known = inventory.shapes().get(EMBEDDING, (0,))[0], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    lowest = tokenizer.vocab_size if slot_tokens else known  # tokens that are new, or only listed, have no rows yet
    if not lowest <= rows <= known:
        raise ConversionError(
            f"The checkpoint's vocabulary has {rows} rows; its tokenizer has {known} entries.",
            path=folder,
            next_step=_OTHER_MODEL,
        )
    return tokenizer


@dataclass(frozen=True)
class SegmenterComponent:
    """
    Args:
        config (`PreTrainedConfig`): The segmenter's.
        image_processor ([`SegmenterImageProcessor`]): Makes its view.
    """

    config: PreTrainedConfig
    image_processor: SegmenterImageProcessor


def add_segmenter(
    inventory: Inventory, location: Path, sam_options: Mapping[str, Any] | None = None
) -> SegmenterComponent:
    """
    Add a segmenter's parameters.

    Args:
        inventory (`Inventory`): Takes them.
        location (`Path`): SAM's own file, or a folder of transformers.
        sam_options (`Mapping[str, Any]`, *optional*): See `read_sam_config`.

    Raises:
        ConversionError: It is not a segmenter, or of no known family.
    """
    if not (location.is_dir() and (location / "config.json").is_file()):
        inventory.add(open_source(location), sam_table(), ORIGIN)
        config = read_sam_config(inventory.shapes(SEGMENTER), sam_options)
        side = config.vision_config.image_size
        return SegmenterComponent(config, SegmenterImageProcessor(size={"longest_edge": side}))
    config = _read_segmenter_config(location)
    source = open_source(location)
    with refusing("No model can be built from this config", path=location / "config.json", next_step=_OTHER_SEGMENTER):
        model = empty_model(AutoModel, config)
    inventory.add(source, transformers_table(model, source.names(), SEGMENTER), ORIGIN)
    return SegmenterComponent(config, _segmenter_image_processor(location, config))


def _read_segmenter_config(folder: Path) -> PreTrainedConfig:
    path = folder / "config.json"
    stored = read_config(path)
    family = stored.pop("model_type", None)
    if family == "sam2_video":
        # Published SAM 2 folders name the model for videos, which holds the one for images and a memory besides.
        family = "sam2"
        stored = {name: value for name, value in stored.items() if name in _SAM2_FIELDS}
    if family not in SEGMENTER_ADAPTERS:
        raise ConversionError(
            f"A segmenter of type {family!r} is not known; there are {', '.join(SEGMENTER_ADAPTERS)}.",
            path=path,
            next_step="Pass a folder such as facebook/sam-vit-huge or facebook/sam2.1-hiera-large, or SAM's own file.",
        )
    with refusing("The segmenter's config cannot be used", path=path, next_step=_OTHER_SEGMENTER):
        config = AutoConfig.for_model(family, **stored)
    decoder = config.mask_decoder_config
    if family in _KEEPS_ASPECT and decoder.layer_norm_eps == _TRANSFORMERS_DECODER_EPS:
        # transformers' default, also where it was written out: these decoders were trained with another value.
        decoder.layer_norm_eps = ORIGINAL_SAM_DECODER_EPS
    return config


def _segmenter_image_processor(folder: Path, config: PreTrainedConfig) -> SegmenterImageProcessor:
    path = folder / "preprocessor_config.json"
    stored = read_optional_json(path)
    kept = {name: stored[name] for name in ("image_mean", "image_std", "resample") if stored.get(name) is not None}
    side = config.prompt_encoder_config.image_size
    if config.model_type in _KEEPS_ASPECT:
        return SegmenterImageProcessor(size={"longest_edge": side}, **kept)
    if config.model_type == "sam3_tracker" and "image_mean" not in kept:
        kept |= {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
    return SegmenterImageProcessor(size={"height": side, "width": side}, **kept)


class ExplicitTable(RuleTable):
    """A table with one rule per name, found without trying all of them."""

    def __init__(self, rules: Sequence[Rule], name: str):
        super().__init__(rules, name)
        self._by_source = {rule.source: rule for rule in rules}

    def match(self, key: str) -> Rule | None:
        return self._by_source.get(key)


def transformers_table(model: PreTrainedModel, names: Sequence[str], prefix: str) -> RuleTable:
    """
    The names of a checkpoint in any spelling that transformers reads.

    Args:
        model (`PreTrainedModel`): The model the checkpoint is of; may be on the meta device.
        names (`Sequence[str]`): The checkpoint's names.
        prefix (`str`): What is put before the parameters' names (`"vlm."`).

    Raises:
        ConversionError: The checkpoint stores parameters of this model in parts that transformers joins while loading.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    tied, ignored = set(model.all_tied_weights_keys), _ignored_patterns(model)
    filled: set[str] = set()
    rules = []
    for name in names:
        target, joined = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, joined = name, None
        if joined is not None:
            raise ConversionError(
                f"{name!r} is one of several tensors that {type(model).__name__} joins while loading.",
                next_step="Load it with transformers and save it again with save_original_format=False.",
            )
        if target in tied:
            rules.append(Rule(name, None, reason="it is tied to another parameter"))
        elif any(re.search(pattern, target) for pattern in ignored) and target not in state:
            rules.append(Rule(name, None, reason="transformers does not load it"))
        elif target in filled:
            rules.append(Rule(name, None, reason=f"{target} stands in the checkpoint twice"))
        else:
            filled.add(target)
            rules.append(Rule(name, prefix + target))
    return ExplicitTable(rules, type(model).__name__)


def _ignored_patterns(model: PreTrainedModel) -> list[str]:
    patterns = {r"(?:^|\.)rotary_emb\.inv_freq$", r"(?:^|\.)position_ids$"}
    for module in model.modules():
        patterns |= set(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())
    return sorted(patterns)
