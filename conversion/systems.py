"""Which classes make up each system: the one table that registration, conversion and verification read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from transformers import (
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    VipLlavaConfig,
)

from ..modeling.configuration_attend_and_segment import AttendAndSegmentConfig
from ..modeling.configuration_difflmm import DiffLmmConfig
from ..modeling.configuration_gsva import GsvaConfig
from ..modeling.configuration_ivm import IvmConfig
from ..modeling.configuration_lisa import LisaConfig
from ..modeling.configuration_reasoning_segmentation import ReasoningSegmentationConfig
from ..modeling.modeling_attend_and_segment import AttendAndSegmentModel
from ..modeling.modeling_difflmm import DiffLmmForConditionalGeneration
from ..modeling.modeling_gsva import GsvaForReasoningSegmentation
from ..modeling.modeling_ivm import IvmForVisualMasking
from ..modeling.modeling_lisa import LisaForReasoningSegmentation
from ..modeling.modeling_reasoning_segmentation import ReasoningSegmentationModel
from ..modeling.modeling_vip_llava import VipLlavaForConditionalGeneration
from ..processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from ..processing.image_processing_vip_llava import DiffLmmImageProcessor, VipLlavaImageProcessor
from ..processing.processing_attend_and_segment import AttendAndSegmentProcessor
from ..processing.processing_difflmm import DiffLmmProcessor
from ..processing.processing_gsva import GsvaProcessor
from ..processing.processing_ivm import IvmProcessor
from ..processing.processing_lisa import LisaProcessor
from ..processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from ..processing.processing_vip_llava import VipLlavaProcessor


@dataclass(frozen=True)
class PublishedSystem:
    """What a converted repository is made of.

    Args:
        name (`str`): Such as `"lisa"`: what manifests, model cards and `model_cards/<name>.yaml` call it.
        config_class, model_class, processor_class (`type`): The classes that load it. The code of those that are not
            transformers' own is published with it.
        image_processor_class (`type`, *optional*): Its image processor, LISA's and GSVA's by default.
        does (`str`): What its models do, after "such models".
        commands (`tuple[str, ...]`): The commands of `reasonseg` that run its models, the one they are made for first.
        auto_class (`str`, *optional*): The Auto class under which the model's code is published, `"AutoModel"` by
            default; configs of this package name it under others as well.
    """

    name: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    processor_class: type[ProcessorMixin]
    does: str = field(kw_only=True)
    commands: tuple[str, ...] = field(kw_only=True)
    image_processor_class: type[BaseImageProcessor] = field(default=ReasoningSegmentationImageProcessor, kw_only=True)
    auto_class: str = field(default="AutoModel", kw_only=True)

    @property
    def model_type(self) -> str:
        """What its `config.json` says."""
        return self.config_class.model_type

    @property
    def auto_classes(self) -> dict[str, type]:
        """`dict[str, type]`: The classes that load it by the Auto class that finds each."""
        return {
            "AutoConfig": self.config_class,
            self.auto_class: self.model_class,
            "AutoProcessor": self.processor_class,
            "AutoImageProcessor": self.image_processor_class,
        }

    def publish_code(self) -> None:
        """Have `save_pretrained` copy the code of its classes beside the weights."""
        for auto_class, own in self.auto_classes.items():
            if not is_of_transformers(own):
                own.register_for_auto_class(auto_class)


def is_of_transformers(own: type) -> bool:
    """Whether everybody who has transformers has a class, so that its code need not be published."""
    return own.__module__.split(".")[0] == "transformers"


REASONING_SEGMENTATION = PublishedSystem(
    "reasoning_segmentation",
    ReasoningSegmentationConfig,
    ReasoningSegmentationModel,
    ReasoningSegmentationProcessor,
    does="write an answer and draw a mask for every [SEG] in it",
    commands=("segment", "ask"),
)
LISA = PublishedSystem(
    "lisa",
    LisaConfig,
    LisaForReasoningSegmentation,
    LisaProcessor,
    does=REASONING_SEGMENTATION.does,
    commands=REASONING_SEGMENTATION.commands,
)
GSVA = PublishedSystem(
    "gsva",
    GsvaConfig,
    GsvaForReasoningSegmentation,
    GsvaProcessor,
    does=REASONING_SEGMENTATION.does,
    commands=REASONING_SEGMENTATION.commands,
)
IVM = PublishedSystem(
    "ivm",
    IvmConfig,
    IvmForVisualMasking,
    IvmProcessor,
    does="draw what an instruction needs and write no text",
    commands=("mask", "segment"),
)
VIP_LLAVA = PublishedSystem(
    "vip_llava",
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
    VipLlavaProcessor,
    does="answer in text and draw no masks",
    commands=("ask",),
    image_processor_class=VipLlavaImageProcessor,
    # The config is transformers' own, and so is what AutoModel makes of it: the model without its head.
    auto_class="AutoModelForImageTextToText",
)
DIFFLMM = PublishedSystem(
    "difflmm",
    DiffLmmConfig,
    DiffLmmForConditionalGeneration,
    DiffLmmProcessor,
    does=VIP_LLAVA.does,
    commands=VIP_LLAVA.commands,
    image_processor_class=DiffLmmImageProcessor,
)
ATTEND_AND_SEGMENT = PublishedSystem(
    "attend_and_segment",
    AttendAndSegmentConfig,
    AttendAndSegmentModel,
    AttendAndSegmentProcessor,
    does="write an answer and draw a mask for every phrase in it",
    commands=("segment", "ask"),
)

SYSTEMS: Mapping[str, PublishedSystem] = MappingProxyType(
    {
        system.name: system
        for system in (REASONING_SEGMENTATION, LISA, GSVA, IVM, VIP_LLAVA, DIFFLMM, ATTEND_AND_SEGMENT)
    }
)
