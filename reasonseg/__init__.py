"""Segmentation by language: a vision-language model points, a segmenter draws.

`import reasonseg` registers the models, processors and the pipeline with transformers, which then loads their
checkpoints without `trust_remote_code`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ._version import __version__


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
    "MaskedAnswer": "masked_input",
    "MaskedInput": "masked_input",
    "Masker": "masked_input",
    "MaskingOptions": "masked_input",
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
