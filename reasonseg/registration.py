"""Make transformers know this package's models, processors and pipeline, so that no `trust_remote_code` is needed.

`import reasonseg` asks for it with `register_with_transformers`, which waits until transformers is imported: who only
wants `reasonseg --help` does not wait for torch. Registration needs `modeling` and `processing` as a whole, so both
import transformers before any module of theirs; this module imports nothing of the package until it registers.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


_TRANSFORMERS = "transformers"
# One Pillow class for both backends, so that results do not depend on whether torchvision is installed.
IMAGE_BACKENDS = ("pil", "torchvision")

_is_registered = False


def register_with_transformers() -> None:
    """Register now if transformers is imported already, and else as soon as somebody imports it."""
    if _TRANSFORMERS in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterTransformers())


def register() -> None:
    """Register every system with transformers' Auto classes and the pipeline with its registry, and have the embedded
    model say what it knows. Done once.

    What transformers knows by itself stays its own, with one exception that holds for the whole process: for its
    `VipLlavaConfig`, `AutoModelForImageTextToText` gives this package's class, also for ViP-LLaVA repositories of
    others. Converted ones have the same config, so that they load without this package, too, and nothing else in it
    chooses a class. Parameters and outputs are transformers' own but for the logits of the image placeholder, which is
    never predicted. Take `transformers.VipLlavaForConditionalGeneration` for transformers' class.
    """
    global _is_registered
    if _is_registered:
        return
    _is_registered = True  # before transformers is imported, which would start this again
    try:
        _register_all()
    except BaseException:
        _is_registered = False
        raise


def _register_all() -> None:
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .conversion.systems import SYSTEMS
    from .model_names import EMBEDDED_MODEL
    from .modeling.configuration_reasoning_segmentation import PIPELINE_TASK
    from .processing.answer_rendering import notebook_html
    from .processing.chat_processor import INPUT_OBSERVERS
    from .processing.pipeline_reasoning_segmentation import ReasoningSegmentationPipeline
    from .processing.segments import SegmentationResult

    for system in SYSTEMS.values():
        _register_system(system)
    # After DiffLMM itself, which it would register where nobody has.
    from .modeling import attend_and_segment_with_difflmm  # noqa: F401

    # Beside the published image: the answer under it, in the colours of its masks.
    SegmentationResult._repr_html_ = notebook_html
    PIPELINE_REGISTRY.register_pipeline(
        PIPELINE_TASK,
        pipeline_class=ReasoningSegmentationPipeline,
        pt_model=AutoModel,
        default={"model": (str(EMBEDDED_MODEL), "main")},
        type="multimodal",
    )
    INPUT_OBSERVERS.append(_watch_embedded_model)


def _register_system(system: Any) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    config_class = system.config_class
    # AutoModel stays transformers' own for a model that it has; see `register`.
    known = system.is_known_to_transformers
    if not known:
        AutoConfig.register(system.model_type, config_class)
        AutoModel.register(config_class, system.model_class)
    AutoModelForImageTextToText.register(config_class, system.model_class, exist_ok=known)
    # Repositories name their processors, which are found by these names whatever they are registered for; a key that
    # is not a config takes nothing from other repositories of a model that transformers has.
    key = system.processor_class if known else config_class
    AutoProcessor.register(key, system.processor_class)
    # AutoImageProcessor.register would first load transformers' own class, which warns where torchvision is missing.
    backends = dict.fromkeys(IMAGE_BACKENDS, system.image_processor_class)
    IMAGE_PROCESSOR_MAPPING.register(key, backends)
    for other in system.other_image_processor_classes:
        IMAGE_PROCESSOR_MAPPING.register(other, dict.fromkeys(IMAGE_BACKENDS, other))
    system.publish_code()


def _watch_embedded_model(processor: Any, inputs: Any) -> None:
    from .tabletop.drawn_images import warn_about_foreign_images

    warn_about_foreign_images(processor, inputs)


class _AfterTransformers(MetaPathFinder):
    """Finds transformers where the other finders do, and registers when it has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TRANSFORMERS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                register()

            spec.loader.exec_module = execute_and_register  # ty: ignore[invalid-assignment]
        return spec


__all__ = ["IMAGE_BACKENDS", "register", "register_with_transformers"]
