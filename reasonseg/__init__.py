"""Segmentation by language: a vision-language model points, a segmenter draws.

`import reasonseg` registers the models, processors and the pipeline with transformers, once that is imported, too;
their checkpoints then load without `trust_remote_code`.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .registration import register as register
from .registration import register_with_transformers as _register_with_transformers


if TYPE_CHECKING:
    # What `__getattr__` imports on first use, for type checkers and editors. The second name marks it as public.
    from .conversion.compose import CompositionOptions as CompositionOptions
    from .conversion.compose import compose as compose
    from .conversion.compose_attend_and_segment import compose_attend_and_segment as compose_attend_and_segment
    from .conversion.compose_coordinates import compose_coordinates as compose_coordinates
    from .conversion.compose_difflmm import compose_difflmm as compose_difflmm
    from .conversion.compose_ivm import compose_ivm as compose_ivm
    from .conversion.compose_reasoning_segmentation import VlmOptions as VlmOptions
    from .conversion.compose_reasoning_segmentation import compose_gsva as compose_gsva
    from .conversion.compose_reasoning_segmentation import compose_lisa as compose_lisa
    from .conversion.compose_reasoning_segmentation import (
        compose_reasoning_segmentation as compose_reasoning_segmentation,
    )
    from .conversion.compose_vip_llava import compose_vip_llava as compose_vip_llava
    from .conversion.convert import ConversionOptions as ConversionOptions
    from .conversion.convert import ConversionReport as ConversionReport
    from .conversion.convert_attend_and_segment import convert_attend_and_segment as convert_attend_and_segment
    from .conversion.convert_difflmm import convert_difflmm as convert_difflmm
    from .conversion.convert_gsva import convert_gsva as convert_gsva
    from .conversion.convert_ivm import convert_ivm as convert_ivm
    from .conversion.convert_lisa import convert_lisa as convert_lisa
    from .conversion.convert_sa2va import convert_sa2va as convert_sa2va
    from .conversion.convert_vip_llava import convert_vip_llava as convert_vip_llava
    from .conversion.errors import ConversionError as ConversionError
    from .evaluation.masked_input import MaskedAnswer as MaskedAnswer
    from .evaluation.masked_input import MaskedInput as MaskedInput
    from .evaluation.masked_input import Masker as Masker
    from .evaluation.masked_input import MaskingOptions as MaskingOptions
    from .model_names import EMBEDDED_MODEL as EMBEDDED_MODEL
    from .modeling.configuration_attend_and_segment import AttendAndSegmentConfig as AttendAndSegmentConfig
    from .modeling.configuration_coordinates import CoordinatesConfig as CoordinatesConfig
    from .modeling.configuration_difflmm import DiffLmmConfig as DiffLmmConfig
    from .modeling.configuration_gsva import GsvaConfig as GsvaConfig
    from .modeling.configuration_ivm import IvmConfig as IvmConfig
    from .modeling.configuration_lisa import LisaConfig as LisaConfig
    from .modeling.configuration_reasoning_segmentation import (
        ReasoningSegmentationConfig as ReasoningSegmentationConfig,
    )
    from .modeling.configuration_sa2va import Sa2VaConfig as Sa2VaConfig
    from .modeling.modeling_attend_and_segment import (
        AttendAndSegmentForReasoningSegmentation as AttendAndSegmentForReasoningSegmentation,
    )
    from .modeling.modeling_coordinates import (
        CoordinatesForReasoningSegmentation as CoordinatesForReasoningSegmentation,
    )
    from .modeling.modeling_difflmm import DiffLmmForConditionalGeneration as DiffLmmForConditionalGeneration
    from .modeling.modeling_gsva import GsvaForReasoningSegmentation as GsvaForReasoningSegmentation
    from .modeling.modeling_ivm import IvmForVisualMasking as IvmForVisualMasking
    from .modeling.modeling_lisa import LisaForReasoningSegmentation as LisaForReasoningSegmentation
    from .modeling.modeling_reasoning_segmentation import (
        ComposedForReasoningSegmentation as ComposedForReasoningSegmentation,
    )
    from .modeling.modeling_sa2va import Sa2VaForReasoningSegmentation as Sa2VaForReasoningSegmentation
    from .modeling.modeling_vip_llava import VipLlavaForConditionalGeneration as VipLlavaForConditionalGeneration
    from .processing.answer_stream import AnswerEnd as AnswerEnd
    from .processing.answer_stream import SegmentDrawn as SegmentDrawn
    from .processing.answer_stream import TextPiece as TextPiece
    from .processing.image_processing_reasoning_segmentation import (
        ReasoningSegmentationImageProcessor as ReasoningSegmentationImageProcessor,
    )
    from .processing.image_processing_reasoning_segmentation import SegmenterImageProcessor as SegmenterImageProcessor
    from .processing.image_processing_sa2va import Sa2VaImageProcessor as Sa2VaImageProcessor
    from .processing.image_processing_sa2va_tiles import Sa2VaTileImageProcessor as Sa2VaTileImageProcessor
    from .processing.image_processing_vip_llava import DiffLmmImageProcessor as DiffLmmImageProcessor
    from .processing.image_processing_vip_llava import VipLlavaImageProcessor as VipLlavaImageProcessor
    from .processing.masked_images import MaskedImage as MaskedImage
    from .processing.masked_images import mask_image as mask_image
    from .processing.phrase_segments import PhraseSegment as PhraseSegment
    from .processing.phrase_segments import PhraseSegmentationResult as PhraseSegmentationResult
    from .processing.pipeline_reasoning_segmentation import (
        ReasoningSegmentationPipeline as ReasoningSegmentationPipeline,
    )
    from .processing.processing_attend_and_segment import AttendAndSegmentProcessor as AttendAndSegmentProcessor
    from .processing.processing_coordinates import CoordinatesProcessor as CoordinatesProcessor
    from .processing.processing_difflmm import DiffLmmProcessor as DiffLmmProcessor
    from .processing.processing_gsva import GsvaProcessor as GsvaProcessor
    from .processing.processing_ivm import IvmProcessor as IvmProcessor
    from .processing.processing_lisa import LisaProcessor as LisaProcessor
    from .processing.processing_reasoning_segmentation import (
        ReasoningSegmentationProcessor as ReasoningSegmentationProcessor,
    )
    from .processing.processing_sa2va import Sa2VaProcessor as Sa2VaProcessor
    from .processing.processing_vip_llava import VipLlavaProcessor as VipLlavaProcessor
    from .processing.segments import Segment as Segment
    from .processing.segments import SegmentationResult as SegmentationResult
    from .processing.visual_prompts import VisualPrompt as VisualPrompt
    from .processing.visual_prompts import draw_visual_prompts as draw_visual_prompts
    from .serving.client import RemotePipeline as RemotePipeline
    from .serving.conversation import Conversation as Conversation
    from .serving.conversation import Turn as Turn


_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "modeling").is_dir():
    # In a checkout the sub-packages lie beside this folder instead of in it. An editable install finds them without
    # this, but in the one checkout that was installed; pytest and PYTHONPATH may run another.
    __path__.append(str(_ROOT.parent))

# Beside what each system's entry names.
_SHARED = {
    "SegmenterImageProcessor": "processing.image_processing_reasoning_segmentation",
    "ReasoningSegmentationPipeline": "processing.pipeline_reasoning_segmentation",
    "Segment": "processing.segments",
    "SegmentationResult": "processing.segments",
    "PhraseSegment": "processing.phrase_segments",
    "PhraseSegmentationResult": "processing.phrase_segments",
    "TextPiece": "processing.answer_stream",
    "SegmentDrawn": "processing.answer_stream",
    "AnswerEnd": "processing.answer_stream",
    "RemotePipeline": "serving.client",
    "Conversation": "serving.conversation",
    "Turn": "serving.conversation",
    "MaskedImage": "processing.masked_images",
    "mask_image": "processing.masked_images",
    "MaskedAnswer": "evaluation.masked_input",
    "MaskedInput": "evaluation.masked_input",
    "Masker": "evaluation.masked_input",
    "MaskingOptions": "evaluation.masked_input",
    "VisualPrompt": "processing.visual_prompts",
    "draw_visual_prompts": "processing.visual_prompts",
    "CompositionOptions": "conversion.compose",
    "compose": "conversion.compose",
    "VlmOptions": "conversion.compose_reasoning_segmentation",
    "ConversionError": "conversion.errors",
    "ConversionOptions": "conversion.convert",
    "ConversionReport": "conversion.convert",
    "EMBEDDED_MODEL": "model_names",
}


def _public_names() -> dict[str, str]:
    """The modules of all public names; what they name is imported on first use."""
    from .conversion.systems import SYSTEMS

    of_systems = {name: module for system in SYSTEMS.values() for name, module in system.public_names()}
    return of_systems | {name: f"{__name__}.{module}" for name, module in _SHARED.items()}


if not TYPE_CHECKING:  # a checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if (module := _public_names().get(name)) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_public_names()])


_register_with_transformers()

__all__ = ["__version__", "register", *_public_names()]
