"""
transformers' own common test mixins, as importable classes.

`ModelTesterMixin`, `ProcessorTesterMixin` and `ImageProcessingTestMixin` are what every model inside transformers has
to pass. They are fetched once (see `source_distribution.py`) and run from there; importing this module where they
cannot be had skips the importing test module.
"""

import importlib.util
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from .source_distribution import SourcesUnavailableError, mixin_folder


PACKAGE = "transformers_common_tests"
SAMPLE_IMAGE = Path(__file__).parents[1] / "parity" / "lisa" / "images" / "img0.png"

try:
    _FOLDER = mixin_folder()
except SourcesUnavailableError as error:
    pytest.skip(f"transformers' test mixins are not at hand. {error}", allow_module_level=True)


def _stand_in(name: str, **content) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


def _load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.{name}", _FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    search_path = sys.path.copy()
    spec.loader.exec_module(module)
    sys.path[:] = search_path  # they append the `utils` folder of a transformers checkout
    return module


def _local_sample(url: str) -> str:
    """
    Stands for `fetch_hub_objects_for_ci.url_to_local_path`, which downloads the samples that some tests read: images
    of this repository take their place, videos and sounds have none.
    """
    is_image = url.endswith((".png", ".jpg"))
    return str(SAMPLE_IMAGE) if is_image else url.rpartition("/")[2]


# What the mixins import and the source distribution leaves out. The two base classes hold the tests of `torch.export`
# and of `generate`; without them the mixins lose those tests and nothing else.
_stand_in(PACKAGE, __path__=[str(_FOLDER)])
_stand_in(f"{PACKAGE}.exporters", __path__=[])
_stand_in(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_stand_in(f"{PACKAGE}.generation", __path__=[])
_stand_in(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
_stand_in("fetch_hub_objects_for_ci", url_to_local_path=_local_sample)

try:
    modeling = _load("test_modeling_common")
    processing = _load("test_processing_common")
    image_processing = _load("test_image_processing_common")
except ModuleNotFoundError as error:
    if not (error.name or "").startswith(PACKAGE):
        raise
    # Another version of transformers may leave out more; what stands in for it is then to be added above.
    pytest.skip(f"transformers' test mixins need {error.name}, which has no stand-in.", allow_module_level=True)
finally:
    del sys.modules["fetch_hub_objects_for_ci"]

# Thousands of subtests: reporting each takes most of their time, so that a test ends with the first one that fails.
for _mixin in (modeling.ModelTesterMixin, processing.ProcessorTesterMixin, image_processing.ImageProcessingTestMixin):
    _mixin.subTest = lambda self, *message, **parameters: nullcontext()
# It sees that an old name of an argument still works.
pytest.mark.slow(modeling.ModelTesterMixin.test_bc_torch_dtype)

__all__ = ["image_processing", "modeling", "processing"]
