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

import reasonseg
from reasonseg.registration import SYSTEMS, register


def test_every_public_name_exists():
    for name in reasonseg.__all__:
        assert getattr(reasonseg, name) is not None
    assert set(reasonseg.__all__) <= set(dir(reasonseg))
    with pytest.raises(AttributeError, match="no attribute 'Lisa'"):
        _ = reasonseg.Lisa


def test_registering_twice_changes_nothing():
    register()
    register()


@pytest.mark.parametrize("classes", SYSTEMS, ids=lambda classes: classes[0].model_type)
def test_auto_classes_know_each_system(classes):
    config_class, model_class, processor_class = classes
    config = AutoConfig.for_model(config_class.model_type)
    assert type(config) is config_class
    assert type(config).model_type == config_class.model_type
    for auto_class, registered in ((AutoModel, model_class), (AutoModelForImageTextToText, model_class)):
        assert auto_class._model_mapping[config_class] is registered
    assert processor_class._auto_class == "AutoProcessor"


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


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_help_does_not_wait_for_torch():
    code = """
import atexit, runpy, sys
sys.argv = ["reasonseg", "--help"]
atexit.register(lambda: print("heavy:", [name for name in ("torch", "transformers") if name in sys.modules]))
runpy.run_module("reasonseg", run_name="__main__")
"""
    run = run_python("-c", code)
    assert run.returncode == 0, run.stderr
    assert "segment" in run.stdout
    assert run.stdout.splitlines()[-1] == "heavy: []"
