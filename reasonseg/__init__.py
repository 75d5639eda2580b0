"""Segmentation by language: a vision-language model points, a segmenter draws.

`import reasonseg` registers the models, processors and the pipeline with transformers, which then loads their
checkpoints without `trust_remote_code`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__


if TYPE_CHECKING:
    # What `_PUBLIC` imports on first use, for type checkers and editors. The second name marks it as public.
    from .conversion.convert_attend_and_segment import convert_attend_and_segment as convert_attend_and_segment
    from .conversion.convert_difflmm import convert_difflmm as convert_difflmm
    from .conversion.convert_gsva import convert_gsva as convert_gsva
    from .conversion.convert_ivm import convert_ivm as convert_ivm
    from .conversion.convert_lisa import convert_lisa as convert_lisa
    from .conversion.convert_vip_llava import convert_vip_llava as convert_vip_llava
    from .conversion.errors import ConversionError as ConversionError
    from .embedding import EMBEDDED_MODEL as EMBEDDED_MODEL
    from .evaluation.masked_input import MaskedAnswer as MaskedAnswer
    from .evaluation.masked_input import MaskedInput as MaskedInput
    from .evaluation.masked_input import Masker as Masker
    from .evaluation.masked_input import MaskingOptions as MaskingOptions
    from .modeling.configuration_attend_and_segment import AttendAndSegmentConfig as AttendAndSegmentConfig
    from .modeling.configuration_difflmm import DiffLmmConfig as DiffLmmConfig
    from .modeling.configuration_gsva import GsvaConfig as GsvaConfig
    from .modeling.configuration_ivm import IvmConfig as IvmConfig
    from .modeling.configuration_lisa import LisaConfig as LisaConfig
    from .modeling.configuration_reasoning_segmentation import (
        ReasoningSegmentationConfig as ReasoningSegmentationConfig,
    )
    from .modeling.modeling_attend_and_segment import AttendAndSegmentModel as AttendAndSegmentModel
    from .modeling.modeling_difflmm import DiffLmmForConditionalGeneration as DiffLmmForConditionalGeneration
    from .modeling.modeling_gsva import GsvaForReasoningSegmentation as GsvaForReasoningSegmentation
    from .modeling.modeling_ivm import IvmForVisualMasking as IvmForVisualMasking
    from .modeling.modeling_lisa import LisaForReasoningSegmentation as LisaForReasoningSegmentation
    from .modeling.modeling_reasoning_segmentation import ReasoningSegmentationModel as ReasoningSegmentationModel
    from .modeling.modeling_vip_llava import VipLlavaForConditionalGeneration as VipLlavaForConditionalGeneration
    from .processing.image_processing_reasoning_segmentation import (
        ReasoningSegmentationImageProcessor as ReasoningSegmentationImageProcessor,
    )
    from .processing.image_processing_reasoning_segmentation import SegmenterImageProcessor as SegmenterImageProcessor
    from .processing.image_processing_vip_llava import VipLlavaImageProcessor as VipLlavaImageProcessor
    from .processing.masked_images import MaskedImage as MaskedImage
    from .processing.masked_images import mask_image as mask_image
    from .processing.phrase_segments import PhraseSegment as PhraseSegment
    from .processing.phrase_segments import PhraseSegmentationResult as PhraseSegmentationResult
    from .processing.pipeline_reasoning_segmentation import (
        ReasoningSegmentationPipeline as ReasoningSegmentationPipeline,
    )
    from .processing.processing_attend_and_segment import AttendAndSegmentProcessor as AttendAndSegmentProcessor
    from .processing.processing_difflmm import DiffLmmProcessor as DiffLmmProcessor
    from .processing.processing_gsva import GsvaProcessor as GsvaProcessor
    from .processing.processing_ivm import IvmProcessor as IvmProcessor
    from .processing.processing_lisa import LisaProcessor as LisaProcessor
    from .processing.processing_reasoning_segmentation import (
        ReasoningSegmentationProcessor as ReasoningSegmentationProcessor,
    )
    from .processing.processing_vip_llava import VipLlavaProcessor as VipLlavaProcessor
    from .processing.segments import Segment as Segment
    from .processing.segments import SegmentationResult as SegmentationResult
    from .processing.visual_prompts import VisualPrompt as VisualPrompt
    from .processing.visual_prompts import draw_visual_prompts as draw_visual_prompts
    from .registration import register as register


_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "modeling").is_dir():
    # Not installed: in a checkout the sub-packages lie beside this folder instead of in it.
    __path__.append(str(_ROOT.parent))

_PUBLIC = {
    "ReasoningSegmentationConfig": "modeling.configuration_reasoning_segmentation",
    "LisaConfig": "modeling.configuration_lisa",
    "GsvaConfig": "modeling.configuration_gsva",
    "IvmConfig": "modeling.configuration_ivm",
    "DiffLmmConfig": "modeling.configuration_difflmm",
    "AttendAndSegmentConfig": "modeling.configuration_attend_and_segment",
    "ReasoningSegmentationModel": "modeling.modeling_reasoning_segmentation",
    "LisaForReasoningSegmentation": "modeling.modeling_lisa",
    "GsvaForReasoningSegmentation": "modeling.modeling_gsva",
    "IvmForVisualMasking": "modeling.modeling_ivm",
    "DiffLmmForConditionalGeneration": "modeling.modeling_difflmm",
    "AttendAndSegmentModel": "modeling.modeling_attend_and_segment",
    "VipLlavaForConditionalGeneration": "modeling.modeling_vip_llava",
    "ReasoningSegmentationProcessor": "processing.processing_reasoning_segmentation",
    "LisaProcessor": "processing.processing_lisa",
    "GsvaProcessor": "processing.processing_gsva",
    "IvmProcessor": "processing.processing_ivm",
    "DiffLmmProcessor": "processing.processing_difflmm",
    "AttendAndSegmentProcessor": "processing.processing_attend_and_segment",
    "VipLlavaProcessor": "processing.processing_vip_llava",
    "ReasoningSegmentationImageProcessor": "processing.image_processing_reasoning_segmentation",
    "SegmenterImageProcessor": "processing.image_processing_reasoning_segmentation",
    "VipLlavaImageProcessor": "processing.image_processing_vip_llava",
    "ReasoningSegmentationPipeline": "processing.pipeline_reasoning_segmentation",
    "Segment": "processing.segments",
    "SegmentationResult": "processing.segments",
    "PhraseSegment": "processing.phrase_segments",
    "PhraseSegmentationResult": "processing.phrase_segments",
    "MaskedImage": "processing.masked_images",
    "mask_image": "processing.masked_images",
    "MaskedAnswer": "evaluation.masked_input",
    "MaskedInput": "evaluation.masked_input",
    "Masker": "evaluation.masked_input",
    "MaskingOptions": "evaluation.masked_input",
    "VisualPrompt": "processing.visual_prompts",
    "draw_visual_prompts": "processing.visual_prompts",
    "convert_lisa": "conversion.convert_lisa",
    "convert_gsva": "conversion.convert_gsva",
    "convert_vip_llava": "conversion.convert_vip_llava",
    "convert_ivm": "conversion.convert_ivm",
    "convert_difflmm": "conversion.convert_difflmm",
    "convert_attend_and_segment": "conversion.convert_attend_and_segment",
    "ConversionError": "conversion.errors",
    "EMBEDDED_MODEL": "embedding",
    "register": "registration",
}


if not TYPE_CHECKING:  # a checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


def _is_the_command() -> bool:
    """Whether this process is the `reasonseg` command, whose `--help` must not wait for torch.

    Its commands register when they start to work.
    """
    return Path(sys.argv[0] if sys.argv else "").stem == "reasonseg" or sys.orig_argv[1:3] == ["-m", "reasonseg"]


if not _is_the_command():
    import_module(".registration", __name__).register()

__all__ = ["__version__", *_PUBLIC]
