"""Make transformers know this package's models, processors and pipeline, so that no `trust_remote_code` is needed."""

from functools import cache

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from .conversion.systems import SYSTEMS, PublishedSystem, is_of_transformers
from .embedded_world import warn_about_foreign_images
from .embedding import EMBEDDED_MODEL
from .modeling.configuration_reasoning_segmentation import PIPELINE_TASK
from .processing.answer_rendering import notebook_html
from .processing.chat_processor import INPUT_OBSERVERS
from .processing.pipeline_reasoning_segmentation import ReasoningSegmentationPipeline
from .processing.segments import SegmentationResult


# One Pillow class for both backends, so that results do not depend on whether torchvision is installed.
IMAGE_BACKENDS = ("pil", "torchvision")


@cache
def register() -> None:
    """Register every system with transformers' Auto classes and the pipeline with its registry, and have the embedded
    model say what it knows. Done once."""
    INPUT_OBSERVERS.append(warn_about_foreign_images)
    # Beside the published image: the answer under it, in the colours of its masks.
    SegmentationResult._repr_html_ = notebook_html
    for system in SYSTEMS.values():
        _register(system)
    # After DiffLMM itself, which it would register where nobody has.
    from .modeling import attend_and_segment_with_difflmm  # noqa: F401

    PIPELINE_REGISTRY.register_pipeline(
        PIPELINE_TASK,
        pipeline_class=ReasoningSegmentationPipeline,
        pt_model=AutoModel,
        default={"model": (str(EMBEDDED_MODEL), "main")},
        type="multimodal",
    )


def _register(system: PublishedSystem) -> None:
    config_class = system.config_class
    # Repositories of a model that transformers has keep the processor they name, and AutoModel stays its own.
    known = is_of_transformers(config_class)
    if not known:
        AutoConfig.register(system.model_type, config_class)
        AutoModel.register(config_class, system.model_class)
    AutoModelForImageTextToText.register(config_class, system.model_class, exist_ok=known)
    AutoProcessor.register(config_class, system.processor_class, exist_ok=known)
    # AutoImageProcessor.register would first load transformers' own class, which warns where torchvision is missing.
    backends = dict.fromkeys(IMAGE_BACKENDS, system.image_processor_class)
    IMAGE_PROCESSOR_MAPPING.register(config_class, backends, exist_ok=known)
    system.publish_code()
