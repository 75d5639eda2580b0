"""Make transformers know this package's models, processors and pipeline, so that no `trust_remote_code` is needed."""

from functools import cache

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    VipLlavaConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .embedding import EMBEDDED_MODEL
from .modeling.configuration_attend_and_segment import AttendAndSegmentConfig
from .modeling.configuration_difflmm import DiffLmmConfig
from .modeling.configuration_gsva import GsvaConfig
from .modeling.configuration_ivm import IvmConfig
from .modeling.configuration_lisa import LisaConfig
from .modeling.configuration_reasoning_segmentation import PIPELINE_TASK, ReasoningSegmentationConfig
from .modeling.modeling_attend_and_segment import AttendAndSegmentModel
from .modeling.modeling_difflmm import DiffLmmForConditionalGeneration
from .modeling.modeling_gsva import GsvaForReasoningSegmentation
from .modeling.modeling_ivm import IvmForVisualMasking
from .modeling.modeling_lisa import LisaForReasoningSegmentation
from .modeling.modeling_reasoning_segmentation import ReasoningSegmentationModel
from .processing.image_processing_difflmm import DiffLmmImageProcessor
from .processing.image_processing_reasoning_segmentation import ReasoningSegmentationImageProcessor
from .processing.image_processing_vip_llava import VipLlavaImageProcessor
from .processing.pipeline_reasoning_segmentation import ReasoningSegmentationPipeline
from .processing.processing_attend_and_segment import AttendAndSegmentProcessor
from .processing.processing_difflmm import DiffLmmProcessor
from .processing.processing_gsva import GsvaProcessor
from .processing.processing_ivm import IvmProcessor
from .processing.processing_lisa import LisaProcessor
from .processing.processing_reasoning_segmentation import ReasoningSegmentationProcessor
from .processing.processing_vip_llava import VipLlavaProcessor


SYSTEMS = (
    (ReasoningSegmentationConfig, ReasoningSegmentationModel, ReasoningSegmentationProcessor),
    (LisaConfig, LisaForReasoningSegmentation, LisaProcessor),
    (GsvaConfig, GsvaForReasoningSegmentation, GsvaProcessor),
    (IvmConfig, IvmForVisualMasking, IvmProcessor),
    (AttendAndSegmentConfig, AttendAndSegmentModel, AttendAndSegmentProcessor),
    (DiffLmmConfig, DiffLmmForConditionalGeneration, DiffLmmProcessor),
)
# Systems whose pictures are not for a segmenter.
OWN_IMAGE_PROCESSORS = {DiffLmmConfig: DiffLmmImageProcessor}
# One Pillow class for both backends, so that results do not depend on whether torchvision is installed.
IMAGE_PROCESSORS = {
    "pil": ReasoningSegmentationImageProcessor,
    "torchvision": ReasoningSegmentationImageProcessor,
}


@cache
def register() -> None:
    """Register every system with transformers' Auto classes and the pipeline with its registry. Done once."""
    for config_class, model_class, processor_class in SYSTEMS:
        AutoConfig.register(config_class.model_type, config_class)
        AutoModel.register(config_class, model_class)
        AutoModelForImageTextToText.register(config_class, model_class)
        AutoProcessor.register(config_class, processor_class)
        image_processor_class = OWN_IMAGE_PROCESSORS.get(config_class, ReasoningSegmentationImageProcessor)
        backends = dict.fromkeys(IMAGE_PROCESSORS, image_processor_class)
        AutoImageProcessor.register(config_class, image_processor_classes=backends)
        image_processor_class.register_for_auto_class("AutoImageProcessor")
        # These make save_pretrained copy the code beside the weights.
        config_class.register_for_auto_class("AutoConfig")
        model_class.register_for_auto_class("AutoModel")
        processor_class.register_for_auto_class("AutoProcessor")
    _register_vip_llava()
    PIPELINE_REGISTRY.register_pipeline(
        PIPELINE_TASK,
        pipeline_class=ReasoningSegmentationPipeline,
        pt_model=AutoModel,
        default={"model": (str(EMBEDDED_MODEL), "main")},
        type="multimodal",
    )


def _register_vip_llava() -> None:
    """Config and model are transformers' own. Repositories that name another processor keep theirs."""
    AutoProcessor.register(VipLlavaConfig, VipLlavaProcessor, exist_ok=True)
    classes = dict.fromkeys(IMAGE_PROCESSORS, VipLlavaImageProcessor)
    AutoImageProcessor.register(VipLlavaConfig, image_processor_classes=classes, exist_ok=True)
    VipLlavaProcessor.register_for_auto_class("AutoProcessor")
    VipLlavaImageProcessor.register_for_auto_class("AutoImageProcessor")
