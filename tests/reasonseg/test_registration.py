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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

import reasonseg
from reasonseg import registration
from reasonseg.conversion.systems import SYSTEMS, is_of_transformers
from reasonseg.modeling.configuration_reasoning_segmentation import PIPELINE_TASK
from reasonseg.processing.chat_processor import INPUT_OBSERVERS
from reasonseg.registration import IMAGE_BACKENDS, register
from tests.support.forked_python import TORCH, fork_server


def test_every_public_name_exists():
    for name in reasonseg.__all__:
        assert getattr(reasonseg, name) is not None
    assert set(reasonseg.__all__) <= set(dir(reasonseg))
    with pytest.raises(AttributeError, match="no attribute 'Lisa'"):
        _ = reasonseg.Lisa


def registered() -> dict:
    """Everything that registration changes, by name."""
    mappings = {
        "configs": CONFIG_MAPPING,
        "models": AutoModel._model_mapping,
        "image-text-to-text": AutoModelForImageTextToText._model_mapping,
        "processors": PROCESSOR_MAPPING,
        "image processors": IMAGE_PROCESSOR_MAPPING,
    }
    found = {name: dict(mapping._extra_content) for name, mapping in mappings.items()}
    return found | {"tasks": dict(PIPELINE_REGISTRY.supported_tasks), "observers": list(INPUT_OBSERVERS)}


def test_registering_twice_changes_nothing(monkeypatch):
    before = registered()
    assert before["observers"].count(registration._watch_embedded_model) == 1
    assert PIPELINE_TASK in before["tasks"]
    assert len(before["models"]) >= 6
    register()
    assert registered() == before
    # A second time that really is one would be seen: an embedded model that warns twice.
    monkeypatch.setattr(registration, "_is_registered", False)
    register()
    assert registered() == before | {"observers": [*before["observers"], registration._watch_embedded_model]}
    INPUT_OBSERVERS.pop()


IMPORTS = {
    "before transformers": "import reasonseg, transformers",
    "after transformers": "import transformers, reasonseg",
    "after somebody has looked for transformers": "import reasonseg, importlib.util\n"
    "importlib.util.find_spec('transformers')\nimport transformers",
    "a model": "import reasonseg.modeling.modeling_gsva",
    "a processor": "from reasonseg.processing.segments import Segment",
    "a converter": "import reasonseg.conversion.convert_lisa",
    "registration itself": "from reasonseg.registration import IMAGE_BACKENDS\nimport transformers",
    "the embedded model's world": "import reasonseg.tabletop.drawn_images, transformers",
    "an Auto class": "import reasonseg\nfrom transformers.models.auto.modeling_auto import AutoModel",
}


ALWAYS = ("before transformers", "a model", "an Auto class")


@pytest.mark.parametrize(
    "code",
    [pytest.param(code, id=name, marks=[pytest.mark.slow] * (name not in ALWAYS)) for name, code in IMPORTS.items()],
)
def test_whoever_imports_first_everything_is_registered(code):
    known = "print(type(AutoConfig.for_model('lisa')).__module__, 'reasonseg' in sys.modules)"
    program = ("-c", f"import sys\n{code}\nfrom transformers import AutoConfig\n{known}")
    # One of them starts from nothing; in the others torch has been imported, but not transformers.
    run = run_python(*program) if code == IMPORTS["before transformers"] else fork_server(TORCH).run(*program)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split() == ["reasonseg.modeling.configuration_lisa", "True"]


def test_importing_waits_for_nothing():
    heavy = "[name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]"
    run = run_python("-c", f"import sys, reasonseg\ndir(reasonseg)\nprint({heavy})")
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_auto_classes_know_each_system(system):
    config_class = system.config_class
    assert type(AutoConfig.for_model(system.model_type)) is config_class
    assert AutoModelForImageTextToText._model_mapping[config_class] is system.model_class
    assert system.model_class._auto_class == system.auto_class
    key = config_class
    if is_of_transformers(config_class):
        # Repositories of others keep their processors.
        key = system.processor_class
        assert PROCESSOR_MAPPING[config_class].__module__.startswith("transformers.")
        assert {cls.__module__.split(".")[0] for cls in IMAGE_PROCESSOR_MAPPING[config_class].values() if cls} == {
            "transformers"
        }
        assert AutoModel._model_mapping[config_class].__module__.startswith("transformers.")
    else:
        assert AutoModel._model_mapping[config_class] is system.model_class
        assert config_class._auto_class == "AutoConfig"
    assert PROCESSOR_MAPPING[key] is system.processor_class
    assert IMAGE_PROCESSOR_MAPPING[key] == dict.fromkeys(IMAGE_BACKENDS, system.image_processor_class)
    assert system.processor_class._auto_class == "AutoProcessor"
    assert system.image_processor_class._auto_class == "AutoImageProcessor"
    for other in system.other_image_processor_classes:
        assert IMAGE_PROCESSOR_MAPPING[other] == dict.fromkeys(IMAGE_BACKENDS, other)
        assert other._auto_class == "AutoImageProcessor"


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
