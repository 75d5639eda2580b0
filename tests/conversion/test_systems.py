"""What one entry in the table of systems brings about, and that the entries say what is so."""

import dataclasses
import inspect
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from reasonseg.conversion.compose import CompositionOptions
from reasonseg.conversion.compose_reasoning_segmentation import VlmSources
from reasonseg.conversion.convert import ConversionOptions
from reasonseg.conversion.convert import convert as convert_system
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.systems import COMMON_OPTIONS, COMMON_PARTS, SOURCE_MODELS, SYSTEMS
from reasonseg.loading import import_object
from tests.support.forked_python import TORCH, fork_server
from tests.test_packaging import ROOT


# Nothing else is said of it anywhere in the package.
WITH_A_SEVENTH = """
from reasonseg.conversion.systems import SYSTEMS, Conversion, Option, PublishedSystem, Recognition

classes, functions = "tests.conversion.modeling_seventh", "tests.conversion.convert_seventh"
SYSTEMS["seventh"] = PublishedSystem(
    "seventh",
    "SEVENTH",
    f"{classes}:SeventhConfig",
    f"{classes}:SeventhModel",
    f"{classes}:SeventhProcessor",
    does="fly",
    commands=("ask",),
    slot_tokens=("[WING]",),
    conversion=Conversion(
        f"{functions}:convert_seventh",
        "Convert a seventh checkpoint.",
        (Option("wing", "Left or right.", required=True), Option("feathers", "How many.", float, default=3.0)),
    ),
    original=Recognition((r"^seventh\\.",), f"{functions}:recognise_seventh"),
)
"""


