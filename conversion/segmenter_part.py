"""A segmenter to compose with: SAM's own file, or a SAM, SAM-HQ, SAM 2 or SAM 3 tracker that transformers saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..modeling.configuration_reasoning_segmentation import ORIGINAL_SAM_DECODER_EPS
from ..modeling.segmenters import SEGMENTER_ADAPTERS
from ..processing.image_processing_reasoning_segmentation import SegmenterImageProcessor
from .empty_models import empty_model
from .errors import ConversionError, refusing
from .inventory import Inventory
from .rules_lisa_gsva import SEGMENTER, sam_table
from .sam_config import read_sam_config
from .sources import open_source, read_config, read_json
from .transformers_names import transformers_table


ORIGIN = "SAM file"
_OTHER_COPY = "Download the segmenter again."
# SAM and SAM-HQ keep the aspect ratio and pad; the later ones squash.
_KEEPS_ASPECT = ("sam", "sam_hq")
_TRANSFORMERS_DECODER_EPS = 1e-6
_SAM2_FIELDS = ("vision_config", "prompt_encoder_config", "mask_decoder_config", "initializer_range")


@dataclass(frozen=True)
class SegmenterPart:
    """
    Args:
        config (`PreTrainedConfig`): The segmenter's.
        image_processor ([`SegmenterImageProcessor`]): Makes its view.
    """

    config: PreTrainedConfig
    image_processor: SegmenterImageProcessor


def add_segmenter(inventory: Inventory, location: Path, sam_options: Mapping[str, Any] | None = None) -> SegmenterPart:
    """
    Add a segmenter's parameters.

    Args:
        inventory (`Inventory`): Takes them.
        location (`Path`): SAM's own file, or a folder of transformers.
        sam_options (`Mapping[str, Any]`, *optional*): See `read_sam_config`.

    Raises:
        ConversionError: It is no segmenter, or one of no known family.
    """
    if not (location.is_dir() and (location / "config.json").is_file()):
        inventory.add(open_source(location), sam_table(), ORIGIN)
        config = read_sam_config(inventory.shapes(SEGMENTER), sam_options)
        side = config.vision_config.image_size
        return SegmenterPart(config, SegmenterImageProcessor(size={"longest_edge": side}))
    config = _read_config(location)
    source = open_source(location)
    with refusing("No model can be built from this config", path=location / "config.json", next_step=_OTHER_COPY):
        model = empty_model(AutoModel, config)
    inventory.add(source, transformers_table(model, source.names(), SEGMENTER), ORIGIN)
    return SegmenterPart(config, _image_processor(location, config))


def _read_config(folder: Path) -> PreTrainedConfig:
    path = folder / "config.json"
    stored = read_config(path)
    family = stored.pop("model_type", None)
    if family == "sam2_video":
        # Published SAM 2 folders name the model for videos, which holds the one for pictures and a memory besides.
        family = "sam2"
        stored = {name: value for name, value in stored.items() if name in _SAM2_FIELDS}
    if family not in SEGMENTER_ADAPTERS:
        raise ConversionError(
            f"A segmenter of type {family!r} is not known; there are {', '.join(SEGMENTER_ADAPTERS)}.",
            path=path,
            next_step="Pass a folder such as facebook/sam-vit-huge or facebook/sam2.1-hiera-large, or SAM's own file.",
        )
    with refusing("The segmenter's config cannot be used", path=path, next_step=_OTHER_COPY):
        config = AutoConfig.for_model(family, **stored)
    decoder = config.mask_decoder_config
    if family in _KEEPS_ASPECT and decoder.layer_norm_eps == _TRANSFORMERS_DECODER_EPS:
        # transformers' default, also where it was written out: these decoders were trained with another value.
        decoder.layer_norm_eps = ORIGINAL_SAM_DECODER_EPS
    return config


def _image_processor(folder: Path, config: PreTrainedConfig) -> SegmenterImageProcessor:
    path = folder / "preprocessor_config.json"
    stored = read_json(path) if path.is_file() else {}
    kept = {name: stored[name] for name in ("image_mean", "image_std", "resample") if stored.get(name) is not None}
    side = config.prompt_encoder_config.image_size
    if config.model_type in _KEEPS_ASPECT:
        return SegmenterImageProcessor(size={"longest_edge": side}, **kept)
    if config.model_type == "sam3_tracker" and "image_mean" not in kept:
        kept |= {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
    return SegmenterImageProcessor(size={"height": side, "width": side}, **kept)
