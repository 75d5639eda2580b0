import subprocess
import sys

import pytest
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import reasonseg
from reasonseg.conversion.systems import SYSTEMS, is_of_transformers
from reasonseg.registration import IMAGE_BACKENDS, register


def test_every_public_name_exists():
    for name in reasonseg.__all__:
        assert getattr(reasonseg, name) is not None
    assert set(reasonseg.__all__) <= set(dir(reasonseg))
    with pytest.raises(AttributeError, match="no attribute 'Lisa'"):
        _ = reasonseg.Lisa


def test_registering_twice_changes_nothing():
    register()
    register()


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_auto_classes_know_each_system(system):
    config_class = system.config_class
    assert type(AutoConfig.for_model(system.model_type)) is config_class
    assert AutoModelForImageTextToText._model_mapping[config_class] is system.model_class
    assert system.model_class._auto_class == system.auto_class
    if is_of_transformers(config_class):
        assert AutoModel._model_mapping[config_class].__module__.startswith("transformers.")
    else:
        assert AutoModel._model_mapping[config_class] is system.model_class
        assert config_class._auto_class == "AutoConfig"
    assert PROCESSOR_MAPPING[config_class] is system.processor_class
    assert IMAGE_PROCESSOR_MAPPING[config_class] == dict.fromkeys(IMAGE_BACKENDS, system.image_processor_class)
    assert system.processor_class._auto_class == "AutoProcessor"
    assert system.image_processor_class._auto_class == "AutoImageProcessor"


@pytest.mark.parametrize("name", ["lisa", "gsva"])
def test_a_checkpoint_loads_without_trust(name, request, monkeypatch):
    def no_question(*args):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", no_question)
    repo = request.getfixturevalue(f"{name}_repo")
    assert AutoConfig.from_pretrained(repo).model_type == name
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoImageProcessor):
        assert type(auto_class.from_pretrained(repo)).__module__.startswith("reasonseg.")
    assert type(pipeline("reasoning-segmentation", model=str(repo))).__module__.startswith("reasonseg.")


def test_vip_llava_is_this_packages_class_without_trust(vip_llava_repo):
    model = AutoModelForImageTextToText.from_pretrained(vip_llava_repo)
    assert type(model) is reasonseg.VipLlavaForConditionalGeneration


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)


def test_importing_says_nothing():
    run = run_python("-c", "import reasonseg; print(reasonseg.__version__)")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == reasonseg.__version__


@pytest.mark.parametrize("command", [[], ["publish"], ["train"]], ids=" ".join)
def test_help_does_not_wait_for_torch(command):
    code = f"""
import atexit, runpy, sys
sys.argv = ["reasonseg", *{command}, "--help"]
atexit.register(lambda: print("heavy:", [name for name in ("torch", "transformers") if name in sys.modules]))
runpy.run_module("reasonseg", run_name="__main__")
"""
    run = run_python("-c", code)
    assert run.returncode == 0, run.stderr
    assert "Usage: reasonseg" in run.stdout
    assert run.stdout.splitlines()[-1] == "heavy: []"