def run_with_a_seventh(code: str) -> str:
    # Without transformers: it registers what the table has when this package is imported.
    run = fork_server(TORCH).run("-c", WITH_A_SEVENTH + code, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return " ".join(run.stdout.split())


@pytest.mark.slow
def test_a_further_system_has_a_command_with_its_options():
    run = "from reasonseg.cli import app\napp(['convert', {}])"
    assert "seventh Convert a seventh checkpoint." in run_with_a_seventh(run.format("'--help'")).replace("│ ", "")
    shown = run_with_a_seventh(run.format("'seventh', '--help'"))
    for part in ("--wing", "Left or right.", "--feathers", "[default: 3.0]", "--dtype", "--max-shard-size", "--out"):
        assert part in shown
    arguments = "'seventh', 'here', '--wing', 'left', '--out', 'there', '--dtype', 'float16'"
    said = run_with_a_seventh(run.format(arguments))
    assert "converting here left 3.0 ['dtype', 'max_shard_size', 'progress']" in said
    assert "there: 7 parameters (tensors: 7 from checkpoint)" in said


@pytest.mark.slow
def test_a_further_system_is_recognised_and_pointed_to(tmp_path):
    code = f"""
import torch
from safetensors.torch import save_file
from reasonseg import convert_lisa
from reasonseg.conversion.recognition import recognise
from reasonseg.conversion.errors import ConversionError

print(recognise({{"seventh.x": (3, 3)}}))
path = {str(tmp_path / "x.safetensors")!r}
save_file({{"seventh.x": torch.ones(3, 3)}}, path)
try:
    convert_lisa(path, vision_tower={str(tmp_path)!r}, base={str(tmp_path)!r}, out={str(tmp_path / "out")!r})
except ConversionError as error:
    print(error)
"""
    said = run_with_a_seventh(code)
    assert "Recognised(system='seventh', variant='seventh-7b', notes=(), unknown=()" in said
    assert "The tensors are SEVENTH's (seventh-7b): use `reasonseg convert seventh`." in said


def test_a_further_system_is_registered_public_and_verified():
    code = """
import reasonseg
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from pathlib import Path
from reasonseg.conversion.tokenizers import build_tokenizer
from reasonseg.conversion.verify import system_of

config = AutoConfig.for_model("seventh")
print(type(config).__name__, AutoModelForImageTextToText._model_mapping[type(config)].__name__)
print(PROCESSOR_MAPPING[type(config)].__name__)
print(reasonseg.SeventhConfig is type(config), reasonseg.convert_seventh.__name__, "SeventhModel" in dir(reasonseg))
tokenizer = build_tokenizer("tests/parity/lisa/checkpoint", "seventh")
print("adds", sorted(set(tokenizer.get_added_vocab()) - {"<s>", "</s>", "<unk>"}))
print("system", system_of({"model_type": "seventh"}, Path()))
"""
    said = run_with_a_seventh(code)
    assert "SeventhConfig SeventhModel" in said
    assert "SeventhProcessor" in said
    assert "True convert_seventh True" in said
    assert said.endswith("system seventh")


def test_the_table_imports_nothing():
    code = (
        "import sys, reasonseg.conversion.systems; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.conversion is not None])
def test_commands_offer_what_the_functions_take(name):
    command = SYSTEMS[name].conversion
    convert = import_object(command.convert)
    taken = inspect.signature(convert).parameters
    assert next(iter(taken)) == "source"
    shared = get_type_hints(ConversionOptions).keys()
    assert taken["options"].kind is inspect.Parameter.VAR_KEYWORD
    assert shared < inspect.signature(convert_system).parameters.keys(), "a misspelt option is an error"
    own = {option.name: option for option in command.options if option.name not in shared}
    for option in own.values():
        default = taken[option.name].default
        assert option.required == (default is inspect.Parameter.empty), option.name
        if not option.required:
            assert option.default == default, option.name
    # What only Python can pass: mappings.
    assert taken.keys() - own.keys() - {"source", "out", "options"} <= {"sam_options", "pointing"}
    assert {option.name for option in COMMON_OPTIONS} | {"progress"} == set(shared)


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.composition is not None])
def test_parts_are_what_the_functions_take(name):
    composition = SYSTEMS[name].composition
    function = import_object(composition.compose)
    taken = dict(inspect.signature(function).parameters)
    assert all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in taken.values())
    shared = get_type_hints(CompositionOptions).keys()
    # What the functions that take any vision-language model share, with the defaults that they have there.
    (unpacked,) = get_args(get_type_hints(function, include_extras=True)["options"])
    defaults = {own.name: own.default for own in dataclasses.fields(VlmSources)} | {"segmenter_dtype": None}
    for name in get_type_hints(unpacked).keys() - shared:
        taken[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name])
    assert {option.name for option in COMMON_PARTS} | {"progress"} == {*shared, "seed"}
    own = {option.name: option for option in composition.all_options if option.name not in shared}
    assert taken.keys() - {"out", "options"} == own.keys()
    for option in own.values():
        default = taken[option.name].default
        assert option.required == (default is inspect.Parameter.empty), option.name
        if not option.required:
            assert option.default == default, option.name
    assert composition.parts.keys() <= own.keys()
    assert {name for group in composition.one_of for name in group} <= own.keys()


def test_templates_are_ones_that_exist():
    from reasonseg.processing.chat import CHAT_TEMPLATE_NAMES

    offered = [
        set(get_args(option.kind))
        for system in SYSTEMS.values()
        if system.conversion is not None
        for option in system.conversion.options
        if option.name == "template"
    ]
    assert len(offered) >= 4
    assert all(names <= set(CHAT_TEMPLATE_NAMES) for names in offered)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_reference_of_an_entry_exists(name):
    system = SYSTEMS[name]
    for reference in (system.config, system.model, system.processor, system.image_processor):
        assert isinstance(import_object(reference), type)
    assert system.is_known_to_transformers == (name == "vip_llava")
    if system.original is not None:
        assert callable(import_object(system.original.describe))


def test_every_part_is_described():
    assert all(callable(import_object(model.recognition.describe)) for model in SOURCE_MODELS.values())


def test_a_misspelt_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match="max_shardsize"):
        convert_lisa(tmp_path, vision_tower=tmp_path, out=tmp_path / "out", max_shardsize=1)
